// From layers to a mounted image: composes their trees, writes the EROFS metadata, publishes streams and disk, and counts who uses it.
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { zstdDecompress } from 'node:zlib'
import type { Logger } from 'pino'
import { z } from 'zod'
import type { FuseChannel } from '../../blockdev/fuse-channel.ts'
import type { ImageMounts } from '../../blockdev/image-mounts.ts'
import { rawLength } from '../../image/block-table.ts'
import { composeImage } from '../../image/composer.ts'
import { chainIds } from '../../oci/chain-id.ts'
import type { ImageTree } from '../../image/tree.ts'
import { SkimmerError } from '../../oci/errors.ts'
import type { ComposedImage } from '../../peer/control.ts'
import { KeyedLock } from '../../snapshotter/keyed-lock.ts'
import type { ComposerThread } from '../../image/composer-thread.ts'
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
export type ImageDisk = z.infer<typeof diskSchema>

export const imageIdOf = (diffIds: readonly string[]): string => chainIds(diffIds).at(-1)!.slice('sha256:'.length)
const hexOf = (diffId: string): string => diffId.slice('sha256:'.length)

export class ImageDisks {
  readonly #library: LayerLibrary
  readonly #channel: FuseChannel
  readonly #mounts: ImageMounts
  readonly #composer: ComposerThread
  readonly #fetchObject: ObjectSource
  readonly #logger: Logger
  readonly #directory: string
  readonly #composing = new Map<string, Promise<ImageDisk>>()
  /** Images whose layers and disk are published: image id to disk. */
  readonly #published = new Map<string, ImageDisk>()
  readonly #layerUses = new Map<string, Set<string>>()
  /** A container starts while the last one of its image ends: mount and unmount of one image must not meet. */
  readonly #turns = new KeyedLock()
  /** The same for what is published: images share layers. */
  readonly #publishing = new KeyedLock()

  constructor(components: { library: LayerLibrary; channel: FuseChannel; mounts: ImageMounts; composer: ComposerThread; fetchObject: ObjectSource; logger: Logger }, options: { directory: string }) {
    this.#library = components.library
    this.#channel = components.channel
    this.#mounts = components.mounts
    this.#composer = components.composer
    this.#fetchObject = components.fetchObject
    this.#logger = components.logger
    this.#directory = options.directory
    mkdirSync(options.directory, { recursive: true })
  }

  metadataPath(imageId: string): string {
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
    const known = this.#readDisk(imageId)
    if (known !== undefined) return known
    const begun = performance.now()
    const indexes = await Promise.all(diffIds.map((diffId) => this.#library.indexBytes(diffId)))
    const { written, inodes } = await this.#composer.compose(indexes, this.metadataPath(imageId))
    const disk: ImageDisk = { version: COMPOSER_VERSION, imageId, metadataLength: written.length, proved: true, layers: written.layers.map(({ diffId, rawLength, uniaddr }) => ({ diffId, rawLength, uniaddr })) }
    this.#describe(disk)
    this.#logger.info({ image: imageId, layers: diffIds.length, inodes, metadataBytes: written.length, ms: Math.round(performance.now() - begun) }, 'image composed')
    return disk
  }

  /**
   * Takes the metadata that a supernode composed, so that a start does not wait for composing; prove() makes sure of it later. Composes
   * here when it cannot be had or does not fit what the layers' indexes say.
   */
  adopt(diffIds: readonly string[], composed: ComposedImage): Promise<ImageDisk> {
    const imageId = imageIdOf(diffIds)
    let adopting = this.#composing.get(imageId)
    if (adopting === undefined) {
      adopting = this.#adopt(imageId, diffIds, composed).catch((error: unknown) => {
        this.#logger.warn({ image: imageId, reason: (error as Error).message }, 'what a supernode composed cannot be used; composing here')
        return this.#compose(imageId, diffIds)
      })
      this.#composing.set(imageId, adopting)
      adopting.catch(() => this.#composing.delete(imageId))
    }
    return adopting
  }

  async #adopt(imageId: string, diffIds: readonly string[], composed: ComposedImage): Promise<ImageDisk> {
    const known = this.#readDisk(imageId)
    if (known !== undefined) return known
    let end = composed.length
    const fits = composed.layers.length === diffIds.length && composed.layers.every(({ diffId, rawLength: length, uniaddr }, position) => {
      const layer = this.#library.get(diffIds[position])
      if (diffId !== diffIds[position] || layer === undefined || rawLength(layer.resource.table) !== length || uniaddr < end || uniaddr % 4096 !== 0) return false
      end = uniaddr + length
      return true
    })
    if (!fits) throw new SkimmerError('INVALID_DATA', `composed image ${composed.object} names other layers than the image has`)
    const metadata = await decompress(await this.#fetchObject(composed.object), { maxOutputLength: composed.length, chunkSize: composed.length })
    if (metadata.length !== composed.length) throw new SkimmerError('INVALID_DATA', `composed image ${composed.object} has ${metadata.length} bytes, not ${composed.length}`)
    const path = this.metadataPath(imageId)
    writeFileSync(`${path}.part`, metadata)
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
    const disk = this.#readDisk(imageId)
    if (disk === undefined || disk.proved) return true
    const path = this.metadataPath(imageId)
    const own = `${path}.own`
    const indexes = await Promise.all(disk.layers.map(({ diffId }) => this.#library.indexBytes(diffId)))
    const { written } = await this.#composer.compose(indexes, own)
    const honest = readFileSync(own).equals(readFileSync(path))
    renameSync(own, path)
    const proved: ImageDisk = { version: COMPOSER_VERSION, imageId, metadataLength: written.length, proved: true, layers: [...written.layers] }
    this.#describe(proved)
    this.#composing.set(imageId, Promise.resolve(proved))
    if (!honest) this.#logger.error({ image: imageId }, 'a supernode composed this image wrongly: containers that run on it may see a wrong tree; start them again, and look at that supernode')
    return honest
  }

  #describe(disk: ImageDisk): void {
    const description = join(this.#directory, `${disk.imageId}.json`)
    writeFileSync(`${description}.part`, JSON.stringify(disk))
    renameSync(`${description}.part`, description)
  }

  #readDisk(imageId: string): ImageDisk | undefined {
    const description = join(this.#directory, `${imageId}.json`)
    if (!existsSync(description) || !existsSync(this.metadataPath(imageId))) return undefined
    try {
      const disk = diskSchema.parse(JSON.parse(readFileSync(description, 'utf8')))
      return disk.imageId === imageId ? disk : undefined
    } catch {
      return undefined // of another version, or torn by a power loss: made again
    }
  }

  /** Composes, publishes, and mounts the image for `user`; resolves with the mount point. Idempotent for a user. */
  async mount(diffIds: readonly string[], user: string): Promise<string> {
    const disk = await this.compose(diffIds)
    const { imageId, layers } = disk
    return await this.#turns.run(imageId, async () => {
      await this.#publish(disk)
      try {
        return await this.#mounts.acquire({ imageId, metadataPath: this.metadataPath(imageId), layers, tree: () => this.#tree(disk) }, user)
      } catch (error) {
        if (this.#mounts.users(imageId).length === 0) await this.#withdraw(imageId)
        throw error
      }
    })
  }

  /** Ends one use; the last one takes the mount down and withdraws what is published. */
  async unmount(diffIds: readonly string[], user: string): Promise<void> {
    const imageId = imageIdOf(diffIds)
    await this.#turns.run(imageId, async () => {
      await this.#mounts.release(imageId, user)
      if (this.#mounts.users(imageId).length === 0) await this.#withdraw(imageId)
    })
  }

  /** Publishes every image that the mounts say was in use before the restart. An image whose layers are gone is reported and left out. */
  async restore(): Promise<void> {
    for (const imageId of this.#mounts.inUse()) {
      const disk = this.#readDisk(imageId)
      try {
        if (disk === undefined) throw new SkimmerError('NOT_FOUND', `the composed image ${imageId} is not in ${this.#directory}`)
        await this.#publish(disk)
      } catch (error) {
        this.#logger.error({ image: imageId, err: error }, 'an image that was mounted before the restart cannot be served: its reads will fail')
      }
    }
  }

  #publish(disk: ImageDisk): Promise<void> {
    return this.#publishing.run('', () => this.#publishNow(disk))
  }

  async #publishNow(disk: ImageDisk): Promise<void> {
    if (this.#published.has(disk.imageId)) return
    const layers = disk.layers.map(({ diffId }) => {
      const known = this.#library.get(diffId)
      if (known === undefined) throw new SkimmerError('NOT_FOUND', `layer ${diffId} of image ${disk.imageId} is not known on this node any more; pull the image again`)
      return known
    })
    // The tree is needed only where images are served as a FUSE filesystem; it is composed from the same indexes, so node ids are the same again.
    const tree = this.#mounts.mode === 'fuse' ? await this.#tree(disk) : undefined
    this.#published.set(disk.imageId, disk)
    for (const { record, resource } of layers) {
      const uses = this.#layerUses.get(record.diffId) ?? new Set()
      if (uses.size === 0) this.#channel.publishLayer(hexOf(record.diffId), resource.shared())
      this.#layerUses.set(record.diffId, uses.add(disk.imageId))
      resource.pin(`image:${disk.imageId}`, { lasting: true })
    }
    const last = disk.layers.at(-1)!
    this.#channel.publishDisk(disk.imageId, {
      metadataPath: this.metadataPath(disk.imageId),
      segments: disk.layers.map(({ diffId, rawLength, uniaddr }) => ({ start: uniaddr, length: rawLength, layer: hexOf(diffId) })),
      length: Math.ceil((last.uniaddr + last.rawLength) / 4096) * 4096,
    })
    if (tree !== undefined) this.#channel.publishTree(disk.imageId, tree)
  }

  async #tree(disk: ImageDisk): Promise<ImageTree> {
    return composeImage(await Promise.all(disk.layers.map(({ diffId }) => this.#library.index(diffId))))
  }

  #withdraw(imageId: string): Promise<void> {
    return this.#publishing.run('', () => this.#withdrawNow(imageId))
  }

  async #withdrawNow(imageId: string): Promise<void> {
    const disk = this.#published.get(imageId)
    if (disk === undefined) return
    this.#published.delete(imageId)
    await this.#channel.withdraw(`disks/${imageId}`)
    await this.#channel.withdraw(`images/${imageId}`)
    for (const { diffId } of disk.layers) {
      const uses = this.#layerUses.get(diffId)
      uses?.delete(imageId)
      if (uses?.size === 0) {
        this.#layerUses.delete(diffId)
        await this.#channel.withdraw(`layers/${hexOf(diffId)}`)
      }
      this.#library.get(diffId)?.resource.unpin(`image:${imageId}`)
    }
  }

  /** Images that are published now, and their layers. */
  published(): ImageDisk[] {
    return [...this.#published.values()]
  }

  /** Deletes composed images that name the layer and are not in use. */
  forgetLayer(diffId: string): void {
    for (const name of readdirSync(this.#directory)) {
      const imageId = /^([0-9a-f]{64})\.json$/.exec(name)?.[1]
      if (imageId === undefined || this.#published.has(imageId)) continue
      if (this.#readDisk(imageId)?.layers.some((layer) => layer.diffId === diffId) !== true) continue
      this.#composing.delete(imageId)
      rmSync(join(this.#directory, name), { force: true })
      rmSync(this.metadataPath(imageId), { force: true })
    }
  }
}
