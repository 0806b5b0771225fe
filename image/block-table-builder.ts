// Grows a block table span by span, in about 50 bytes a block.
import { buildBlockTable, HASH_LENGTH } from './block-table.ts'
import type { BlockTable } from './block-table.ts'
import type { PackedSpan } from './block-packer.ts'

export class BlockTableBuilder {
  readonly #rawLengths: number[] = []
  readonly #packedLengths: number[] = []
  readonly #codecs: number[] = []
  #hashes = Buffer.alloc(64 * HASH_LENGTH)

  add({ rawLengths, packedLengths, codecs, hashes }: PackedSpan): void {
    const used = this.#codecs.length * HASH_LENGTH
    while (used + hashes.length > this.#hashes.length) this.#hashes = Buffer.concat([this.#hashes], this.#hashes.length * 2)
    this.#hashes.set(hashes, used)
    this.#rawLengths.push(...rawLengths)
    this.#packedLengths.push(...packedLengths)
    this.#codecs.push(...codecs)
  }

  finish(): BlockTable {
    return buildBlockTable(
      this.#codecs.map((codec, block) => ({
        rawLength: this.#rawLengths[block],
        packedLength: this.#packedLengths[block],
        codec,
        hash: this.#hashes.subarray(block * HASH_LENGTH, (block + 1) * HASH_LENGTH),
      })),
    )
  }
}
