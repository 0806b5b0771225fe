// Which hashes of a block table are known: an open resource's blocks are cut before their bytes have come, and learnt one after another.
import { SkimmerError } from '../oci/errors.ts'
import { blockHash, HASH_LENGTH } from '../image/block-table.ts'
import type { BlockTable } from '../image/block-table.ts'

/** On disk and on the way in, 32 zero bytes say "not known": no bytes are known to hash to that, and learn() refuses it. */
const NO_HASH = Buffer.alloc(HASH_LENGTH)

const isKnown = (hash: Uint8Array): boolean => !NO_HASH.equals(hash)

export interface BlockSpan { readonly from: number; readonly to: number }

export class KnownHashes {
  readonly #name: string
  readonly #table: BlockTable
  /** One byte a block; undefined when all are known, as most tables' are from the start. */
  #known: Uint8Array | undefined
  #unknown = 0

  /** `open`: hashes of zeros are unknown ones. `name` is what errors call the table. */
  constructor(name: string, table: BlockTable, open: boolean) {
    this.#name = name
    this.#table = table
    if (!open) return
    const known = new Uint8Array(table.count)
    for (let block = 0; block < table.count; block++) known[block] = isKnown(blockHash(table, block)) ? 1 : 0
    this.#unknown = known.reduce((sum, yes) => sum - yes, table.count)
    if (this.#unknown > 0) this.#known = known
  }

  get open(): boolean {
    return this.#unknown > 0
  }

  knows(block: number): boolean {
    return this.#known === undefined || this.#known[block] === 1
  }

  /** The first block from `from` on whose hash is not known; the number of blocks when there is none. */
  knownUntil(from: number): number {
    const found = this.#known?.indexOf(0, from) ?? -1
    return found < 0 ? this.#table.count : found
  }

  /** Puts hashes into the table, all or none; answers the runs of those that are new. INVALID_DATA when they do not fit, or differ from a known one. */
  learn(from: number, hashes: Uint8Array): BlockSpan[] {
    const count = hashes.length / HASH_LENGTH
    if (!Number.isInteger(from) || from < 0 || !Number.isInteger(count) || from + count > this.#table.count) {
      throw new SkimmerError('INVALID_DATA', `${this.#name}: ${hashes.length} bytes of hashes from block ${from} on do not fit its ${this.#table.count} blocks`)
    }
    const fresh: { from: number; to: number }[] = []
    for (let index = 0; index < count; index++) {
      const block = from + index
      const hash = hashes.subarray(index * HASH_LENGTH, (index + 1) * HASH_LENGTH)
      if (this.knows(block)) {
        if (!Buffer.from(hash.buffer, hash.byteOffset, HASH_LENGTH).equals(blockHash(this.#table, block))) throw new SkimmerError('INVALID_DATA', `${this.#name}: block ${block} has another hash than was learnt before`, { details: { block } })
        continue
      }
      if (!isKnown(hash)) throw new SkimmerError('INVALID_DATA', `${this.#name}: block ${block}: zeros are no hash`, { details: { block } })
      const last = fresh.at(-1)
      if (last?.to === block) last.to++
      else fresh.push({ from: block, to: block + 1 })
    }
    for (const run of fresh) {
      this.#table.hashes.set(hashes.subarray((run.from - from) * HASH_LENGTH, (run.to - from) * HASH_LENGTH), run.from * HASH_LENGTH)
      this.#known!.fill(1, run.from, run.to)
      this.#unknown -= run.to - run.from
    }
    if (this.#unknown === 0) this.#known = undefined
    return fresh
  }

  /** Whether `other` cuts the same stream in the same way, and has no other hash where both know one. `open`: zeros in `other` are unknown. */
  agrees(other: BlockTable, open: boolean): boolean {
    const { count, rawOffsets, packedOffsets, codecs } = this.#table
    if (other.count !== count || !same(rawOffsets, other.rawOffsets) || !same(packedOffsets, other.packedOffsets) || !same(codecs, other.codecs)) return false
    if (!this.open && !open) return same(this.#table.hashes, other.hashes)
    for (let block = 0; block < count; block++) {
      if (this.knows(block) && (!open || isKnown(blockHash(other, block))) && !same(blockHash(this.#table, block), blockHash(other, block))) return false
    }
    return true
  }
}

/** Runs of blocks of an open table whose hashes are known. */
export function knownRuns(table: BlockTable): BlockSpan[] {
  const runs: { from: number; to: number }[] = []
  for (let block = 0; block < table.count; block++) {
    if (!isKnown(blockHash(table, block))) continue
    const last = runs.at(-1)
    if (last?.to === block) last.to++
    else runs.push({ from: block, to: block + 1 })
  }
  return runs
}

function same(one: Uint8Array | Float64Array, other: Uint8Array | Float64Array): boolean {
  return Buffer.from(one.buffer, one.byteOffset, one.byteLength).equals(new Uint8Array(other.buffer, other.byteOffset, other.byteLength))
}
