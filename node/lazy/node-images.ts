// The images of a node as its snapshotter sees them: claims layers, mounts images, and sees to it that their blocks come in good order.
import { LRUCache } from 'lru-cache'
import type { Logger } from 'pino'
import { packedLength } from '../../image/block-table.ts'
import { SkimmerError, hasCode } from '../../oci/errors.ts'
import type { ClaimedLayer, LayerClaim, LazyImages } from '../../snapshotter/lazy-images.ts'
import type { ImageDisks } from './image-disks.ts'
import { imageIdOf, type ImageMetadata } from './image-metadata.ts'
import type { ImageSource, SourceImage } from './image-source.ts'
import type { KnownLayer, LayerLibrary, LayerRecord } from './layer-library.ts'
import type { StartWatch } from './start-watch.ts'

/** An image being pulled: asked for once however many of its layers are claimed. */
interface Pull {
  readonly image: SourceImage
  readonly layers: readonly Promise<KnownLayer>[]
  /** Composed: only then is any layer claimed, so that an image is lazy as a whole or not at all. */
  readonly whole: Promise<void>
}

/** A pull claims its layers within seconds; a tag may move later. */
const PULL_MEMORY_MS = 60_000

export class NodeImages implements LazyImages {
  readonly #sources: readonly ImageSource[]
  readonly #library: LayerLibrary
  readonly #metadata: ImageMetadata
  readonly #disks: ImageDisks
  readonly #starts: StartWatch
  readonly #logger: Logger
  readonly #pulls = new LRUCache<string, Promise<Pull>>({ max: 1000, ttl: PULL_MEMORY_MS })

  constructor(components: { sources: readonly ImageSource[]; library: LayerLibrary; metadata: ImageMetadata; disks: ImageDisks; starts: StartWatch; logger: Logger }) {
    this.#sources = components.sources
    this.#library = components.library
    this.#metadata = components.metadata
    this.#disks = components.disks
    this.#starts = components.starts
    this.#logger = components.logger
  }

  async claim(claim: LayerClaim, signal: AbortSignal): Promise<ClaimedLayer> {
    const position = claim.parentDiffIds.length
    let pull = await this.#pull(claim, signal)
    if (claim.layerDigest !== undefined && pull.image.layers[position]?.digest !== claim.layerDigest) {
      // The tag moved between two pulls: what was remembered is not the image that is being pulled now.
      this.#pulls.delete(pullKey(claim))
      pull = await this.#pull(claim, signal)
      if (pull.image.layers[position]?.digest !== claim.layerDigest) {
        throw new SkimmerError('UNSUPPORTED', `${claim.reference ?? claim.chainId}: layer ${position + 1} is ${pull.image.layers[position]?.digest ?? 'missing'} in the registry, not ${claim.layerDigest}`)
      }
    }
    if (pull.layers[position] === undefined) throw new SkimmerError('NOT_FOUND', `${claim.chainId}: the image that is known has only ${pull.layers.length} layers`)
    await waitFor(pull.whole, signal)
    const { record, resource } = await pull.layers[position]
    return { diffId: record.diffId, size: packedLength(resource.table), inodes: await this.#library.files(record.diffId) }
  }

  /** The diffIDs of an image, bottom first, once all its layers are known here. The errors of claim(). */
  async resolve(request: { reference: string; manifestDigest?: string }, signal?: AbortSignal): Promise<string[]> {
    const pull = await this.#pull({ ...request, chainId: '', parentDiffIds: [] }, signal)
    const layers = await Promise.all(pull.layers.map((layer) => waitFor(layer, signal)))
    return layers.map(({ record }) => record.diffId)
  }

  #pull(claim: LayerClaim, signal: AbortSignal | undefined): Promise<Pull> {
    const key = pullKey(claim)
    let pull = this.#pulls.get(key)
    if (pull === undefined) {
      // Not the claimer's signal: other layers' claims wait for the same answer.
      pull = this.#begin(claim)
      this.#pulls.set(key, pull)
      pull.catch(() => this.#pulls.delete(key))
    }
    return waitFor(pull, signal)
  }

  async #begin(claim: LayerClaim): Promise<Pull> {
    const begun = performance.now()
    const { image, others } = await this.#ask(claim, this.#sources)
    const resolvedMs = performance.now() - begun
    // The source may go away between its answer and its work: then the next one does it.
    let second: Promise<SourceImage> | undefined
    const index = async (position: number): Promise<LayerRecord> => {
      try {
        return await image.index(position)
      } catch (error) {
        if (claim.reference === undefined || others.length === 0 || !hasCode(error, 'UNAVAILABLE', 'TIMEOUT')) throw error
        second ??= this.#ask({ ...claim, manifestDigest: claim.manifestDigest ?? image.manifestDigest }, others).then(({ image }) => image)
        return await (await second).index(position)
      }
    }
    const layers = image.layers.map(async (_, position) => this.#library.adopt(await index(position)))
    const whole = this.#prepare(image, layers, { begun, resolvedMs })
    whole.catch((error: unknown) => {
      this.#logger.warn({ reference: image.reference, err: error }, 'the image cannot be served lazily')
      this.#pulls.delete(pullKey(claim)) // the next pull may meet a source that is back
    })
    return { image, layers, whole }
  }

  /** All layers are here as indexes: bring what the start will read, and compose the image. */
  async #prepare(image: SourceImage, layers: readonly Promise<KnownLayer>[], clock: { begun: number; resolvedMs: number }): Promise<void> {
    const diffIds = image.layers.map((layer) => layer.diffId)
    let indexedMs = 0
    const known = Promise.all(layers).then(() => {
      indexedMs = performance.now() - clock.begun
    })
    if (image.composed !== undefined) await this.#metadata.adopt(diffIds, image.composed, known)
    await known
    await this.#metadata.compose(diffIds)
    // Not before: the trace's blocks would come first, and containerd waits for the metadata.
    this.#starts.expect(imageIdOf(diffIds), diffIds, image.trace)
    this.#logger.info(
      { reference: image.reference, image: imageIdOf(diffIds), layers: diffIds.length, traceBlocks: image.trace?.blocks.length ?? 0, resolvedMs: Math.round(clock.resolvedMs), indexedMs: Math.round(indexedMs), readyMs: Math.round(performance.now() - clock.begun) },
      'an image is ready to start lazily',
    )
  }

  /** Supernodes first, then ourselves; a source that is away hands on to the next, an answer about the image itself does not. */
  async #ask(claim: LayerClaim, sources: readonly ImageSource[]): Promise<{ image: SourceImage; others: readonly ImageSource[] }> {
    let away: unknown
    for (const [position, source] of sources.entries()) {
      try {
        const { reference, manifestDigest } = claim
        const image = reference === undefined ? await source.chain(claim.chainId) : await source.resolve({ reference, manifestDigest })
        return { image, others: sources.slice(position + 1) }
      } catch (error) {
        if (!hasCode(error, 'UNAVAILABLE', 'TIMEOUT', 'NOT_FOUND')) throw error
        this.#logger.info({ source: source.name, reference: claim.reference, chainId: claim.chainId, reason: (error as Error).message }, 'this source does not have the image')
        away ??= error
      }
    }
    throw away ?? new SkimmerError('UNAVAILABLE', 'no source of images is configured')
  }

  async mount(diffIds: string[], user: string): Promise<string> {
    for (const diffId of diffIds) if (this.#library.get(diffId) === undefined) await this.#find(diffIds)
    const mountPoint = await this.#disks.mount(diffIds, user)
    this.#starts.started(imageIdOf(diffIds), diffIds)
    return mountPoint
  }

  /** Layers that were forgotten or evicted, of a snapshot that still names them. */
  async #find(diffIds: readonly string[]): Promise<void> {
    const chainId = `sha256:${imageIdOf(diffIds)}`
    const { image } = await this.#ask({ chainId, parentDiffIds: diffIds.slice(0, -1) }, this.#sources)
    await Promise.all(image.layers.map(async (_, position) => this.#library.adopt(await image.index(position))))
  }

  async unmount(diffIds: string[], user: string): Promise<void> {
    await this.#disks.unmount(diffIds, user)
  }

  async forget(diffId: string): Promise<void> {
    const known = this.#library.get(diffId)
    if (known !== undefined) this.#starts.removed(known.resource.id)
    // A pull that is remembered would hand out the layer as it was.
    for (const [key, pull] of this.#pulls.entries()) {
      const { image } = await pull.catch(() => ({ image: undefined }))
      if (image?.layers.some((layer) => layer.diffId === diffId)) this.#pulls.delete(key)
    }
    this.#disks.forgetLayer(diffId)
    await this.#library.forget(diffId)
  }
}

const pullKey = (claim: LayerClaim): string => (claim.reference === undefined ? claim.chainId : `${claim.reference} ${claim.manifestDigest ?? ''}`)

async function waitFor<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return await promise
  signal.throwIfAborted()
  let stop: (() => void) | undefined
  try {
    return await Promise.race([
      promise,
      new Promise<never>((_, reject) => {
        stop = () => reject(new SkimmerError('ABORTED', 'the caller gave up', { cause: signal.reason }))
        signal.addEventListener('abort', stop, { once: true })
      }),
    ])
  } finally {
    if (stop) signal.removeEventListener('abort', stop)
  }
}
