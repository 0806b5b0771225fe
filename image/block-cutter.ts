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
 * All cuts but the stream's end are at multiples of 512. A block is emitted as soon as its end is known; what is held
 * back is bounded by LONGEST_BLOCK and one piece.
 */
export class BlockCutter {
  readonly #onBlock: (raw: Uint8Array) => void
  /** Decided ends of blocks that the bytes may not have reached yet, in order. */
  #cuts: number[] = []
  /** Where the block that is being decided on starts; where the next entry's headers start; where the current large file ends. */
  #blockStart = 0
  #entryStart = 0
  #largeEnd = 0
  /** Bytes taken but not emitted: they start at #heldStart. */
  #held: Uint8Array[] = []
  #heldStart = 0
  #heldLength = 0

  constructor(onBlock: (raw: Uint8Array) => void) {
    this.#onBlock = onBlock
  }

  /** An entry whose headers end at `dataOffset`. Call it in stream order, before pushing the bytes from there on. */
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

  /** The next bytes of the stream. They are kept without a copy: do not change them afterwards. */
  push(piece: Uint8Array): void {
    if (piece.length === 0) return
    this.#held.push(piece)
    this.#heldLength += piece.length
    this.#decide(this.#heldStart + this.#heldLength)
    this.#emit()
  }

  end(): void {
    const end = this.#heldStart + this.#heldLength
    if (end > this.#blockStart) this.#cut(end)
    this.#emit()
  }

  #cut(at: number): void {
    this.#cuts.push(at)
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

  #emit(): void {
    let emitted = 0
    for (const at of this.#cuts) {
      if (at > this.#heldStart + this.#heldLength) break
      this.#onBlock(this.#takeHeld(at - this.#heldStart))
      emitted++
    }
    if (emitted > 0) this.#cuts.splice(0, emitted)
  }

  /** The first `length` held bytes in one piece: a view where they lie in one, else a copy. */
  #takeHeld(length: number): Uint8Array {
    this.#heldStart += length
    this.#heldLength -= length
    const parts: Uint8Array[] = []
    let used = 0
    for (let missing = length; missing > 0; ) {
      const piece = this.#held[used]
      if (piece.length > missing) {
        parts.push(piece.subarray(0, missing))
        this.#held[used] = piece.subarray(missing)
        break
      }
      parts.push(piece)
      missing -= piece.length
      used++
    }
    this.#held.splice(0, used)
    return parts.length === 1 ? parts[0] : Buffer.concat(parts, length)
  }
}

/** How much of a large file's rest (a multiple of 512) the next block takes. */
function largePiece(rest: number): number {
  if (rest <= LONGEST_BLOCK) return rest
  return rest < LONGEST_BLOCK + LARGE_FILE_LENGTH ? padded(rest / 2) : LONGEST_BLOCK
}
