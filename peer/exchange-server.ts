// The serving half of the exchange: who may ask, how many are served at once, how fast, and who is told what is here.
import type { Connection, Libp2p, Stream } from '@libp2p/interface'
import type { Logger } from 'pino'
import { Counter, Gauge } from 'prom-client'
import type { Registry } from 'prom-client'
import { SkimmerError } from '../oci/errors.ts'
import type { BlockStore } from './block-store.ts'
import { EXCHANGE_PROTOCOL } from './exchange-wire.ts'
import type { GrantVerifier } from './grants.ts'
import { HaveFeed } from './have-feed.ts'
import type { Resource } from './resource.ts'
import { ServedStream } from './served-stream.ts'
import { TokenBucket } from './token-bucket.ts'

export interface ExchangeServerOptions {
  /** Peers whose background requests are served at once; a reader's demand is served beyond it. Default 16. */
  uploadSlots?: number
  /** Bytes per second sent to all peers together. Default: no limit. */
  uploadBytesPerSecond?: number
  /** How long a request waits for a block that is not here yet, milliseconds. Default 10,000. */
  waitMs?: number
  /** Peers that need no grant: a supernode serves those it has admitted. Default: nobody. */
  admit?: (remote: string) => boolean
  /** Called for a resource or object that is not in the store, before NOT_FOUND is answered: a supernode may bring it back. */
  open?: (resourceId: string) => Promise<Resource | undefined>
  /** Called with blocks that a request waits for: a supernode may fetch them from elsewhere. */
  onMiss?: (resource: Resource, blocks: number[]) => void
}

export class ExchangeServer {
  readonly store: BlockStore
  readonly logger: Logger
  readonly grants: GrantVerifier
  readonly haves: HaveFeed
  readonly waitMs: number
  readonly options: ExchangeServerOptions
  readonly uploads: TokenBucket
  readonly sentBytes: Counter
  readonly refused: Counter<'reason'>
  /** Called when a remote says that it wants a resource: it may have some of it, or soon will. */
  onInterested: ((remote: string, resourceId: string) => void) | undefined
  /** Remotes that are not spoken to. */
  isBanned: ((remote: string) => boolean) | undefined
  /** Called when a remote breaks the protocol. */
  onViolation: ((remote: string, error: Error) => void) | undefined
  readonly #libp2p: Libp2p
  readonly #slots: number
  readonly #busy = new Set<ServedStream>()
  readonly #streams = new Set<ServedStream>()

  constructor(components: { libp2p: Libp2p; store: BlockStore; grants: GrantVerifier; logger: Logger; metrics: Registry }, options: ExchangeServerOptions = {}) {
    this.#libp2p = components.libp2p
    this.store = components.store
    this.grants = components.grants
    this.logger = components.logger
    this.options = options
    this.waitMs = options.waitMs ?? 10_000
    this.#slots = options.uploadSlots ?? 16
    this.uploads = new TokenBucket(options.uploadBytesPerSecond ?? Infinity)
    this.haves = new HaveFeed(components.store)
    const registers = [components.metrics]
    this.sentBytes = new Counter({ name: 'skimmer_peer_sent_bytes', help: 'Packed bytes of blocks sent to other peers', registers })
    this.refused = new Counter({ name: 'skimmer_peer_refused_requests', help: 'Requests of other peers that were refused', labelNames: ['reason'], registers })
    const busy = this.#busy
    void new Gauge({ name: 'skimmer_peer_upload_slots_used', help: 'Peers being served in the background now', registers, collect() { this.set(busy.size) } })
  }

  async start(): Promise<void> {
    await this.#libp2p.handle(EXCHANGE_PROTOCOL, (stream, connection) => this.#accept(stream, connection), { maxInboundStreams: 4, force: true })
  }

  async stop(): Promise<void> {
    await this.#libp2p.unhandle(EXCHANGE_PROTOCOL)
    for (const served of this.#streams) served.close(new SkimmerError('UNAVAILABLE', 'this peer is stopping'))
    this.haves.stop()
  }

  get slotsFree(): number {
    return Math.max(0, this.#slots - this.#busy.size)
  }

  get uploadSlots(): number {
    return this.#slots
  }

  /** Hold a slot for a stream's background work; false when all are taken. */
  takeSlot(stream: ServedStream): boolean {
    if (this.#busy.has(stream)) return true
    if (this.#busy.size >= this.#slots) return false
    this.#busy.add(stream)
    return true
  }

  freeSlot(stream: ServedStream): void {
    this.#busy.delete(stream)
  }

  #accept(stream: Stream, connection: Connection): void {
    const remote = connection.remotePeer.toString()
    if (this.isBanned?.(remote) === true) {
      stream.abort(new SkimmerError('FORBIDDEN', 'banned'))
      return
    }
    const served = new ServedStream(this, stream, remote)
    this.#streams.add(served)
    stream.addEventListener('close', () => {
      this.#streams.delete(served)
      served.closed()
    })
  }
}
