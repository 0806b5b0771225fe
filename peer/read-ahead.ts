// Which neighbours of a missed block to bring along: none at first, more while the misses walk through the stream in order.
import type { BlockTable } from '../image/block-table.ts'

const FIRST_BYTES = 256 * 1024
const MAX_BYTES = 1024 * 1024
/** A miss this many blocks behind the last one's end still counts as the next in order: blocks between were local. */
const SLACK = 4
/** Readers of different files take turns: so many patterns are followed at once. */
const PATTERNS = 8

interface Pattern { end: number; bytes: number }

/** Packed bytes brought before the first output are what a lazy start is judged by: so nothing is guessed from a single miss. */
export class ReadAhead {
  readonly #patterns: Pattern[] = []

  /** The reader missed blocks `from` to `to` (exclusive). Returns the first block after those to bring along: `to` for none. */
  until(table: BlockTable, from: number, to: number): number {
    const index = this.#patterns.findIndex(pattern => from >= pattern.end - 1 && from <= pattern.end + SLACK)
    if (index < 0) {
      this.#patterns.unshift({ end: to, bytes: 0 })
      if (this.#patterns.length > PATTERNS) this.#patterns.pop()
      return to
    }
    const [pattern] = this.#patterns.splice(index, 1)
    this.#patterns.unshift(pattern)
    pattern.bytes = pattern.bytes === 0 ? FIRST_BYTES : Math.min(MAX_BYTES, pattern.bytes * 2)
    let end = to
    const limit = table.packedOffsets[to] + pattern.bytes
    while (end < table.count && table.packedOffsets[end + 1] <= limit) end++
    pattern.end = end
    return end
  }
}
