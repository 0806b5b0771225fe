// The supernode: one process made of the room's parts; starts them in order, stops them in reverse.
import { createHash } from 'node:crypto'
import { mkdir } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import type { Libp2p } from '@libp2p/interface'
import { peerIdFromString } from '@libp2p/peer-id'
import type { Ping } from '@libp2p/ping'
import type { Logger } from 'pino'
import { Registry as Metrics } from 'prom-client'
import { ComposerThread } from '../image/composer-thread.ts'
import { IndexerPool } from '../image/indexer-pool.ts'
import { loadDockerConfig } from '../oci/docker-config.ts'
import { SkimmerError } from '../oci/errors.ts'
import { BlockStore } from '../peer/block-store.ts'
import { describeIssue } from '../peer/control.ts'
import { ExchangeServer } from '../peer/exchange-server.ts'
import { GrantSigner, GrantVerifier } from '../peer/grants.ts'
import { createHost, loadIdentity } from '../peer/host.ts'
import { serveControl } from '../peer/serve-control.ts'
import { Sources } from '../source/sources.ts'
import { BlobAccess } from './blob-access.ts'
import { BlobOrigin } from './blob-origin.ts'
import { CacheKeeper } from './cache-keeper.ts'
import { ComposedImages } from './composed-images.ts'
import { ControlServer } from './control-server.ts'
import { DEFAULT_IMAGE_MEMORY_MS } from './defaults.ts'
import { FileOrigin } from './file-origin.ts'
import { Granter } from './granter.ts'
import { httpApi } from './http-api.ts'
import { ImageCatalog } from './image-catalog.ts'
import { LayerOrigin } from './layer-origin.ts'
import { Preheat } from './preheat.ts'
import { QuarantineBook } from './quarantine-book.ts'
import { RegistryGate } from './registry-access.ts'
import { Scheduler } from './scheduler.ts'
import { EmbeddedState } from './shared-state.ts'
import { sourceAddresses } from './source-addresses.ts'
import { StreamControl } from './stream-control.ts'
import { StreamOrigin } from './stream-origin.ts'
import { supernodeConfigSchema } from './supernode-config.ts'
import type { SupernodeConfig, SupernodeConfigInput } from './supernode-config.ts'
import { TraceBook } from './trace-book.ts'

export const SUPERNODE_VERSION = '0.1.0'
const SWEEP_MS = 60_000
const PING_MS = 5_000
const PRUNE_MS = 3_600_000
/** What an HTTP request may take to arrive. */
const HTTP_REQUEST_MS = 15_000

/** The parts that others in this process (the CLI, tests, a bench) may look at. */
export interface SupernodeParts {
  readonly libp2p: Libp2p
  readonly store: BlockStore
  readonly catalog: ImageCatalog
  readonly origin: LayerOrigin
  readonly streams: StreamOrigin
  readonly files: FileOrigin
  readonly blobs: BlobOrigin
  readonly scheduler: Scheduler
  readonly control: ControlServer
  readonly preheat: Preheat
  readonly quarantine: QuarantineBook
  readonly exchange: ExchangeServer
}

type Stop = () => Promise<unknown> | void

export class Supernode {
  readonly config: SupernodeConfig
  readonly parts: SupernodeParts
  readonly metrics: Metrics
  readonly #server: Server
  readonly #stops: Stop[]
  #stopping: Promise<void> | undefined

  private constructor(config: SupernodeConfig, parts: SupernodeParts, metrics: Metrics, server: Server, stops: Stop[]) {
    this.config = config
    this.parts = parts
    this.metrics = metrics
    this.#server = server
    this.#stops = stops
  }

  /**
   * Starts all parts, or none: what had begun is stopped again. Errors: INVALID_ARGUMENT for a configuration that does not fit its schema,
   * CONFLICT when another process uses the data directory or a port, INVALID_DATA for a damaged identity file.
   */
  static async start(input: SupernodeConfigInput, components: { logger: Logger; metrics?: Metrics }): Promise<Supernode> {
    const parsed = supernodeConfigSchema.safeParse(input)
    if (!parsed.success) throw new SkimmerError('INVALID_ARGUMENT', `the supernode's configuration: ${describeIssue(parsed.error)}`)
    const stops: Stop[] = []
    try {
      return await begin(parsed.data, components.logger, components.metrics ?? new Metrics(), stops)
    } catch (error) {
      for (const stop of stops.toReversed()) await Promise.resolve(stop()).catch((cause: unknown) => components.logger.warn({ err: cause }, 'while giving up the start'))
      throw error
    }

    async function begin(config: SupernodeConfig, logger: Logger, metrics: Metrics, stops: Stop[]): Promise<Supernode> {
      await mkdir(config.dataDir, { recursive: true, mode: 0o700 })
      const store = await BlockStore.open({ directory: join(config.dataDir, 'store'), capBytes: config.cacheBytes, logger, metrics })
      stops.push(() => store.close())
      const identityFile = join(config.dataDir, 'identity')
      const seed = Buffer.from((await loadIdentity(identityFile)).raw.subarray(0, 32))
      const state = new EmbeddedState({ open: name => store.sublevel(`supernode-${name}`), logger })

      const credentials = loadDockerConfig(config.registry.credentialsFile)
      // Keyed by the identity, so that what registries answered to a node's credentials is still known after a restart.
      const secret = createHash('sha256').update('skimmer credentials').update(seed).digest()
      const gate = new RegistryGate({ credentials, hosts: config.registry.hosts, logger, metrics }, { secret })
      stops.push(() => gate.close())
      const indexer = new IndexerPool({ threads: config.limits.indexerThreads })
      stops.push(() => indexer.close())
      indexer.warm()
      const catalog = new ImageCatalog({ gate, state, logger }, { tagTtlMs: config.tagTtlMs, accessTtlMs: config.accessTtlMs })
      const origin = new LayerOrigin({ store, indexer, state, logger, metrics }, { parallelLayers: config.limits.parallelLayers })
      stops.push(() => origin.close())

      const streams = new StreamOrigin({ store, state, logger, metrics }, { parallel: config.files.parallel, maxBytes: config.files.maxBytes })
      const sources = new Sources({ credentials, hosts: config.registry.hosts, logger }, { allow: sourceAddresses({ loopback: config.files.loopback }) })
      stops.push(() => sources.close(), () => streams.close())
      const files = new FileOrigin({ streams, sources, logger }, { expireMs: config.files.expireMs, secret })
      const blobAccess = new BlobAccess({ state, logger }, { ttlMs: config.accessTtlMs })
      const blobs = new BlobOrigin({ streams, gate, access: blobAccess, logger })

      const composer = new ComposerThread()
      stops.push(() => composer.close())
      const composed = new ComposedImages({ store, composer, state, logger }, { directory: join(config.dataDir, 'composing') })

      const libp2p = await createHost({ listen: config.listen, announce: config.announce.length === 0 ? undefined : config.announce, identityFile, maxConnections: config.limits.connections }).catch(inUse(config.listen.join(' ')))
      stops.push(() => libp2p.stop())
      const peerId = libp2p.peerId.toString()
      const signer = new GrantSigner(seed)
      const grants = new GrantVerifier()
      grants.trust(signer.publicKey)
      const restore = (resource: string) => origin.restore(resource, gate.own).catch((error: unknown) => {
        logger.warn({ resource, err: error }, 'a resource that a node asks for is gone and cannot be made again')
        return undefined
      })
      // Nodes need grants here too: being admitted does not open private images.
      const exchange = new ExchangeServer({ libp2p, store, grants, logger, metrics }, {
        uploadSlots: config.limits.uploadSlots, uploadBytesPerSecond: config.limits.uploadBytesPerSecond, open: restore, onMiss: resource => { void restore(resource.id) },
      })

      const scheduler = new Scheduler({ clock: steadyClock, supernodes: [peerId] }, { fanOut: config.limits.fanOut, maxFanOut: config.limits.maxFanOut, maxPeers: config.limits.peers, deadAfterMs: 3.5 * config.heartbeatMs, seed: seed.readUInt32LE() })
      const quarantine = await QuarantineBook.open({ store, state, logger })
      stops.push(() => quarantine.idle())
      const granter = new Granter({ signer, state, logger }, { grantMs: config.grantMs })
      stops.push(() => granter.close())
      const streamControl = new StreamControl({ streams, files, blobs, granter, admitted: peer => scheduler.knows(peer), logger })
      const control = new ControlServer({ streams: streamControl.handlers, peerId, scheduler, catalog, origin, store, granter, traces: new TraceBook({ state }), composed, quarantine, measureRtt: peer => pingTime(libp2p, peer), logger, metrics }, { heartbeatMs: config.heartbeatMs, joinToken: config.joinToken })
      exchange.isBanned = remote => scheduler.banned(remote)
      exchange.onViolation = (remote, error) => scheduler.ban(remote, `it broke the exchange protocol: ${error.message}`)
      const preheat = await Preheat.open({ catalog, origin, files, granter, composed, scheduler, store, state, push: (event, peers) => control.push(event, peers), logger, metrics }, { maxJobs: config.limits.preheatJobs })
      stops.push(() => preheat.close())

      await exchange.start()
      stops.push(() => exchange.stop())
      stops.push(await serveControl({ libp2p, logger }, control.handlers))

      const startedAt = Date.now()
      const parts: SupernodeParts = { libp2p, store, catalog, origin, streams, files, blobs, scheduler, control, preheat, quarantine, exchange }
      const app = httpApi({
        identity: () => ({ peerId, addrs: libp2p.getMultiaddrs().map(address => address.toString()), grantKey: signer.publicKey, version: SUPERNODE_VERSION, startedAt }),
        ready: () => supernode.#stopping === undefined, catalog, origin, streams, store, scheduler, control, preheat, quarantine, metrics, logger,
      }, { token: config.http.token })
      const server = createServer({ requestTimeout: HTTP_REQUEST_MS, headersTimeout: HTTP_REQUEST_MS }, app)
      await new Promise<void>((resolve, reject) => {
        server.once('error', reject)
        server.listen(config.http.port, config.http.host, () => {
          server.off('error', reject)
          resolve()
        })
      }).catch(inUse(`${config.http.host}:${config.http.port}`))
      stops.push(() => {
        server.closeAllConnections()
        return new Promise(resolve => { server.close(resolve) })
      })

      const cache = new CacheKeeper({ store, logger }, { ttlMs: config.cacheTtlMs })
      const timers = [
        setInterval(() => {
          scheduler.sweep()
          cache.sweep().catch((error: unknown) => logger.warn({ err: error }, 'sweeping the cache failed'))
        }, SWEEP_MS),
        setInterval(() => {
          Promise.all([catalog.prune(), streams.prune(), blobAccess.prune(Date.now() - DEFAULT_IMAGE_MEMORY_MS)]).catch((error: unknown) => logger.warn({ err: error }, 'forgetting old images and files failed'))
        }, PRUNE_MS),
      ]
      for (const timer of timers) timer.unref()
      stops.push(() => { for (const timer of timers) clearInterval(timer) })

      const supernode = new Supernode(config, parts, metrics, server, stops)
      logger.info({ peerId, addrs: libp2p.getMultiaddrs().map(String), http: supernode.httpUrl }, 'supernode started')
      return supernode
    }
  }

  get peerId(): string {
    return this.parts.libp2p.peerId.toString()
  }

  /** Multiaddrs with the peer id: what nodes are configured with. */
  get addrs(): string[] {
    return this.parts.libp2p.getMultiaddrs().map(address => address.toString())
  }

  /** Where its HTTP API listens, seen from this host. */
  get httpUrl(): string {
    const { address, family, port } = this.#server.address() as AddressInfo
    const host = address === '0.0.0.0' || address === '::' ? '127.0.0.1' : family === 'IPv6' ? `[${address}]` : address
    return `http://${host}:${port}`
  }

  /** Ends everything; what is being indexed begins anew at the next start. Safe to call twice. */
  stop(): Promise<void> {
    this.#stopping ??= (async () => {
      for (const stop of this.#stops.toReversed()) await stop()
    })()
    return this.#stopping
  }
}

/** Milliseconds since 1970 that never jump when the system's clock is set: peers must not all look dead then. */
const steadyClock = (): number => performance.timeOrigin + performance.now()

const pingTime = (libp2p: Libp2p, peer: string): Promise<number> => (libp2p.services as unknown as { ping: Ping }).ping.ping(peerIdFromString(peer), { signal: AbortSignal.timeout(PING_MS) })

const inUse = (where: string) => (cause: unknown): never => {
  if (/EADDRINUSE|already in use/i.test(String((cause as Error).message))) throw new SkimmerError('CONFLICT', `${where} is in use by another program: stop it, or listen elsewhere`, { cause })
  throw cause
}
