// The peers this node knows: their addresses, one exchange stream each, who is left alone for a while and who is banned.
import type { Libp2p } from '@libp2p/interface'
import { peerIdFromString } from '@libp2p/peer-id'
import { multiaddr } from '@multiformats/multiaddr'
import { LRUCache } from 'lru-cache'
import type { Logger } from 'pino'
import { Counter, Gauge } from 'prom-client'
import type { Registry } from 'prom-client'
import { SkimmerError } from '../oci/errors.ts'
import { EXCHANGE_PROTOCOL } from './exchange-wire.ts'
import { RemotePeer } from './remote-peer.ts'

export interface PeerPoolOptions {
  /** Peers (without supernodes) to be connected to at once. Default 32. */
  maxPeers?: number
  /** How long a peer that broke the protocol or sent a wrong block is not spoken to, milliseconds. Default 30 minutes. */
  banMs?: number
  dialMs?: number
}

export interface PeerPoolEvents {
  /** A peer's exchange is open. */
  connected(peer: RemotePeer): void
  have(peer: RemotePeer, resource: string): void
  /** It refused to say what it has. */
  refused(peer: RemotePeer, resource: string, error: SkimmerError): void
}

const MAX_BACKOFF_MS = 30_000

export class PeerPool {
  events: PeerPoolEvents | undefined
  readonly #libp2p: Libp2p
  readonly #logger: Logger
  readonly #grantFor: (resource: string) => string | undefined
  readonly #maxPeers: number
  readonly #banMs: number
  readonly #dialMs: number
  readonly #peers = new Map<string, RemotePeer>()
  readonly #banned = new Map<string, { until: number; reason: string }>()
  readonly #backoff = new LRUCache<string, { until: number; millis: number }>({ max: 10_000 })
  readonly #addresses = new LRUCache<string, readonly string[]>({ max: 1_000 })
  readonly #bans: Counter
  #stopped = false

  constructor(components: { libp2p: Libp2p; logger: Logger; metrics: Registry; grantFor: (resource: string) => string | undefined }, options: PeerPoolOptions = {}) {
    this.#libp2p = components.libp2p
    this.#logger = components.logger
    this.#grantFor = components.grantFor
    this.#maxPeers = options.maxPeers ?? 32
    this.#banMs = options.banMs ?? 30 * 60_000
    this.#dialMs = options.dialMs ?? 3_000
    const registers = [components.metrics]
    this.#bans = new Counter({ name: 'skimmer_peer_banned_total', help: 'Peers banned for a lie or a broken protocol', registers })
    const peers = this.#peers
    void new Gauge({
      name: 'skimmer_peer_connected', help: 'Peers with an open exchange', labelNames: ['kind'] as const, registers,
      collect() {
        let supernodes = 0
        let others = 0
        for (const peer of peers.values()) if (peer.connected) { if (peer.supernode) supernodes++; else others++ }
        this.set({ kind: 'supernode' }, supernodes)
        this.set({ kind: 'peer' }, others)
      },
    })
  }

  get(id: string): RemotePeer | undefined {
    return this.#peers.get(id)
  }

  connected(): RemotePeer[] {
    return [...this.#peers.values()].filter(peer => peer.connected)
  }

  /** Addresses by peer id: what is worth remembering over a restart. */
  addresses(): Record<string, readonly string[]> {
    return Object.fromEntries(this.#addresses.entries())
  }

  /** Where a peer can be reached. Addresses that are none are left out: they come from outside. */
  learn(id: string, addresses: readonly string[]): void {
    if (id === this.#libp2p.peerId.toString()) return
    const good = addresses.filter(address => parses(address)).slice(0, 32)
    if (good.length > 0) this.#addresses.set(id, good)
  }

  isBanned(id: string): boolean {
    const ban = this.#banned.get(id)
    if (ban === undefined) return false
    if (ban.until > Date.now()) return true
    this.#banned.delete(id)
    return false
  }

  ban(id: string, reason: string): void {
    if (this.isBanned(id)) return
    this.#banned.set(id, { until: Date.now() + this.#banMs, reason })
    this.#bans.inc()
    this.#logger.warn({ peer: id, reason }, 'banned a peer')
    this.#peers.get(id)?.close(reason)
    this.#hangUp(id)
  }

  /**
   * Get an exchange with a peer if there is none: over an open connection, or by the addresses it is known by. Returns it
   * when it is there; undefined when the peer is banned, resting after failures, cannot be reached or when there are enough.
   */
  async connect(id: string, supernode = false): Promise<RemotePeer | undefined> {
    if (this.#stopped || id === this.#libp2p.peerId.toString() || this.isBanned(id)) return undefined
    let peer = this.#peers.get(id)
    if (peer?.connected === true) return peer
    const backoff = this.#backoff.get(id)
    if (backoff !== undefined && backoff.until > Date.now()) return undefined
    if (peer === undefined) {
      if (!supernode && this.#others() >= this.#maxPeers) return undefined
      peer = this.#make(id, supernode)
    }
    try {
      await peer.connect()
      this.#backoff.delete(id)
      return peer
    } catch (error) {
      this.#logger.debug({ peer: id, err: error }, 'a peer cannot be reached')
      const millis = Math.min(MAX_BACKOFF_MS, (backoff?.millis ?? 250) * 2)
      this.#backoff.set(id, { until: Date.now() + (supernode ? 250 : millis), millis })
      if (!peer.connected && this.#peers.get(id) === peer) this.#peers.delete(id)
      return undefined
    }
  }

  stop(): void {
    this.#stopped = true
    for (const peer of this.#peers.values()) peer.close('this peer is stopping')
  }

  #others(): number {
    let others = 0
    for (const peer of this.#peers.values()) if (!peer.supernode) others++
    return others
  }

  #make(id: string, supernode: boolean): RemotePeer {
    const peer = new RemotePeer({
      id, supernode, grantFor: this.#grantFor,
      open: () => this.#dial(id),
      onOpen: () => this.events?.connected(peer),
      onViolation: (_, error) => this.ban(id, error.message),
      onHave: (_, resource) => this.events?.have(peer, resource),
      onRefused: (_, resource, error) => this.events?.refused(peer, resource, error),
      onGone: () => { if (this.#peers.get(id) === peer) this.#peers.delete(id) },
    })
    this.#peers.set(id, peer)
    return peer
  }

  async #dial(id: string): Promise<Awaited<ReturnType<Libp2p['dialProtocol']>>> {
    const signal = AbortSignal.timeout(this.#dialMs)
    const peerId = peerIdFromString(id)
    if (this.#libp2p.getConnections(peerId).length > 0) {
      try {
        return await this.#libp2p.dialProtocol(peerId, EXCHANGE_PROTOCOL, { signal })
      } catch (error) {
        this.#logger.debug({ peer: id, err: error }, 'an open connection did not take a stream; dialling anew')
      }
    }
    const addresses = this.#addresses.get(id)
    if (addresses === undefined) throw new SkimmerError('UNAVAILABLE', `peer ${id}: no address is known`)
    // The peer id in the address makes noise refuse anyone else.
    const targets = addresses.map(address => multiaddr(address.includes('/p2p/') ? address : `${address}/p2p/${id}`)).filter(address => address.getComponents().some(part => part.name === 'p2p' && part.value === id))
    if (targets.length === 0) throw new SkimmerError('UNAVAILABLE', `peer ${id}: its addresses name another peer`)
    return await this.#libp2p.dialProtocol(targets, EXCHANGE_PROTOCOL, { signal })
  }

  #hangUp(id: string): void {
    this.#libp2p.hangUp(peerIdFromString(id)).catch((error: unknown) => this.#logger.debug({ peer: id, err: error }, 'hanging up failed'))
  }
}

function parses(address: string): boolean {
  try {
    multiaddr(address)
    return true
  } catch {
    return false
  }
}
