// A file written from front to back through one large zeroed window, so that small records cost neither a call nor a buffer each.
import { writeSync } from 'node:fs'

const WINDOW_LENGTH = 1 << 20

export class SequentialFile {
  /** Valid until the next call of reserve(), append() or moveTo(). */
  window = Buffer.alloc(WINDOW_LENGTH)
  #fd: number
  #onBytes: (bytes: Uint8Array) => void
  #start = 0
  #used = 0

  /** @param onBytes sees every byte in order when it is written */
  constructor(fd: number, onBytes: (bytes: Uint8Array) => void) {
    this.#fd = fd
    this.#onBytes = onBytes
  }

  get position(): number {
    return this.#start + this.#used
  }

  /** Makes room for the next `length` bytes, zeroed, and returns where in the window they are. */
  reserve(length: number): number {
    if (this.#used + length > this.window.length) {
      this.flush()
      if (length > this.window.length) this.window = Buffer.alloc(length)
    }
    const at = this.#used
    this.#used += length
    return at
  }

  append(bytes: Uint8Array): void {
    const at = this.reserve(bytes.length)
    this.window.set(bytes, at)
  }

  /** Zeros up to `position`, which must not lie behind. */
  moveTo(position: number): void {
    let gap = position - this.position
    if (gap < 0) throw new RangeError(`${-gap} bytes back in a file that is written in order`)
    for (; gap > 0; gap = position - this.position) this.reserve(Math.min(gap, this.window.length))
  }

  flush(): void {
    const bytes = this.window.subarray(0, this.#used)
    this.#onBytes(bytes)
    for (let written = 0; written < bytes.length; ) written += writeSync(this.#fd, bytes, written, bytes.length - written, this.#start + written)
    this.#start += this.#used
    bytes.fill(0)
    this.#used = 0
  }
}
