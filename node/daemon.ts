// The node daemon: core, FUSE channel, image mounts, snapshotter and API in one process, started in order and stopped in reverse.
import { mkdirSync } from 'node:fs'
import { join, resolve } from 'node:path'
import type { Logger } from 'pino'
import type { Registry } from 'prom-client'
import { FuseChannel } from '../blockdev/fuse-channel.ts'
import { ImageMounts } from '../blockdev/image-mounts.ts'
import type { Inheritance } from '../blockdev/inheritance.ts'
import type { ReadFailure } from '../blockdev/parked-reads.ts'
import { SkimmerError } from '../oci/errors.ts'
import { Snapshotter } from '../snapshotter/service.ts'
import type { SnapshotterServer } from '../snapshotter/snapshotter-server.ts'
import type { RegistryProxy } from '../registry-proxy/registry-proxy.ts'
import { NodeApi, isMountUser } from './api/server.ts'
import { NodeCore } from './core.ts'
import type { NodeConfig } from './config/node-settings.ts'
import { ComposerThread } from '../image/composer-thread.ts'
import { ImageDisks } from './lazy/image-disks.ts'
import { ImageMetadata } from './lazy/image-metadata.ts'
import { HeldImages } from './lazy/held-images.ts'
import { NodeImages } from './lazy/node-images.ts'
import { StartWatch } from './lazy/start-watch.ts'
import { type RunningForwardProxy, startForwardProxy } from './node-forward-proxy.ts'
import { NodeFiles } from './node-files.ts'
import { startNodeProxy } from './node-proxy.ts'

/** Failed reads that `skimmer explain` still knows. */
const MAX_FAILURES = 100

export class NodeDaemon {
  readonly #core: NodeCore
  readonly #channel: FuseChannel
  readonly #mounts: ImageMounts
  readonly #snapshotter: Snapshotter
  readonly #files: NodeFiles
  readonly #api: NodeApi
  readonly #proxy: RegistryProxy | undefined
  readonly #forward: RunningForwardProxy | undefined
  readonly #logger: Logger

  private constructor(parts: { core: NodeCore; channel: FuseChannel; mounts: ImageMounts; snapshotter: Snapshotter; files: NodeFiles; api: NodeApi; proxy: RegistryProxy | undefined; forward: RunningForwardProxy | undefined; logger: Logger }) {
    this.#core = parts.core
    this.#channel = parts.channel
    this.#mounts = parts.mounts
    this.#snapshotter = parts.snapshotter
    this.#files = parts.files
    this.#api = parts.api
    this.#proxy = parts.proxy
    this.#forward = parts.forward
    this.#logger = parts.logger
  }

  /** Reads that waited through a restart are answered as soon as their layers are published; then containerd's calls, which wait at `server`. */
  static async start(config: NodeConfig, inherited: Inheritance, components: { server: SnapshotterServer; logger: Logger; metrics: Registry }): Promise<NodeDaemon> {
    const { server, logger, metrics } = components
    const run = resolve(config.run)
    mkdirSync(run, { recursive: true, mode: 0o755 })
    const composer = new ComposerThread()
    const core = await NodeCore.start(config, components)
    const failures: (ReadFailure & { at: number })[] = []
    let starts: StartWatch | undefined
    const channel = new FuseChannel(
      {
        source: {
          read: async (resourceId, ranges, { signal }) => {
            const resource = core.store.get(resourceId)
            if (resource === undefined) throw new SkimmerError('NOT_FOUND', `${resourceId} is not in the store any more`)
            const unsaved = await core.peer.fetcher.ensure(resource, ranges, { priority: 'demand', signal })
            // No room on the disk: held in memory for the threads that wait.
            for (const [block, packed] of unsaved ?? []) resource.holdBlock(block, packed)
          },
        },
        logger,
        metrics,
        onReadError: (failure) => {
          failures.push({ ...failure, at: Date.now() })
          if (failures.length > MAX_FAILURES) failures.shift()
        },
        onTouch: (resourceId, blocks) => starts?.touched(resourceId, blocks),
      },
      { ...inherited.fuse, threads: config['fuse.threads'], waitMs: config['demand.timeout'] + 5_000 },
    )
    await channel.start()
    const { negotiated, mountPoint } = inherited.fuse
    const mounts = await ImageMounts.open({ logger }, { directory: join(run, 'images'), fuseMountPoint: mountPoint, connection: negotiated.connection, mode: config['fuse.mode'] })
    const metadata = new ImageMetadata(
      { library: core.library, composer, fetchObject: (digest, signal) => core.peer.fetcher.object(digest, { signal }), logger },
      { directory: join(resolve(config.root), 'images') },
    )
    const disks = new ImageDisks({ library: core.library, metadata, channel, mounts, logger })
    await disks.restore()
    channel.restored()
    inherited.link.serving()

    starts = new StartWatch(
      {
        library: core.library, fetcher: core.peer.fetcher, prefetcher: core.peer.prefetcher, channel, logger,
        sendTrace: async (image, trace) => void (await core.peer.supernodes.call('trace.put', { image, trace }, { key: image })),
        onWhole: (image) => metadata.prove(image).then(() => {}, (error: unknown) => logger.warn({ image, err: error }, 'an image composed by a supernode could not be proved')),
      },
      { traceWindowMs: config['trace.window'], prefetch: config['prefetch.enabled'] },
    )
    for (const { imageId, layers } of disks.published()) starts.started(imageId, layers.map((layer) => layer.diffId))
    const images = new NodeImages({ sources: core.sources, library: core.library, metadata, disks, starts, logger })
    const snapshotter = new Snapshotter({ db: core.store.sublevel('snapshots'), lazy: images, logger, metrics }, { root: join(resolve(config.root), 'snapshots') })
    const held = new HeldImages({ images, library: core.library, prefetcher: core.peer.prefetcher, logger })
    core.peer.on('hold', (event) => held.hold(event.reference, event.manifestDigest).catch((error: unknown) => logger.warn({ reference: event.reference, err: error }, 'an image that a supernode wants held here cannot be')))
    core.peer.on('quarantine', (resource, reason) => logger.error({ resource, reason }, 'a layer is not what its image promises: no new container may use it'))
    const files = new NodeFiles(config, { core, logger })
    const api = new NodeApi({ core, channel, mounts, disks, images, held, files: files.api, snapshotter, failures, logger, metrics }, { metricsListen: config['metrics.listen'] })

    await snapshotter.start(server, () => dropOrphans(snapshotter, mounts, disks, images, core))
    const apiFd = inherited.sockets.get(`unix:${join(run, 'api.sock')}`)
    await api.start(apiFd === undefined ? { path: join(run, 'api.sock') } : { fd: apiFd })
    const proxy = await startNodeProxy(config, { core, logger, metrics })
    const forward = await startForwardProxy(config, { downloads: core.downloads, registry: proxy, logger, metrics })
    logger.info({ peerId: core.peer.id, addrs: core.peer.addresses, mode: mounts.mode, run }, 'node started')
    return new NodeDaemon({ core, channel, mounts, snapshotter, files, api, proxy, forward, logger })
  }

  /** Stops answering containerd and peers, takes image mounts down, and lets the supervisor take the FUSE mount down. */
  async stop(): Promise<void> {
    this.#logger.info('stopping')
    await this.#forward?.stop()
    await this.#proxy?.stop()
    await this.#api.stop()
    await this.#files.stop()
    await this.#snapshotter.stop()
    await this.#mounts.takeDownAll().catch((error: unknown) => this.#logger.error({ err: error }, 'not every image could be unmounted'))
    await this.#channel.stop()
    await this.#core.stop()
  }

  /** Leaves everything mounted for the next daemon. */
  async handOver(): Promise<void> {
    this.#logger.info('handing over')
    await this.#forward?.stop()
    await this.#proxy?.stop()
    await this.#api.stop()
    await this.#files.stop()
    await this.#snapshotter.stop()
    await this.#channel.stop({ handOver: true })
    await this.#core.stop()
  }
}

/** What a crash left behind: uses of mounts whose snapshot was never recorded, and layers that nothing names any more. */
async function dropOrphans(snapshotter: Snapshotter, mounts: ImageMounts, disks: ImageDisks, images: NodeImages, core: NodeCore): Promise<void> {
  const users = snapshotter.lazyUsers()
  for (const { imageId, layers } of disks.published()) {
    for (const user of mounts.users(imageId)) {
      if (!isMountUser(user) && !users.has(user)) await images.unmount(layers.map((layer) => layer.diffId), user)
    }
  }
  const named = snapshotter.namedDiffIds()
  for (const { layers } of disks.published()) for (const { diffId } of layers) named.add(diffId)
  for (const { record } of core.library.list()) if (!named.has(record.diffId)) await images.forget(record.diffId)
}
