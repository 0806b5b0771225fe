// A peer: the libp2p host, the exchange both ways, supernodes, the fetcher and the prefetcher, started and stopped as one.
import { EventEmitter } from 'node:events'
import type { Libp2p } from '@libp2p/interface'
import type { Logger } from 'pino'
import type { Registry } from 'prom-client'
import { hasCode } from '../oci/errors.ts'
import { Announcer } from './announcer.ts'
import type { BlockStore } from './block-store.ts'
import type { ControlEvent } from './control.ts'
import { ExchangeServer } from './exchange-server.ts'
import type { ExchangeServerOptions } from './exchange-server.ts'
import { Fetcher } from './fetcher.ts'
import type { FetcherOptions } from './fetcher.ts'
import { GrantKeeper } from './grant-keeper.ts'
import { GrantVerifier } from './grants.ts'
import { createHost } from './host.ts'
import type { HostOptions } from './host.ts'
import { PeerPool } from './peer-pool.ts'
import type { PeerPoolOptions } from './peer-pool.ts'
import { Prefetcher } from './prefetcher.ts'
import type { PrefetcherOptions } from './prefetcher.ts'
import { Supernodes } from './supernodes.ts'

export interface PeerOptions extends HostOptions {
  /** Multiaddrs or `host:port`, each optionally with `/p2p/<peer id>`. None: peers are learnt by other ways only. */
  supernodes?: readonly string[]
  /** What supernodes that admit only some nodes want to hear. */
  joinToken?: string
  /** Where this node is: `zone`, `rack` …; parents near it are preferred. */
  labels?: Record<string, string>
  version?: string
  exchange?: ExchangeServerOptions
  pool?: PeerPoolOptions
  fetch?: FetcherOptions
  prefetch?: PrefetcherOptions
}

export interface PeerEvents {
  /** A supernode tells: this resource failed a proof somewhere. The store has quarantined it already. */
  quarantine: [resource: string, reason: string]
  /** A supernode wants this image held here (preheat). */
  hold: [event: Extract<ControlEvent, { type: 'hold' }>]
  /** A supernode wants this file held here (preheat): `file.open` with its resource brings it. */
  'hold-file': [event: Extract<ControlEvent, { type: 'hold-file' }>]
  /** A supernode is connected, or was lost. */
  supernode: [peerId: string, up: boolean]
}

/**
 * Serves what the store holds and fetches what it lacks. A node has supernodes; a supernode makes one without.
 * Losing all supernodes changes nothing for peers that know each other and hold unexpired grants.
 */
export class Peer extends EventEmitter<PeerEvents> {
  readonly libp2p: Libp2p
  readonly store: BlockStore
  readonly exchange: ExchangeServer
  readonly pool: PeerPool
  readonly fetcher: Fetcher
  readonly prefetcher: Prefetcher
  readonly supernodes: Supernodes
  readonly grants: GrantKeeper
  readonly #announcer: Announcer
  readonly #logger: Logger

  /** Makes a peer and starts it: it listens, serves and looks for its supernodes when this resolves. */
  static async start(components: { store: BlockStore; logger: Logger; metrics: Registry }, options: PeerOptions): Promise<Peer> {
    const libp2p = await createHost(options)
    try {
      const peer = new Peer(libp2p, components, options)
      await peer.#start()
      return peer
    } catch (error) {
      await libp2p.stop()
      throw error
    }
  }

  private constructor(libp2p: Libp2p, components: { store: BlockStore; logger: Logger; metrics: Registry }, options: PeerOptions) {
    super()
    const { store, metrics } = components
    const logger = components.logger.child({ room: 'peer' })
    this.libp2p = libp2p
    this.store = store
    this.#logger = logger
    const verifier = new GrantVerifier()
    this.grants = new GrantKeeper({ store, verifier, logger })
    this.exchange = new ExchangeServer({ libp2p, store, grants: verifier, logger, metrics }, options.exchange)
    this.pool = new PeerPool({ libp2p, logger, metrics, grantFor: resource => this.grants.book.tokenFor(resource) }, options.pool)
    this.supernodes = new Supernodes({ libp2p, logger }, {
      supernodes: options.supernodes ?? [],
      greeting: () => ({
        version: options.version ?? '0', labels: options.labels ?? {}, addrs: this.addresses.slice(0, 32),
        uploadSlots: this.exchange.uploadSlots, slotsFree: this.exchange.slotsFree, joinToken: options.joinToken,
      }),
    })
    this.fetcher = new Fetcher({ self: libp2p.peerId.toString(), store, pool: this.pool, supernodes: this.supernodes, logger, metrics }, options.fetch)
    this.prefetcher = new Prefetcher({ fetcher: this.fetcher, logger, metrics }, options.prefetch)
    this.#announcer = new Announcer({ store, supernodes: this.supernodes })
    this.#connect()
  }

  /** Peer id: what grants and schedulers know this peer by. */
  get id(): string {
    return this.libp2p.peerId.toString()
  }

  /** Where others can reach it, with the peer id. */
  get addresses(): string[] {
    return this.libp2p.getMultiaddrs().map(address => address.toString())
  }

  async stop(): Promise<void> {
    this.prefetcher.stop()
    this.fetcher.stop()
    this.#announcer.stop()
    await this.supernodes.stop()
    await this.grants.stop()
    await this.exchange.stop()
    this.pool.stop()
    await this.libp2p.stop()
  }

  async #start(): Promise<void> {
    await this.grants.start({ supernodes: this.supernodes, pool: this.pool })
    await this.exchange.start()
    this.supernodes.start()
  }

  /** Who hears of what. */
  #connect(): void {
    const { fetcher, pool, exchange, supernodes, prefetcher } = this
    pool.events = {
      connected: peer => fetcher.onConnected(peer),
      have: (_, resource) => fetcher.onHave(resource),
      refused: (_, resource, error) => { if (hasCode(error, 'FORBIDDEN')) this.grants.refused(resource) },
    }
    exchange.onInterested = (remote, resource) => fetcher.onInterested(remote, resource)
    exchange.isBanned = remote => pool.isBanned(remote)
    exchange.onViolation = (remote, error) => pool.ban(remote, error.message)
    fetcher.onForbidden = resource => this.grants.refused(resource)
    fetcher.onOpened = resource => {
      this.#announcer.wanted(resource)
      if (supernodes.configured && this.grants.book.tokenFor(resource.id) === undefined) this.grants.refused(resource.id)
    }
    prefetcher.onQuarantined = (resource, reason) => void supernodes.tell('quarantine', { resource, reason })
    const greeted = new Set<string>()
    supernodes.events = {
      up: (supernode, grantKey) => {
        this.grants.trust(grantKey)
        if (greeted.has(supernode.peerId)) return
        greeted.add(supernode.peerId)
        pool.learn(supernode.peerId, [supernode.address])
        void pool.connect(supernode.peerId, true)
        this.#announcer.everything(supernode).catch((error: unknown) => this.#logger.warn({ supernode: supernode.peerId, err: error }, 'what is here could not be announced'))
        this.emit('supernode', supernode.peerId, true)
      },
      down: peerId => {
        greeted.delete(peerId)
        this.emit('supernode', peerId, false)
      },
      grant: token => this.grants.take(token),
      event: event => void this.#onEvent(event),
    }
  }

  async #onEvent(event: ControlEvent): Promise<void> {
    if (event.type === 'hold') {
      this.emit('hold', event)
      return
    }
    if (event.type === 'hold-file') {
      this.emit('hold-file', event)
      return
    }
    try {
      await this.store.quarantine(event.resource, event.reason)
      this.emit('quarantine', event.resource, event.reason)
    } catch (error) {
      this.#logger.error({ resource: event.resource, err: error }, 'a resource could not be quarantined')
    }
  }
}
