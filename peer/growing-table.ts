// A block table that is not finished: blocks are added one by one, and in the end it becomes one that threads can share.
import { SkimmerError } from '../oci/errors.ts'
import { HASH_LENGTH, MAX_BLOCKS } from '../image/block-table.ts'
import type { BlockTable } from '../image/block-table.ts'
import { MAX_BLOCK_BYTES } from './block-codec.ts'

const FIRST_CAPACITY = 1024

export class GrowingTable {
  #count = 0
  #rawOffsets = new Float64Array(FIRST_CAPACITY + 1)
  #packedOffsets = new Float64Array(FIRST_CAPACITY + 1)
  #codecs = new Uint8Array(FIRST_CAPACITY)
  #hashes = new Uint8Array(FIRST_CAPACITY * HASH_LENGTH)

  get count(): number { return this.#count }
  get rawLength(): number { return this.#rawOffsets[this.#count] }
  get packedLength(): number { return this.#packedOffsets[this.#count] }

  /** INVALID_ARGUMENT for lengths no block can have, LIMIT_EXCEEDED for more blocks than a table may have. */
  add(packedLength: number, rawLength: number, codec: number, hash: Uint8Array): void {
    const block = this.#count
    if (packedLength < 1 || packedLength > MAX_BLOCK_BYTES || rawLength < 1 || rawLength > MAX_BLOCK_BYTES || hash.length !== HASH_LENGTH) {
      throw new SkimmerError('INVALID_ARGUMENT', `block ${block}: ${packedLength} bytes for ${rawLength}, hash of ${hash.length} bytes`)
    }
    if (block === MAX_BLOCKS) throw new SkimmerError('LIMIT_EXCEEDED', `more than ${MAX_BLOCKS} blocks`)
    if (block === this.#codecs.length) this.#grow(block * 2)
    this.#rawOffsets[block + 1] = this.#rawOffsets[block] + rawLength
    this.#packedOffsets[block + 1] = this.#packedOffsets[block] + packedLength
    this.#codecs[block] = codec
    this.#hashes.set(hash, block * HASH_LENGTH)
    this.#count++
  }

  #grow(capacity: number): void {
    const [rawOffsets, packedOffsets, codecs, hashes] = [this.#rawOffsets, this.#packedOffsets, this.#codecs, this.#hashes]
    this.#rawOffsets = new Float64Array(capacity + 1)
    this.#rawOffsets.set(rawOffsets)
    this.#packedOffsets = new Float64Array(capacity + 1)
    this.#packedOffsets.set(packedOffsets)
    this.#codecs = new Uint8Array(capacity)
    this.#codecs.set(codecs)
    this.#hashes = new Uint8Array(capacity * HASH_LENGTH)
    this.#hashes.set(hashes)
  }

  packedOffset(block: number): number {
    return this.#packedOffsets[block]
  }

  entry(block: number): { rawOffset: number; rawLength: number; packedLength: number; codec: number; hash: Uint8Array } {
    return {
      rawOffset: this.#rawOffsets[block], rawLength: this.#rawOffsets[block + 1] - this.#rawOffsets[block], codec: this.#codecs[block],
      packedLength: this.#packedOffsets[block + 1] - this.#packedOffsets[block], hash: this.#hashes.slice(block * HASH_LENGTH, (block + 1) * HASH_LENGTH),
    }
  }

  finish(): BlockTable {
    const count = this.#count
    const table = {
      count,
      rawOffsets: new Float64Array(new SharedArrayBuffer((count + 1) * 8)),
      packedOffsets: new Float64Array(new SharedArrayBuffer((count + 1) * 8)),
      codecs: new Uint8Array(new SharedArrayBuffer(count)),
      hashes: new Uint8Array(new SharedArrayBuffer(count * HASH_LENGTH)),
    }
    table.rawOffsets.set(this.#rawOffsets.subarray(0, count + 1))
    table.packedOffsets.set(this.#packedOffsets.subarray(0, count + 1))
    table.codecs.set(this.#codecs.subarray(0, count))
    table.hashes.set(this.#hashes.subarray(0, count * HASH_LENGTH))
    return table
  }
}
