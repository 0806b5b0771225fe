// How fast and how prompt a peer is, from what it sent: bytes per second while busy, and the times to the first byte.

const SAMPLES = 32
const WINDOW_MS = 100

export class LinkSpeed {
  /** Bytes per second while something was asked for; undefined until something came. */
  rate: number | undefined
  #open = 0
  #windowStart = 0
  #windowBytes = 0
  readonly #times: number[] = []
  #nextTime = 0

  /** A request goes out. */
  begin(): void {
    if (this.#open++ === 0) {
      this.#windowStart = performance.now()
      this.#windowBytes = 0
    }
  }

  /** A request is over. */
  end(): void {
    if (--this.#open === 0) this.#measure(10)
  }

  received(bytes: number): void {
    this.#windowBytes += bytes
    this.#measure(WINDOW_MS)
  }

  /** The first byte of a demand request came after so many milliseconds. */
  answered(millis: number): void {
    this.#times[this.#nextTime] = millis
    this.#nextTime = (this.#nextTime + 1) % SAMPLES
  }

  /** The time within which 95 of 100 demand requests got their first byte, milliseconds; undefined with fewer than 4 known. */
  get promptness(): number | undefined {
    if (this.#times.length < 4) return undefined
    const sorted = this.#times.toSorted((a, b) => a - b)
    return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * 0.95))]
  }

  /** Median time to the first byte, milliseconds; undefined when none is known. */
  get latency(): number | undefined {
    return this.#times.length === 0 ? undefined : this.#times.toSorted((a, b) => a - b)[this.#times.length >>> 1]
  }

  #measure(atLeast: number): void {
    const now = performance.now()
    const elapsed = now - this.#windowStart
    if (elapsed < atLeast || this.#windowBytes === 0) return
    const rate = (this.#windowBytes / elapsed) * 1000
    this.rate = this.rate === undefined ? rate : this.rate * 0.7 + rate * 0.3
    this.#windowStart = now
    this.#windowBytes = 0
  }
}
