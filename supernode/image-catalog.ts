// The image catalog: reference -> manifest -> layers with their diffIDs, and chainID -> layers; asks the registry as seldom as may be.
import type { Logger } from 'pino'
import { chainIds } from '../oci/chain-id.ts'
import { SkimmerError, hasCode } from '../oci/errors.ts'
import { formatPlatform, hostPlatform, parsePlatform } from '../oci/platform.ts'
import { atDigest, formatReference, parseReference } from '../oci/reference.ts'
import type { Reference } from '../oci/reference.ts'
import { DEFAULT_IMAGE_MEMORY_MS, DEFAULT_REVALIDATE_MS, DEFAULT_TAG_TTL_MS } from './defaults.ts'
import { ImageAccess, mayNotRead } from './image-access.ts'
import type { ImageAccessOptions } from './image-access.ts'
import { chainRecordSchema, digestSchema, imageRecordSchema, tagRecordSchema } from './image-record.ts'
import type { ImageLayerRecord, ImageRecord } from './image-record.ts'
import type { HandedCredentials, RegistryAccess, RegistryGate } from './registry-access.ts'
import type { SharedState, StateSpace } from './shared-state.ts'
import { SingleFlight } from './single-flight.ts'

export interface ImageRequest {
  /** As people write it. */
  readonly reference: string
  /** `os/architecture[/variant]`; this host's when left out. */
  readonly platform?: string
  /** Takes precedence over the reference's tag. */
  readonly manifestDigest?: string
  readonly credentials?: HandedCredentials
  /** The node that asks: what it was let to read by this manifest digest before (a preheat's push counts) it may name again. */
  readonly peer?: string
}

/** An image, and as whom the registry lets its layers be read. */
export interface ResolvedImage {
  readonly image: ImageRecord
  readonly access: RegistryAccess
  readonly reference: Reference
}

export interface ImageCatalogOptions extends ImageAccessOptions {
  /** How long a tag is believed without asking the registry, milliseconds. */
  tagTtlMs?: number
  /** Images that nobody asked for in this time are forgotten, milliseconds. */
  imageMemoryMs?: number
}

interface TagRecord { top: string; manifestDigest: string; checked: number }
const MAX_REFERENCES = 8
const MAX_CHAIN_IMAGES = 64
const TOUCH_MS = 3_600_000

export class ImageCatalog {
  readonly access: ImageAccess
  readonly #gate: RegistryGate
  readonly #logger: Logger
  readonly #clock: () => number
  readonly #tags: StateSpace<TagRecord>
  readonly #images: StateSpace<ImageRecord>
  readonly #chains: StateSpace<{ images: string[]; length: number }>
  readonly #tagTtlMs: number
  readonly #revalidateMs: number
  readonly #imageMemoryMs: number
  readonly #resolving = new SingleFlight<ImageRecord>()

  constructor(components: { gate: RegistryGate; state: SharedState; logger: Logger; clock?: () => number }, options: ImageCatalogOptions = {}) {
    this.#gate = components.gate
    this.#logger = components.logger
    this.#clock = components.clock ?? Date.now
    this.access = new ImageAccess(components, options)
    this.#tags = components.state.space('tags', tagRecordSchema)
    this.#images = components.state.space('images', imageRecordSchema)
    this.#chains = components.state.space('chains', chainRecordSchema)
    this.#tagTtlMs = options.tagTtlMs ?? DEFAULT_TAG_TTL_MS
    this.#revalidateMs = options.revalidateMs ?? DEFAULT_REVALIDATE_MS
    this.#imageMemoryMs = options.imageMemoryMs ?? DEFAULT_IMAGE_MEMORY_MS
  }

  /**
   * The image a reference means now, if the registry lets the node's credentials (or the supernode's own) see it. Errors: INVALID_ARGUMENT,
   * UNAUTHORIZED, NOT_FOUND, UNSUPPORTED and INVALID_DATA for manifests that are no images, UNAVAILABLE when the registry is down
   * and the image is not known here.
   */
  async resolve(request: ImageRequest): Promise<ResolvedImage> {
    const parsed = parseReference(request.reference)
    const platform = formatPlatform(request.platform === undefined ? hostPlatform() : parsePlatform(request.platform))
    const reference = request.manifestDigest === undefined ? parsed : atDigest(parsed, request.manifestDigest)
    const name = formatReference(reference.digest === undefined ? reference : atDigest(reference, reference.digest))
    const tag = await this.#tags.get(`${name} ${platform}`)
    const manifestDigest = tag?.manifestDigest ?? reference.digest
    const known = manifestDigest === undefined ? undefined : await this.#images.get(imageKey(reference, manifestDigest))
    const fresh = reference.digest !== undefined || (tag !== undefined && this.#clock() - tag.checked < this.#tagTtlMs)

    let failure: unknown
    for (const access of this.#gate.accesses(reference.registry, request.credentials)) {
      try {
        const image = known !== undefined && fresh
          ? ((await this.access.mayRead(known, access)) ? known : undefined)
          : await this.#resolving.run(`${name} ${platform} ${access.who}`, () => this.#ask(reference, name, platform, access, tag, known))
        if (image !== undefined) return { image: await this.#used(image, formatReference(parsed)), access, reference }
      } catch (error) {
        if (!hasCode(error, 'UNAUTHORIZED', 'FORBIDDEN')) throw error
        failure ??= error
      }
    }
    if (known !== undefined && reference.digest !== undefined && request.peer !== undefined && (await this.access.peerMayRead(known, request.peer))) {
      return { image: await this.#used(known, formatReference(parsed)), access: this.#gate.own, reference }
    }
    throw mayNotRead(formatReference(parsed), failure)
  }

  /** The image whose lowest layers make this chainID, with those layers, bottom first. NOT_FOUND also when the peer may not read it. */
  async resolveChain(chainId: string, peer: string): Promise<{ image: ImageRecord; layers: ImageLayerRecord[]; access: RegistryAccess }> {
    const chain = await this.#chains.get(chainId)
    for (const key of (chain?.images ?? []).toReversed()) {
      const image = await this.#images.get(key)
      if (image === undefined) continue
      if ((await this.access.peerMayRead(image, peer)) || (await this.access.mayRead(image, this.#gate.own))) {
        return { image: await this.#used(image), layers: image.layers.slice(0, chain!.length), access: this.#gate.own }
      }
    }
    throw new SkimmerError('NOT_FOUND', `${chainId}: no image with this chainID is known here to this node; resolve the image by its reference first`)
  }

  /** The layers of a chainID that was seen here, whoever may read them. */
  async chain(chainId: string): Promise<readonly ImageLayerRecord[] | undefined> {
    const chain = await this.#chains.get(chainId)
    for (const key of chain?.images ?? []) {
      const image = await this.#images.get(key)
      if (image !== undefined) return image.layers.slice(0, chain!.length)
    }
    return undefined
  }

  /** The image of a manifest in a repository, if it was resolved here before. */
  async image(reference: Reference, manifestDigest: string): Promise<ImageRecord | undefined> {
    return await this.#images.get(imageKey(reference, manifestDigest))
  }

  images(): AsyncIterable<[string, ImageRecord]> {
    return this.#images.entries()
  }

  /** Forget images and names that nobody asked for in a long time. */
  async prune(): Promise<void> {
    const oldest = this.#clock() - this.#imageMemoryMs
    for await (const [key, image] of this.#images.entries()) if (image.lastUse < oldest) await this.#images.delete(key)
    for await (const [key, tag] of this.#tags.entries()) {
      const reference = parseReference(key.split(' ', 1)[0])
      if ((await this.#images.get(imageKey(reference, tag.manifestDigest))) === undefined) await this.#tags.delete(key)
    }
    for await (const [key, chain] of this.#chains.entries()) {
      const images = []
      for (const image of chain.images) if ((await this.#images.get(image)) !== undefined) images.push(image)
      if (images.length === 0) await this.#chains.delete(key)
      else if (images.length < chain.images.length) await this.#chains.put(key, { ...chain, images })
    }
    await this.access.prune(oldest)
  }

  /** One question to the registry: HEAD if the name is known here, all else if that is not enough. */
  async #ask(reference: Reference, name: string, platform: string, access: RegistryAccess, tag: TagRecord | undefined, known: ImageRecord | undefined): Promise<ImageRecord> {
    if (tag !== undefined && known !== undefined) {
      try {
        const head = await access.client.headManifest(reference, { signal: AbortSignal.timeout(this.#revalidateMs) })
        if (head?.digest === tag.top) {
          await this.#tags.put(`${name} ${platform}`, { ...tag, checked: this.#clock() })
          await this.access.seen(known, access.who)
          return known
        }
      } catch (error) {
        if (hasCode(error, 'UNAUTHORIZED', 'FORBIDDEN')) {
          if (await this.access.refused(known, access.who)) return known
          throw error
        }
        this.#logger.warn({ reference: name, err: error }, 'the registry cannot say what the reference means now; what it meant before is used')
        if (await this.access.lastKnown(known, access.who)) return known
        throw mayNotRead(name, error)
      }
    }
    const resolved = await access.client.resolve(reference, { platform: parsePlatform(platform) })
    const { layers } = resolved.manifest
    const { diffIds } = resolved.config
    if (layers.length !== diffIds.length) throw new SkimmerError('INVALID_DATA', `${name}: the manifest has ${layers.length} layers but the config ${diffIds.length} diff_ids`)
    const odd = [resolved.manifestDigest, resolved.configDigest, ...layers.map(layer => layer.digest), ...diffIds].find(digest => !digestSchema.safeParse(digest).success)
    if (odd !== undefined) throw new SkimmerError('UNSUPPORTED', `${name}: ${odd.slice(0, 20)}… is not a sha256 digest`)
    if (layers.length === 0 || layers.length > 512) throw new SkimmerError('UNSUPPORTED', `${name}: an image of ${layers.length} layers`)

    const key = imageKey(reference, resolved.manifestDigest)
    const chains = chainIds(diffIds)
    const now = this.#clock()
    const before = await this.#images.get(key)
    const image: ImageRecord = {
      manifestDigest: resolved.manifestDigest, registry: reference.registry, repository: reference.repository, platform, configDigest: resolved.configDigest,
      layers: layers.map(({ digest, size, mediaType }, at) => ({ digest, size, mediaType, diffId: diffIds[at] })), chainId: chains.at(-1)!,
      references: before?.references ?? [], firstSeen: before?.firstSeen ?? now, lastUse: now,
    }
    await this.#images.put(key, image)
    for (const [at, chain] of chains.entries()) {
      await this.#chains.update(chain, known => known?.images.at(-1) === key ? undefined : { images: [...(known?.images ?? []).filter(other => other !== key), key].slice(-MAX_CHAIN_IMAGES), length: at + 1 })
    }
    await this.#tags.put(`${name} ${platform}`, { top: resolved.indexDigest ?? resolved.manifestDigest, manifestDigest: resolved.manifestDigest, checked: now })
    await this.access.seen(image, access.who)
    return image
  }

  async #used(image: ImageRecord, name?: string): Promise<ImageRecord> {
    const now = this.#clock()
    const named = name === undefined || image.references.at(-1) === name
    if (named && now - image.lastUse < TOUCH_MS) return image
    const references = named ? image.references : [...image.references.filter(other => other !== name), name].slice(-MAX_REFERENCES)
    const used = { ...image, references, lastUse: now }
    await this.#images.put(imageKey(image, image.manifestDigest), used)
    return used
  }
}

const imageKey = (repository: { registry: string; repository: string }, manifestDigest: string): string => `${repository.registry}/${repository.repository}@${manifestDigest}`
