// Growing columns of bytes and varints, and bounds-checked cursors over them: what the file table is written with and read by.
import { SkimmerError } from '../oci/errors.ts'

/** Unsigned LEB128 of at most 8 bytes: holds every integer up to 2^53. */
const LONGEST_VARINT = 8

export class ColumnWriter {
  #bytes = Buffer.allocUnsafe(256)
  #length = 0

  get length(): number {
    return this.#length
  }

  byte(value: number): void {
    this.#reserve(1)
    this.#bytes[this.#length++] = value
  }

  /** `value` must be an integer from 0 to 2^53. */
  varint(value: number): void {
    this.#reserve(LONGEST_VARINT)
    while (value >= 0x80) {
      this.#bytes[this.#length++] = (value % 0x80) | 0x80
      value = value < 0x80000000 ? value >>> 7 : Math.floor(value / 0x80)
    }
    this.#bytes[this.#length++] = value
  }

  /** Small numbers of either sign become small varints: 0, -1, 1, -2 … are 0, 1, 2, 3 … */
  signed(value: number): void {
    this.varint(value < 0 ? -value * 2 - 1 : value * 2)
  }

  /** A binary string's chars from `from` on, as bytes. */
  text(value: string, from = 0): void {
    const length = value.length - from
    this.#reserve(length)
    this.#bytes.write(from === 0 ? value : value.slice(from), this.#length, 'latin1')
    this.#length += length
  }

  bytes(value: Uint8Array): void {
    this.#reserve(value.length)
    this.#bytes.set(value, this.#length)
    this.#length += value.length
  }

  view(): Buffer {
    return this.#bytes.subarray(0, this.#length)
  }

  #reserve(length: number): void {
    if (this.#length + length <= this.#bytes.length) return
    const grown = Buffer.allocUnsafe(Math.max(this.#bytes.length * 2, this.#length + length))
    grown.set(this.view())
    this.#bytes = grown
  }
}

/** Reads one column. Every method throws INVALID_DATA, naming the column, instead of reading past its end. */
export class ColumnReader {
  readonly #bytes: Buffer
  readonly #name: string
  #at = 0

  constructor(bytes: Buffer, name: string) {
    this.#bytes = bytes
    this.#name = name
  }

  get position(): number {
    return this.#at
  }

  byte(): number {
    if (this.#at >= this.#bytes.length) throw this.invalid('ends early')
    return this.#bytes[this.#at++]
  }

  /** An integer from 0 to `most`. */
  varint(most: number): number {
    let byte = this.byte()
    if (byte < 0x80) return byte <= most ? byte : this.#tooLarge(byte, most)
    let value = byte & 0x7f
    let scale = 0x80
    for (let length = 2; ; length++) {
      if (length > LONGEST_VARINT) throw this.invalid('has a number of too many bytes')
      byte = this.byte()
      value += (byte & 0x7f) * scale
      scale *= 0x80
      if (byte < 0x80) break
    }
    return value <= most ? value : this.#tooLarge(value, most)
  }

  /** An integer from -most to `most`. */
  signed(most: number): number {
    const value = this.varint(most * 2)
    return value % 2 === 0 ? value / 2 : -(value + 1) / 2
  }

  /** A view of the next bytes. */
  bytes(length: number): Buffer {
    const end = this.#at + length
    if (end > this.#bytes.length) throw this.invalid('ends early')
    const view = this.#bytes.subarray(this.#at, end)
    this.#at = end
    return view
  }

  text(length: number): string {
    return this.bytes(length).toString('latin1')
  }

  end(): void {
    if (this.#at !== this.#bytes.length) throw this.invalid(`has ${this.#bytes.length - this.#at} bytes too many`)
  }

  invalid(what: string): SkimmerError {
    return new SkimmerError('INVALID_DATA', `layer index: ${this.#name} ${what}`)
  }

  #tooLarge(value: number, most: number): never {
    throw this.invalid(`says ${value}, more than ${most}`)
  }
}
