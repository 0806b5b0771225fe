// Grows a block table block by block, in about 50 bytes each.
import { buildBlockTable, HASH_LENGTH } from './block-table.ts'
import type { BlockTable } from './block-table.ts'
import type { PackedBlock } from './block-packer.ts'

export class BlockTableBuilder {
  readonly #lengths: number[] = []
  readonly #codecs: number[] = []
  #hashes = Buffer.alloc(64 * HASH_LENGTH)
  #count = 0

  add({ rawLength, packed, codec, hash }: PackedBlock): void {
    if ((this.#count + 1) * HASH_LENGTH > this.#hashes.length) this.#hashes = Buffer.concat([this.#hashes], this.#hashes.length * 2)
    this.#hashes.set(hash, this.#count * HASH_LENGTH)
    this.#lengths.push(rawLength, packed.length)
    this.#codecs.push(codec)
    this.#count++
  }

  finish(): BlockTable {
    return buildBlockTable(
      this.#codecs.map((codec, block) => ({
        rawLength: this.#lengths[2 * block],
        packedLength: this.#lengths[2 * block + 1],
        codec,
        hash: this.#hashes.subarray(block * HASH_LENGTH, (block + 1) * HASH_LENGTH),
      })),
    )
  }
}
