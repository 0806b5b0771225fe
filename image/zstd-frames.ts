// Walks the frames of a zstd stream (RFC 8878, section 3.1) without decoding it, because Node's decoder stops after the first one.
import { SkimmerError } from '../oci/errors.ts'

/** Memory that a frame may ask of its reader: zstd's own default bound (windowLogMax 27). */
export const MAX_WINDOW_LENGTH = 128 * 1024 * 1024
export const ZSTD_MAGIC = 0xfd2fb528
const SKIPPABLE_MAGIC = 0x184d2a50

export const isSkippableMagic = (magic: number): boolean => (magic & 0xfffffff0) === SKIPPABLE_MAGIC

type Step = 'magic' | 'skippable length' | 'skip' | 'descriptor' | 'header' | 'block header' | 'block' | 'checksum'

const STEP_LENGTHS: Partial<Record<Step, number>> = { magic: 4, 'skippable length': 4, descriptor: 1, 'block header': 3, checksum: 4 }

export class ZstdFrames {
  #step: Step = 'magic'
  #wanted = 4
  /** The bytes of a small field so far. */
  readonly #field = Buffer.alloc(16)
  #fieldLength = 0
  #descriptor = 0
  #lastBlock = false
  #offset = 0

  /** True between frames: where a stream may end. */
  get between(): boolean {
    return this.#step === 'magic' && this.#fieldLength === 0
  }

  /**
   * Cuts a piece of the stream so that no part goes past the end of a frame. Parts of skippable frames are left in: a decoder
   * knows them. Throws INVALID_DATA for what is no zstd, UNSUPPORTED for a window beyond MAX_WINDOW_LENGTH.
   */
  *split(piece: Uint8Array): Generator<Uint8Array> {
    let partStart = 0
    let at = 0
    while (at < piece.length) {
      const isField = this.#step !== 'skip' && this.#step !== 'block'
      const used = Math.min(piece.length - at, this.#wanted - (isField ? this.#fieldLength : 0))
      if (isField) {
        this.#field.set(piece.subarray(at, at + used), this.#fieldLength)
        this.#fieldLength += used
      } else this.#wanted -= used
      at += used
      this.#offset += used
      while (this.#isComplete()) this.#advance()
      if (this.between) {
        yield piece.subarray(partStart, at)
        partStart = at
      }
    }
    if (partStart < piece.length) yield piece.subarray(partStart)
  }

  #isComplete(): boolean {
    return this.#step === 'skip' || this.#step === 'block' ? this.#wanted === 0 : this.#fieldLength === this.#wanted
  }

  #go(step: Step, wanted = STEP_LENGTHS[step] ?? 0): void {
    this.#step = step
    this.#wanted = wanted
    this.#fieldLength = 0
  }

  #advance(): void {
    const field = this.#field
    switch (this.#step) {
      case 'magic': {
        const magic = field.readUInt32LE(0)
        if (magic === ZSTD_MAGIC) return this.#go('descriptor')
        if (isSkippableMagic(magic)) return this.#go('skippable length')
        throw this.#invalid('no frame starts here')
      }
      case 'skippable length':
        return this.#go('skip', field.readUInt32LE(0))
      case 'skip':
        return this.#go('magic')
      case 'descriptor': {
        this.#descriptor = field[0]
        const single = (this.#descriptor & 0x20) !== 0
        const sizeFlag = this.#descriptor >>> 6
        const contentSize = sizeFlag === 0 ? (single ? 1 : 0) : 1 << sizeFlag
        const dictionaryId = [0, 1, 2, 4][this.#descriptor & 3]
        const length = (single ? 0 : 1) + dictionaryId + contentSize
        return length === 0 ? this.#go('block header') : this.#go('header', length)
      }
      case 'header':
        this.#checkWindow()
        return this.#go('block header')
      case 'block header': {
        const header = field.readUIntLE(0, 3)
        this.#lastBlock = (header & 1) === 1
        const type = (header >>> 1) & 3
        if (type === 3) throw this.#invalid('a block of the reserved type')
        return this.#go('block', type === 1 ? 1 : header >>> 3)
      }
      case 'block':
        if (!this.#lastBlock) return this.#go('block header')
        return this.#go((this.#descriptor & 4) === 0 ? 'magic' : 'checksum')
      case 'checksum':
        return this.#go('magic')
    }
  }

  #checkWindow(): void {
    if ((this.#descriptor & 0x20) !== 0) return // a single segment: the decoder bounds it by the content size itself
    const base = 2 ** (10 + (this.#field[0] >>> 3))
    const window = base + (base / 8) * (this.#field[0] & 7)
    if (window > MAX_WINDOW_LENGTH) throw new SkimmerError('UNSUPPORTED', `zstd: a frame of the layer wants a window of ${window} bytes; at most ${MAX_WINDOW_LENGTH} are given`)
  }

  #invalid(what: string): SkimmerError {
    return new SkimmerError('INVALID_DATA', `zstd: ${what}, near byte ${this.#offset} of the layer`)
  }
}
