// From composed images to mounted ones: publishes streams and disk on the FUSE channel, mounts, and counts who uses what.
import type { Logger } from 'pino'
import type { FuseChannel } from '../../blockdev/fuse-channel.ts'
import type { ImageMounts, MountableLayer } from '../../blockdev/image-mounts.ts'
import { composeImage } from '../../image/composer.ts'
import type { ImageTree } from '../../image/tree.ts'
import { SkimmerError } from '../../oci/errors.ts'
import { KeyedLock } from '../../snapshotter/keyed-lock.ts'
import { type ImageDisk, type ImageMetadata, imageIdOf } from './image-metadata.ts'
import type { LayerLibrary } from './layer-library.ts'

const hexOf = (diffId: string): string => diffId.slice('sha256:'.length)

export class ImageDisks {
  readonly #library: LayerLibrary
  readonly #metadata: ImageMetadata
  readonly #channel: FuseChannel
  readonly #mounts: ImageMounts
  readonly #logger: Logger
  /** Images whose layers and disk are published: image id to disk. */
  readonly #published = new Map<string, ImageDisk>()
  readonly #layerUses = new Map<string, Set<string>>()
  /** A container starts while the last one of its image ends: mount and unmount of one image must not meet. */
  readonly #turns = new KeyedLock()
  /** The same for what is published: images share layers. */
  readonly #publishing = new KeyedLock()

  constructor(components: { library: LayerLibrary; metadata: ImageMetadata; channel: FuseChannel; mounts: ImageMounts; logger: Logger }) {
    this.#library = components.library
    this.#metadata = components.metadata
    this.#channel = components.channel
    this.#mounts = components.mounts
    this.#logger = components.logger
  }

  /** Composes, publishes, and mounts the image for `user`; resolves with the mount point. Idempotent for a user. */
  async mount(diffIds: readonly string[], user: string): Promise<string> {
    const disk = await this.#metadata.compose(diffIds)
    const { imageId } = disk
    return await this.#turns.run(imageId, async () => {
      if (this.#metadata.isWrong(imageId, this.#mounts.users(imageId).length === 0)) {
        throw new SkimmerError('FORBIDDEN', `image ${imageId} is mounted with a wrong tree that a supernode composed: end the containers that run on it first`)
      }
      try {
        await this.#publish(disk)
        return await this.#mounts.acquire({ imageId, metadataPath: this.#metadata.path(imageId), layers: this.#mountable(disk), tree: () => this.#tree(disk) }, user)
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
      const disk = this.#metadata.read(imageId)
      try {
        if (disk === undefined) throw new SkimmerError('NOT_FOUND', `the composed image ${imageId} is not here any more`)
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
    for (const { record, resource } of layers) {
      const uses = this.#layerUses.get(record.diffId) ?? new Set()
      if (uses.size === 0) this.#channel.publishLayer(hexOf(record.diffId), resource.shared())
      this.#layerUses.set(record.diffId, uses.add(disk.imageId))
      resource.pin(`image:${disk.imageId}`, { lasting: true })
    }
    const last = disk.layers.at(-1)!
    this.#channel.publishDisk(disk.imageId, {
      metadataPath: this.#metadata.path(disk.imageId),
      segments: disk.layers.map(({ diffId, rawLength, uniaddr }) => ({ start: uniaddr, length: rawLength, layer: hexOf(diffId) })),
      length: Math.ceil((last.uniaddr + last.rawLength) / 4096) * 4096,
    })
    if (tree !== undefined) this.#channel.publishTree(disk.imageId, tree)
    this.#published.set(disk.imageId, disk)
  }

  /** Layers that are proved and unpacked here are mounted as the plain files they are. */
  #mountable(disk: ImageDisk): MountableLayer[] {
    return disk.layers.map((layer) => ({ ...layer, localPath: this.#library.get(layer.diffId)?.resource.rawPath }))
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
    this.#metadata.forgetLayer(diffId, (imageId) => this.#published.has(imageId))
  }
}
