// Messages of Noise as they lie in a TCP stream, `u16 length, ciphertext`, cut from what the socket read.
import { SkimmerError } from '../oci/errors.ts'

/** The longest message with its length. */
const MOST_BYTES = 2 + 65_535
/** A message's tag alone. */
const LEAST_LENGTH = 16

/** A read seldom ends where a message ends: the rest waits here, so that nobody needs the read any more. Used again and again; a connection without a rest has none. */
const spare: Buffer[] = []
const MOST_SPARE = 16

/** `onMessage` gets each message's ciphertext in one piece, which is good until it returns. INVALID_DATA for a message without a tag. */
export class MessageCutter {
  readonly #onMessage: (ciphertext: Uint8Array) => void
  #rest: Buffer | undefined
  #held = 0

  constructor(onMessage: (ciphertext: Uint8Array) => void) {
    this.#onMessage = onMessage
  }

  push(data: Uint8Array): void {
    let at = this.#held > 0 ? this.#complete(data) : 0
    while (data.length - at >= 2) {
      const end = at + 2 + data[at] * 256 + data[at + 1]
      if (end > data.length) break
      this.#message(data, at + 2, end)
      at = end
    }
    if (at < data.length) this.#keep(data, at, data.length)
  }

  /** The message that the last read began is completed from this one. Answers where the next begins. */
  #complete(data: Uint8Array): number {
    let at = 0
    if (this.#held === 1) this.#keep(data, 0, at = 1)
    const rest = this.#rest!
    const end = 2 + rest[0] * 256 + rest[1]
    const upTo = Math.min(data.length, at + end - this.#held)
    this.#keep(data, at, upTo)
    if (this.#held < end) return upTo
    this.#held = 0
    this.#rest = undefined
    this.#message(rest, 2, end)
    if (spare.length < MOST_SPARE) spare.push(rest)
    return upTo
  }

  #keep(data: Uint8Array, from: number, to: number): void {
    this.#rest ??= spare.pop() ?? Buffer.allocUnsafeSlow(MOST_BYTES)
    this.#rest.set(data.subarray(from, to), this.#held)
    this.#held += to - from
  }

  #message(bytes: Uint8Array, from: number, to: number): void {
    if (to === from) return
    if (to - from < LEAST_LENGTH) throw new SkimmerError('INVALID_DATA', `a message of ${to - from} bytes is too short to be encrypted`)
    this.#onMessage(bytes.subarray(from, to))
  }
}
