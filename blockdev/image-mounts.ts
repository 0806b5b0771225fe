// Mounts composed images, counts who uses them, and takes them down again; what was mounted before a restart is adopted.
import fs from 'node:fs'
import path from 'node:path'
import type { Logger } from 'pino'
import type { ImageTree } from '../image/tree.ts'
import { SkimmerError } from '../oci/errors.ts'
import { tryErofs } from './capabilities.ts'
import { endFuseNative, mountByFuseNative } from './fuse-native-driver.ts'
import { fuseNativePid } from './fuse-native-source.ts'
import { attachLoop, detachLoop, loopsUnder } from './loop-device.ts'
import { mountsUnder, mountTable } from './mount-table.ts'
import type { MountEntry } from './mount-table.ts'
import { mountReadOnly, unmount } from './mount.ts'
import { MountUsers } from './mount-users.ts'

/** How an image is mounted: EROFS over files, EROFS over a loop device, our FUSE file system as it is, or the fuse-native package. */
export type MountMode = 'file' | 'loop' | 'fuse' | 'fuse-native'

export interface MountableLayer {
  readonly diffId: string
  readonly rawLength: number
  readonly uniaddr: number
  /**
   * A plain file with the layer's whole, proved stream. An image all of whose layers have one is mounted over these files: its reads then need
   * neither FUSE nor daemon. The file may be unlinked while it is mounted.
   */
  readonly localPath?: string
}

export interface MountableImage {
  /** Hex. Its disk and layers (and in mode `fuse` its tree) must be published on the FUSE channel. */
  readonly imageId: string
  readonly metadataPath: string
  /** Bottom first; the order of the device table. */
  readonly layers: readonly MountableLayer[]
  /** Mode `fuse-native` asks for the merged tree. */
  readonly tree?: () => Promise<ImageTree>
}

export interface ImageMountsOptions {
  /** Where mount points go: not on our FUSE mount, gone after a reboot (/run/skimmer/images). Made with mode 0700. */
  readonly directory: string
  /** Where the FUSE channel is mounted, and its connection (Negotiated.connection). */
  readonly fuseMountPoint: string
  readonly connection: string
  /** `auto` (default): the first that works of file, loop, fuse. `fuse-native` only when asked for. */
  readonly mode?: MountMode | 'auto'
  /** Loop devices read past the page cache of the file below. Default true. */
  readonly directIo?: boolean
  /** Bound of every mount and unmount; default 30,000 ms. */
  readonly timeoutMs?: number
}

export class ImageMounts {
  readonly mode: MountMode
  readonly #options: Required<ImageMountsOptions>
  readonly #logger: Logger
  readonly #users: MountUsers
  /** One thing at a time an image. */
  readonly #turns = new Map<string, Promise<unknown>>()

  private constructor(mode: MountMode, users: MountUsers, options: Required<ImageMountsOptions>, logger: Logger) {
    this.mode = mode
    this.#users = users
    this.#options = options
    this.#logger = logger
  }

  /** Tries what works here and adopts what is mounted. UNSUPPORTED when the mode asked for does not work. */
  static async open(components: { logger: Logger }, given: ImageMountsOptions): Promise<ImageMounts> {
    fs.mkdirSync(given.directory, { recursive: true, mode: 0o700 })
    const options: Required<ImageMountsOptions> = { mode: 'auto', directIo: true, timeoutMs: 30_000, ...given, directory: fs.realpathSync(given.directory) }
    const mode = await chooseMode(options.mode, options.directory, components.logger)
    const users = new MountUsers(path.join(options.directory, 'users.json'), options.connection)
    const mounts = new ImageMounts(mode, users, options, components.logger)
    await mounts.#adopt()
    return mounts
  }

  /**
   * Where the image's root directory is, mounted on first use; the same user twice counts once. UNSUPPORTED when the kernel refuses,
   * TIMEOUT when it does not answer. The path is stable: the same image has the same mount point in every mode but `fuse`.
   */
  async acquire(image: MountableImage, user: string): Promise<string> {
    checkImageId(image.imageId)
    return this.#inTurn(image.imageId, async () => {
      const mountPoint = this.mountPoint(image.imageId)
      if (this.mode !== 'fuse' && !isMounted(mountPoint)) await this.#mount(image, mountPoint)
      this.#users.add(image.imageId, user)
      return mountPoint
    })
  }

  /** Ends one use; the last takes the mount down. Unknown images and users are fine: releasing twice does nothing. */
  async release(imageId: string, user: string): Promise<void> {
    checkImageId(imageId)
    return this.#inTurn(imageId, async () => {
      if (!this.#users.remove(imageId, user) && this.#users.of(imageId).length === 0 && !isMounted(this.mountPoint(imageId))) return
      if (this.#users.of(imageId).length === 0) await this.#takeDown(imageId)
    })
  }

  users(imageId: string): string[] {
    return this.#users.of(imageId)
  }

  /** Images that have users, those from before a restart included: their disk and layers must be published. */
  inUse(): string[] {
    return this.#users.images()
  }

  mountPoint(imageId: string): string {
    return this.mode === 'fuse' ? path.join(this.#options.fuseMountPoint, 'images', imageId) : path.join(this.#options.directory, imageId)
  }

  /** Takes down everything, used or not: for a node that stops for good. Containers that still run keep their overlay's own hold on it. */
  async takeDownAll(): Promise<void> {
    const mounted = this.#mounted().map((entry) => path.basename(entry.mountPoint))
    for (const imageId of new Set([...mounted, ...this.#users.images()])) {
      await this.#inTurn(imageId, async () => {
        await this.#takeDown(imageId)
        this.#users.forget(imageId)
      })
    }
    fs.rmSync(path.join(this.#options.directory, 'users.json'), { force: true })
  }

  async #mount(image: MountableImage, mountPoint: string): Promise<void> {
    const { fuseMountPoint, timeoutMs, directIo } = this.#options
    fs.mkdirSync(mountPoint, { recursive: true })
    const local = localPaths(image)
    if (local !== undefined && this.mode === 'loop') {
      await this.#mountOverLoops(image.metadataPath, local, mountPoint)
    } else if (this.mode === 'file') {
      const paths = local ?? image.layers.map(({ diffId }) => path.join(fuseMountPoint, 'layers', diffId.replace(/^sha256:/, '')))
      await mountReadOnly('erofs', image.metadataPath, mountPoint, paths.map((file) => ['device', file] as const), timeoutMs)
    } else if (this.mode === 'fuse-native') {
      if (image.tree === undefined) throw new SkimmerError('INVALID_ARGUMENT', `image ${image.imageId}: mode fuse-native needs the image's tree`)
      const treeFile = path.join(this.#options.directory, `${image.imageId}.tree`)
      await mountByFuseNative({ tree: await image.tree(), mountPoint, treeFile, layersDirectory: path.join(fuseMountPoint, 'layers'), timeoutMs })
    } else {
      const device = await attachLoop(path.join(fuseMountPoint, 'disks', image.imageId), { directIo, timeoutMs })
      try {
        await mountReadOnly('erofs', device, mountPoint, [], timeoutMs)
      } finally {
        // Mounted or not: from here on the device lives as long as someone has it open.
        await detachLoop(device, timeoutMs)
      }
    }
    this.#logger.info({ image: image.imageId, mode: this.mode, mountPoint, local: local !== undefined }, 'image mounted')
  }

  /** One loop device for the metadata and one for each layer's own file, instead of one over the virtual disk. */
  async #mountOverLoops(metadataPath: string, layers: readonly string[], mountPoint: string): Promise<void> {
    const { timeoutMs, directIo } = this.#options
    const attached: string[] = []
    try {
      for (const file of [metadataPath, ...layers]) attached.push(await attachLoop(file, { directIo, timeoutMs }))
      const [metadata, ...devices] = attached
      await mountReadOnly('erofs', metadata, mountPoint, devices.map((device) => ['device', device] as const), timeoutMs)
    } finally {
      await Promise.allSettled(attached.map((device) => detachLoop(device, timeoutMs)))
    }
  }

  async #takeDown(imageId: string): Promise<void> {
    const mountPoint = path.join(this.#options.directory, imageId)
    const mounted = mountTable().findLast((entry) => entry.mountPoint === mountPoint)
    if (mounted === undefined) return removeDirectory(mountPoint)
    const { timeoutMs } = this.#options
    if ((await unmount(mountPoint, { timeoutMs })) === 'busy') {
      this.#logger.warn({ image: imageId, mountPoint }, 'a process still has files of this image open; it is detached and goes with the last of them')
      await unmount(mountPoint, { lazy: true, timeoutMs })
    }
    const pid = fuseNativePid(mounted.source)
    if (pid !== undefined) await endFuseNative(pid, timeoutMs)
    removeDirectory(mountPoint)
    this.#logger.info({ image: imageId }, 'image unmounted')
  }

  #mounted(): MountEntry[] {
    return mountsUnder(this.#options.directory).filter((entry) => path.dirname(entry.mountPoint) === this.#options.directory && IMAGE_ID.test(path.basename(entry.mountPoint)))
  }

  /** Mounts over the connection we serve are kept with their users; those of a dead one, or that nobody uses, come down. */
  async #adopt(): Promise<void> {
    const { timeoutMs, fuseMountPoint, directory } = this.#options
    const alive = this.#users.sameConnection
    if (!alive) this.#users.clear()
    for (const entry of this.#mounted().toReversed()) {
      const imageId = path.basename(entry.mountPoint)
      if (alive && this.#users.of(imageId).length > 0) continue
      this.#logger.warn({ image: imageId, mountPoint: entry.mountPoint }, alive ? 'taking down a mount that nobody uses' : 'taking down a mount whose FUSE connection is gone')
      await unmount(entry.mountPoint, { lazy: true, timeoutMs })
      const pid = fuseNativePid(entry.source)
      if (pid !== undefined) await endFuseNative(pid, timeoutMs)
      removeDirectory(entry.mountPoint)
    }
    // Attached but never mounted, because a daemon died in between. A detach lets those that are mounted go on.
    for (const loop of await loopsUnder(path.join(fuseMountPoint, 'disks'), timeoutMs)) await detachLoop(loop.device, timeoutMs)
    for (const name of fs.readdirSync(directory)) {
      const mountPoint = path.join(directory, name)
      if (IMAGE_ID.test(name) && !isMounted(mountPoint)) removeDirectory(mountPoint)
    }
  }

  #inTurn<T>(imageId: string, work: () => Promise<T>): Promise<T> {
    const turn = (this.#turns.get(imageId) ?? Promise.resolve()).then(work, work)
    const settled = turn.then(() => undefined, () => undefined).finally(() => {
      if (this.#turns.get(imageId) === settled) this.#turns.delete(imageId)
    })
    this.#turns.set(imageId, settled)
    return turn
  }
}

/** Of all layers, or undefined: EROFS reads whole 512-byte blocks, so a file with an odd end would fail at it. */
function localPaths(image: MountableImage): string[] | undefined {
  const paths = image.layers.flatMap(({ localPath, rawLength }) => (localPath !== undefined && rawLength % 512 === 0 && fs.existsSync(localPath) ? [localPath] : []))
  return paths.length === image.layers.length ? paths : undefined
}

const IMAGE_ID = /^[0-9a-f]{64}$/

function checkImageId(imageId: string): void {
  if (!IMAGE_ID.test(imageId)) throw new SkimmerError('INVALID_ARGUMENT', `image id ${imageId}: 64 hex digits are needed`)
}

async function chooseMode(asked: MountMode | 'auto', directory: string, logger: Logger): Promise<MountMode> {
  if (asked === 'fuse' || asked === 'fuse-native') return asked
  const order = asked === 'auto' ? (['file', 'loop'] as const) : [asked]
  const reasons: string[] = []
  for (const mode of order) {
    const why = await tryErofs(mode, directory)
    if (why === '') return mode
    reasons.push(why)
    logger.info({ mode, reason: why }, 'this way of mounting does not work here')
  }
  if (asked === 'auto') return 'fuse'
  throw new SkimmerError('UNSUPPORTED', `images cannot be mounted by ${asked}: ${reasons.join('; ')}. Choose mode auto`)
}

const isMounted = (mountPoint: string): boolean => mountTable().some((entry) => entry.mountPoint === mountPoint)

/** Never into something mounted: rmdir refuses. */
function removeDirectory(directory: string): void {
  try {
    fs.rmdirSync(directory)
  } catch (error) {
    if (!['ENOENT', 'EBUSY', 'ENOTEMPTY'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error
  }
}
