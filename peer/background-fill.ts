// Background fetching of one resource: keeps every peer's pipeline full, takes from the supernode only what no peer has or will soon have.
import { packedLength } from '../image/block-table.ts'
import type { BackgroundQueue } from './background-queue.ts'
import type { FetchContext } from './fetch-context.ts'
import { holds } from './remote-peer.ts'
import type { RemotePeer } from './remote-peer.ts'
import type { Resource } from './resource.ts'
import { pipelineBytes } from './source-choice.ts'
import { ownsPiece, peerSeed, pieceBlocks } from './stripes.ts'

/** Requests in flight fill a pipeline in parts like this one: fewer cost less, more spread what is asked over the peers. */
const PARTS = 4
const MIN_REQUEST = 256 * 1024
/** A peer this many times slower than the supernode does not keep its blocks from being asked there. */
const SLOW = 4
/** Blocks that are large for their link do not keep others waiting longer than this, milliseconds. */
const MAX_DELIVERY_MS = 5_000
/** The most blocks taken out of turn at once. */
const MAX_STEAL = 64

/**
 * Each node brings its own stripe of the resource from the supernode (see stripes.ts) and trades for the others: six nodes
 * that want it at once then take one copy from the supernode between them. A stripe whose owner does not deliver is taken
 * over slowly at first, then faster.
 */
export class BackgroundFill {
  readonly #context: FetchContext
  readonly #resource: Resource
  readonly #queue: BackgroundQueue
  readonly #mayAsk: (peer: RemotePeer) => boolean
  readonly #ask: (peer: RemotePeer, blocks: number[]) => void
  readonly #pieceBlocks: number
  /** Bytes that two blocks have, more or less: a peer that is asked for less idles between two blocks. */
  readonly #twoBlocks: number
  /** Who had nothing of what is wanted, and what that was found from: it is not looked for again before that changed. */
  readonly #vain = new WeakMap<object, number>()
  #idleSince: number | undefined
  #steal = 4

  constructor(context: FetchContext, resource: Resource, queue: BackgroundQueue, mayAsk: (peer: RemotePeer) => boolean, ask: (peer: RemotePeer, blocks: number[]) => void) {
    this.#context = context
    this.#resource = resource
    this.#pieceBlocks = pieceBlocks(resource.table)
    this.#twoBlocks = (2 * packedLength(resource.table)) / Math.max(1, resource.table.count)
    this.#queue = queue
    this.#mayAsk = mayAsk
    this.#ask = ask
  }

  /** Something came from a peer: stripes are moving. */
  progressed(fromSupernode: boolean): void {
    if (!fromSupernode) this.#steal = 4
  }

  /** `underWay`: whether anything of this resource is asked for now. */
  fill(underWay: () => boolean): void {
    const { id, table } = this.#resource
    if (this.#queue.size === 0 || this.#context.background.wait() > 0) return
    // What they have is looked up once: it is asked for each candidate of each peer.
    const peers = this.#context.peers(id).filter(this.#mayAsk).map(peer => ({ peer, held: peer.holdings(id) }))
    const supernode = this.#context.supernodes(id).find(this.#mayAsk)
    const size = (block: number): number => table.packedOffsets[block + 1] - table.packedOffsets[block]
    const holders = (block: number): number => peers.reduce((sum, { held }) => sum + (holds(held, block) ? 1 : 0), 0)
    // A random peer first: not always the same one gets the first choice.
    const start = Math.floor(Math.random() * peers.length)
    for (let index = 0; index < peers.length; index++) {
      const { peer, held } = peers[(start + index) % peers.length]
      if (held !== undefined) this.#keepBusy(peer, held, held.changes, size, block => holds(held, block), holders)
    }
    if (supernode === undefined || this.#queue.size === 0) return
    const supernodeRate = supernode.speed.rate
    const quick = peers.filter(({ peer }) => peer.speed.rate === undefined || supernodeRate === undefined || peer.speed.rate * SLOW >= supernodeRate)
    const wanting = quick.flatMap(({ peer, held }) => held?.whole === false ? [peerSeed(peer.id)] : [])
    const unheld = (block: number): boolean => !quick.some(({ held }) => holds(held, block))
    const news = quick.reduce((sum, { peer, held }) => sum + peerSeed(peer.id) + (held?.changes ?? 0), 0)
    this.#keepBusy(supernode, this, news, size, block => unheld(block) && (this.#queue.urgent(block) || ownsPiece(block, this.#pieceBlocks, this.#context.self, wanting)), () => 0)
    if (underWay() || this.#queue.size === 0) {
      this.#idleSince = undefined
      return
    }
    const now = performance.now()
    this.#idleSince ??= now
    // What another brings needs its time on a slow link.
    const delivery = supernodeRate === undefined ? 0 : (this.#twoBlocks / supernodeRate) * 1000
    if (now - this.#idleSince < this.#context.limits.stealAfter + Math.min(MAX_DELIVERY_MS, delivery)) return
    const blocks = this.#queue.choose(this.#steal * 100 * 1024, size, unheld, () => 0)
    if (blocks.length === 0) return
    this.#steal = Math.min(MAX_STEAL, this.#steal * 2)
    this.#context.background.take(blocks.reduce((sum, block) => sum + size(block), 0))
    this.#ask(supernode, blocks)
  }

  /** `news` grows when `may` may come to allow more; `of` is what that is remembered by. */
  #keepBusy(peer: RemotePeer, of: object, news: number, size: (block: number) => number, may: (block: number) => boolean, holders: (block: number) => number): void {
    const stamp = news + this.#queue.additions
    if (this.#vain.get(of) === stamp) return
    const pipeline = Math.max(pipelineBytes(peer), this.#twoBlocks)
    const part = Math.max(MIN_REQUEST, pipeline / PARTS)
    while (peer.outstandingBytes + part / 2 <= pipeline && this.#queue.size > 0 && this.#context.background.wait() === 0) {
      const blocks = this.#queue.choose(part, size, may, holders)
      if (blocks.length === 0) return void this.#vain.set(of, stamp)
      this.#context.background.take(blocks.reduce((sum, block) => sum + size(block), 0))
      this.#ask(peer, blocks)
    }
  }
}
