// The EROFS metadata of composed images on this disk: made here or taken from a supernode, proved, found again, deleted.
import { existsSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { zstdDecompress } from 'node:zlib'
import type { Logger } from 'pino'
import { z } from 'zod'
import { rawLength } from '../../image/block-table.ts'
import type { ComposerThread } from '../../image/composer-thread.ts'
import { chainIds } from '../../oci/chain-id.ts'
import { SkimmerError } from '../../oci/errors.ts'
import type { ComposedImage } from '../../peer/control.ts'
import type { LayerLibrary, ObjectSource } from './layer-library.ts'

/** Change it when composer or EROFS writer change what they make: images composed by another version are made again. */
const COMPOSER_VERSION = 1
const decompress = promisify(zstdDecompress)

const diskSchema = z.object({
  version: z.literal(COMPOSER_VERSION),
  imageId: z.string().regex(/^[0-9a-f]{64}$/),
  metadataLength: z.number().int().min(1),
  /** False while it is what a supernode composed and this node has not composed it itself. */
  proved: z.boolean(),
  layers: z.array(z.object({ diffId: z.string(), rawLength: z.number().int().min(0), uniaddr: z.number().int().min(0) })).min(1),
})
/** A composed image: its metadata file, and where its layers lie behind it on the flat disk. */
export type ImageDisk = z.infer<typeof diskSchema>

export const imageIdOf = (diffIds: readonly string[]): string => chainIds(diffIds).at(-1)!.slice('sha256:'.length)

export class ImageMetadata {
  readonly #library: LayerLibrary
  readonly #composer: ComposerThread
  readonly #fetchObject: ObjectSource
  readonly #logger: Logger
  readonly #directory: string
  readonly #composing = new Map<string, Promise<ImageDisk>>()
  /** Images whose adopted tree was a lie: what is mounted of them must go before anyone new may use them. */
  readonly #wrong = new Set<string>()

  constructor(components: { library: LayerLibrary; composer: ComposerThread; fetchObject: ObjectSource; logger: Logger }, options: { directory: string }) {
    this.#library = components.library
    this.#composer = components.composer
    this.#fetchObject = components.fetchObject
    this.#logger = components.logger
    this.#directory = options.directory
    mkdirSync(options.directory, { recursive: true })
  }

  path(imageId: string): string {
    return join(this.#directory, `${imageId}.erofs`)
  }

  /** Composes the image of these layers (bottom first, all known to the library) unless that was done before. */
  compose(diffIds: readonly string[]): Promise<ImageDisk> {
    const imageId = imageIdOf(diffIds)
    let composing = this.#composing.get(imageId)
    if (composing === undefined) {
      composing = this.#compose(imageId, diffIds)
      this.#composing.set(imageId, composing)
      composing.catch(() => this.#composing.delete(imageId))
    }
    return composing
  }

  async #compose(imageId: string, diffIds: readonly string[]): Promise<ImageDisk> {
    const known = this.read(imageId)
    if (known !== undefined) return known
    const begun = performance.now()
    const indexes = await Promise.all(diffIds.map((diffId) => this.#library.indexBytes(diffId)))
    const { written, inodes } = await this.#composer.compose(indexes, this.path(imageId))
    const disk: ImageDisk = { version: COMPOSER_VERSION, imageId, metadataLength: written.length, proved: true, layers: written.layers.map(({ diffId, rawLength, uniaddr }) => ({ diffId, rawLength, uniaddr })) }
    this.#describe(disk)
    this.#logger.info({ image: imageId, layers: diffIds.length, inodes, metadataBytes: written.length, ms: Math.round(performance.now() - begun) }, 'image composed')
    return disk
  }

  /**
   * Takes the metadata that a supernode composed, so that a start does not wait for composing; prove() makes sure of it later. Composes
   * here when it cannot be had or does not fit what the layers' indexes say. It is fetched while `layersKnown` still waits for those.
   */
  adopt(diffIds: readonly string[], composed: ComposedImage, layersKnown: Promise<unknown>): Promise<ImageDisk> {
    const imageId = imageIdOf(diffIds)
    let adopting = this.#composing.get(imageId)
    if (adopting === undefined) {
      adopting = this.#adopt(imageId, diffIds, composed, layersKnown).catch(async (error: unknown) => {
        await layersKnown
        this.#logger.warn({ image: imageId, reason: (error as Error).message }, 'what a supernode composed cannot be used; composing here')
        return this.#compose(imageId, diffIds)
      })
      this.#composing.set(imageId, adopting)
      adopting.catch(() => this.#composing.delete(imageId))
    }
    return adopting
  }

  async #adopt(imageId: string, diffIds: readonly string[], composed: ComposedImage, layersKnown: Promise<unknown>): Promise<ImageDisk> {
    const known = this.read(imageId)
    if (known !== undefined) return known
    const [packed] = await Promise.all([this.#fetchObject(composed.object), layersKnown])
    let end = composed.length
    const fits = composed.layers.length === diffIds.length && composed.layers.every(({ diffId, rawLength: length, uniaddr }, position) => {
      const layer = this.#library.get(diffIds[position])
      if (diffId !== diffIds[position] || layer === undefined || rawLength(layer.resource.table) !== length || uniaddr < end || uniaddr % 4096 !== 0) return false
      end = uniaddr + length
      return true
    })
    if (!fits) throw new SkimmerError('INVALID_DATA', `composed image ${composed.object} names other layers than the image has`)
    const metadata = await decompress(packed, { maxOutputLength: composed.length, chunkSize: composed.length })
    if (metadata.length !== composed.length) throw new SkimmerError('INVALID_DATA', `composed image ${composed.object} has ${metadata.length} bytes, not ${composed.length}`)
    const path = this.path(imageId)
    writeFileSync(`${path}.part`, metadata, { flush: true })
    renameSync(`${path}.part`, path)
    const disk: ImageDisk = { version: COMPOSER_VERSION, imageId, metadataLength: composed.length, proved: false, layers: composed.layers }
    this.#describe(disk)
    return disk
  }

  /**
   * Composes an adopted image here and compares: the composer is deterministic, so an honest supernode's bytes are the same. Otherwise the own
   * one takes its place for later mounts, and the error says so. To be called when nobody waits for this machine. False when it was a lie.
   */
  async prove(imageId: string): Promise<boolean> {
    const disk = this.read(imageId)
    if (disk === undefined || disk.proved) return true
    const path = this.path(imageId)
    const own = `${path}.own`
    const indexes = await Promise.all(disk.layers.map(({ diffId }) => this.#library.indexBytes(diffId)))
    const { written } = await this.#composer.compose(indexes, own)
    const honest = readFileSync(own).equals(readFileSync(path))
    renameSync(own, path)
    const proved: ImageDisk = { version: COMPOSER_VERSION, imageId, metadataLength: written.length, proved: true, layers: [...written.layers] }
    this.#describe(proved)
    this.#composing.set(imageId, Promise.resolve(proved))
    if (!honest) this.#wrong.add(imageId)
    if (!honest) this.#logger.error({ image: imageId }, 'a supernode composed this image wrongly: containers that run on it may see a wrong tree; start them again, and look at that supernode')
    return honest
  }

  #describe(disk: ImageDisk): void {
    const description = join(this.#directory, `${disk.imageId}.json`)
    writeFileSync(`${description}.part`, JSON.stringify(disk), { flush: true })
    renameSync(`${description}.part`, description)
  }

  /** True while a wrong tree of this image may still be mounted; `gone` says that it is not. */
  isWrong(imageId: string, gone = false): boolean {
    if (gone) this.#wrong.delete(imageId)
    return this.#wrong.has(imageId)
  }

  /** What is known of a composed image; undefined when it is not here or unusable. */
  read(imageId: string): ImageDisk | undefined {
    const description = join(this.#directory, `${imageId}.json`)
    if (!existsSync(description) || !existsSync(this.path(imageId))) return undefined
    try {
      const disk = diskSchema.parse(JSON.parse(readFileSync(description, 'utf8')))
      return disk.imageId === imageId && statSync(this.path(imageId)).size === disk.metadataLength ? disk : undefined
    } catch {
      return undefined // of another version, or torn by a power loss: made again
    }
  }

  /** Deletes composed images that name the layer, except those for which `keep` says so. */
  forgetLayer(diffId: string, keep: (imageId: string) => boolean): void {
    for (const name of readdirSync(this.#directory)) {
      const imageId = /^([0-9a-f]{64})\.json$/.exec(name)?.[1]
      if (imageId === undefined || keep(imageId)) continue
      if (this.read(imageId)?.layers.some((layer) => layer.diffId === diffId) !== true) continue
      this.#composing.delete(imageId)
      rmSync(join(this.#directory, name), { force: true })
      rmSync(this.path(imageId), { force: true })
    }
  }
}
