// Cuts a layer's stream into blocks along its files, the same way whatever the pieces it arrives in.
import { padded } from './tar-header.ts'

/**
 * No block is longer: large files are cut every so many bytes, small ones share a block up to it. zstd makes the same frame of
 * 256 KiB or less however much room it is given for output, but not of more (it looks ahead over three of its own blocks).
 */
export const LONGEST_BLOCK = 256 * 1024
/** Files from this size start a block of their own. */
export const LARGE_FILE_LENGTH = 64 * 1024

/**
 * Rules, in stream order:
 * - a file of LARGE_FILE_LENGTH or more starts a block with its first byte, is cut every LONGEST_BLOCK (a last piece of less
 *   than LARGE_FILE_LENGTH shares evenly with the one before), and its last block ends with its padding: equal large files
 *   give equal blocks wherever they stand; its header belongs to the block before;
 * - a smaller one goes whole, with its headers, into the current block, unless that would grow past LONGEST_BLOCK;
 * - headers and trailing padding that run on are cut every LONGEST_BLOCK.
 *
 * All cuts but the stream's end are at multiples of 512. A block is told as soon as its end is known; what is not told of is never
 * longer than LONGEST_BLOCK after a push.
 */
export class BlockCutter {
  readonly #onBlock: (length: number) => void
  /** Where the block that is being decided on starts; where the next entry's headers start; where the current large file ends. */
  #blockStart = 0
  #entryStart = 0
  #largeEnd = 0
  /** Bytes pushed. */
  #length = 0

  /** `onBlock` gets the length of each block in stream order. */
  constructor(onBlock: (length: number) => void) {
    this.#onBlock = onBlock
  }

  /** An entry whose headers end at `dataOffset`. Call it in stream order, before pushing the bytes that end its headers. */
  entry(dataOffset: number, dataLength: number): void {
    this.#decide(dataOffset)
    const end = dataOffset + padded(dataLength)
    const isLarge = dataLength >= LARGE_FILE_LENGTH
    const wanted = isLarge ? dataOffset : end
    if (wanted - this.#blockStart > LONGEST_BLOCK && this.#entryStart > this.#blockStart) this.#cut(this.#entryStart)
    if (isLarge) {
      if (dataOffset > this.#blockStart) this.#cut(dataOffset)
      this.#largeEnd = end
    }
    this.#entryStart = end
  }

  /** So many more bytes of the stream, whose entries were told. */
  push(length: number): void {
    this.#length += length
    this.#decide(this.#length)
  }

  end(): void {
    if (this.#length > this.#blockStart) this.#cut(this.#length)
  }

  #cut(at: number): void {
    this.#onBlock(at - this.#blockStart)
    this.#blockStart = at
  }

  /** All cuts that do not depend on entries past `to`. */
  #decide(to: number): void {
    for (;;) {
      if (this.#largeEnd > this.#blockStart) {
        const at = this.#blockStart + largePiece(this.#largeEnd - this.#blockStart)
        if (at > to) return
        this.#cut(at)
      } else if (to - this.#blockStart > LONGEST_BLOCK) {
        const atEntry = this.#entryStart > this.#blockStart && this.#entryStart <= this.#blockStart + LONGEST_BLOCK
        this.#cut(atEntry ? this.#entryStart : this.#blockStart + LONGEST_BLOCK)
      } else return
    }
  }
}

/** How much of a large file's rest (a multiple of 512) the next block takes. */
function largePiece(rest: number): number {
  if (rest <= LONGEST_BLOCK) return rest
  return rest < LONGEST_BLOCK + LARGE_FILE_LENGTH ? padded(rest / 2) : LONGEST_BLOCK
}
