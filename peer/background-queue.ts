// The blocks that background work still wants of one resource, in random order of pieces, and which of them to ask a peer for.
import { shufflePieces } from './stripes.ts'

/** How far into the order a choice looks, and how many candidates it compares. */
const LOOK = 4096
const CANDIDATES = 128

export class BackgroundQueue {
  /** 1 for a block that is wanted and not under way. */
  readonly #wanted: Uint8Array
  readonly #pieceBlocks: number
  #order: number[] = []
  #size = 0
  #additions = 0
  /** Blocks in an order that was given, a trace: before all others. */
  #first: number[] = []
  /** Of those, the ones that a start waits for: not worth a detour by stripes. */
  readonly #urgent = new Set<number>()

  /** `pieceBlocks`: blocks that are asked for together where that is possible. */
  constructor(count: number, pieceBlocks: number) {
    this.#pieceBlocks = pieceBlocks
    this.#wanted = new Uint8Array(count)
  }

  get size(): number {
    return this.#size
  }

  /** How often blocks were added or came back: what was not there for someone may be now. */
  get additions(): number {
    return this.#additions
  }

  has(block: number): boolean {
    return this.#wanted[block] === 1
  }

  /** It is here: whatever was noted about it is over. */
  settled(block: number): void {
    this.take(block)
    this.#urgent.delete(block)
  }

  /** Sorted blocks. `ordered`: in just this order, and before the others. */
  add(blocks: readonly number[], ordered: boolean): void {
    const fresh = blocks.filter(block => this.#wanted[block] === 0)
    // Dead entries of blocks that are wanted again would make them appear twice.
    this.#order = this.#order.filter(block => this.#wanted[block] === 1)
    for (const block of fresh) this.#wanted[block] = 1
    this.#size += fresh.length
    this.#additions++
    if (ordered) {
      for (const block of blocks) {
        this.#first.push(block)
        this.#urgent.add(block)
      }
    } else this.#order = this.#order.concat(shufflePieces(fresh, this.#pieceBlocks))
  }

  /** A block came back: its peer failed. It goes to the front, since others may be waiting for it. */
  putBack(block: number): void {
    if (this.#wanted[block] === 1) return
    this.#wanted[block] = 1
    this.#size++
    this.#additions++
    this.#first.push(block)
  }

  /** It was added in an order, and has not come yet. */
  urgent(block: number): boolean {
    return this.#urgent.has(block)
  }

  take(block: number): boolean {
    if (this.#wanted[block] === 0) return false
    this.#wanted[block] = 0
    this.#size--
    return true
  }

  /**
   * Up to `bytes` worth of wanted blocks that `may` allows, rarest (fewest `holders`) first, taken off the queue and sorted.
   * Ties fall in this node's own random order: so that nodes bring different blocks and have something to trade.
   */
  choose(bytes: number, size: (block: number) => number, may: (block: number) => boolean, holders: (block: number) => number): number[] {
    if (this.#size === 0) return []
    const chosen: number[] = []
    let left = bytes
    const pick = (block: number): void => {
      this.take(block)
      chosen.push(block)
      left -= size(block)
    }
    this.#first = this.#first.filter(block => this.#wanted[block] === 1)
    for (const block of this.#first) {
      if (left <= 0) break
      if (this.#wanted[block] === 1 && may(block)) pick(block)
    }
    if (left > 0) {
      if (this.#order.length > 2 * this.#size + 64) this.#order = this.#order.filter(block => this.#wanted[block] === 1)
      const candidates: { block: number; holders: number }[] = []
      let looked = 0
      for (const block of this.#order) {
        if (this.#wanted[block] === 0) continue
        if (looked++ >= LOOK || candidates.length >= CANDIDATES) break
        if (may(block)) candidates.push({ block, holders: holders(block) })
      }
      candidates.sort((a, b) => a.holders - b.holders)
      for (const candidate of candidates) {
        if (left <= 0) break
        pick(candidate.block)
      }
    }
    return chosen.sort((a, b) => a - b)
  }
}
