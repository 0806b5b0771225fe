// A token bucket: how uploads and background fetching keep under a rate in bytes per second.

/** Bursts of up to `burst` bytes, `rate` bytes per second in the long run; `initial` bytes are there at the start (default: the burst). A rate of `Infinity` never waits. */
export class TokenBucket {
  #rate: number
  #burst: number
  #tokens: number
  #filledAt: number
  readonly #clock: () => number

  constructor(rate: number, options: { burst?: number; initial?: number; clock?: () => number } = {}) {
    this.#rate = rate
    this.#burst = options.burst ?? Math.max(rate / 4, 1024 * 1024)
    this.#tokens = options.initial ?? this.#burst
    this.#clock = options.clock ?? performance.now.bind(performance)
    this.#filledAt = this.#clock()
  }

  /**
   * Take `bytes`. The bucket may go into debt, so that something larger than the burst still passes.
   * Returns how long to wait, milliseconds, before doing what was paid for.
   */
  take(bytes: number): number {
    if (this.#rate === Infinity) return 0
    const now = this.#clock()
    this.#tokens = Math.min(this.#burst, this.#tokens + ((now - this.#filledAt) / 1000) * this.#rate)
    this.#filledAt = now
    this.#tokens -= bytes
    return this.#tokens >= 0 ? 0 : (-this.#tokens / this.#rate) * 1000
  }

  /** Milliseconds until the bucket is out of debt: 0 when something may be taken now. */
  wait(): number {
    return this.take(0)
  }
}
