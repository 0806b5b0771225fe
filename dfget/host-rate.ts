// The rate of all downloads through one process, exact in sum, with each one's own limit.
import { SkimmerError } from '../oci/errors.ts'
import { exactBucket } from '../peer/pace.ts'
import { pause } from '../peer/pause.ts'
import { TokenBucket } from '../peer/token-bucket.ts'

/** What was not used is kept for so long, in seconds of the rate: enough that a late timer of a busy machine loses nothing, and a fortieth of ten seconds. */
const BURST_SECONDS = 0.25
/** Over this time the use is averaged, milliseconds. */
const USE_MS = 1_000
/** Downloads take turns in steps of this size, as those of the peer do: so they share by bytes, and what a slow one leaves others take. */
const STEP_BYTES = 64 * 1024

type Clock = () => number

/**
 * Bytes per second over all lanes together. The smallest limit that anyone names counts: the configuration's, those that running downloads were
 * given for the whole host (`total`), and this process's part of what several processes share (`share`).
 */
export class HostRate {
  readonly #configured: number
  readonly #clock: Clock
  readonly #lanes = new Set<Lane>()
  #share = Infinity
  #tokens = 0
  #filledAt: number
  #use = 0
  #usedAt: number
  #readyAt = -Infinity

  /** `bytesPerSecond` 0 or undefined: no limit of its own. */
  constructor(options: { bytesPerSecond?: number; clock?: Clock } = {}) {
    this.#configured = options.bytesPerSecond || Infinity
    this.#clock = options.clock ?? performance.now.bind(performance)
    this.#filledAt = this.#usedAt = this.#clock()
  }

  /** A download begins. `total` is what its user wants for the whole host while it runs. */
  lane(limits: { bytesPerSecond?: number; total?: number } = {}): Lane {
    this.#fill()
    const lane = new Lane(this, { own: limits.bytesPerSecond || Infinity, total: limits.total || Infinity, clock: this.#clock })
    this.#lanes.add(lane)
    return lane
  }

  /** Bytes per second that count now; Infinity: no limit. */
  get limit(): number {
    return Math.min(this.named, this.#share)
  }

  /** The smallest limit that somebody here names for the host; Infinity: nobody does. */
  get named(): number {
    let least = this.#configured
    for (const lane of this.#lanes) least = Math.min(least, lane.total)
    return least
  }

  /** This process's part of a limit that it has together with others. */
  share(bytesPerSecond: number): void {
    this.#fill()
    this.#share = bytesPerSecond
  }

  /** Downloads that run. */
  get lanes(): number {
    return this.#lanes.size
  }

  /** Bytes per second used lately, and whether somebody waits because of the limit. */
  use(): { bytesPerSecond: number; hungry: boolean } {
    const now = this.#clock()
    return { bytesPerSecond: this.#used(now), hungry: now < this.#readyAt }
  }

  /** For lanes: milliseconds until `bytes` are paid. */
  charge(bytes: number): number {
    const limit = this.#fill()
    const now = this.#filledAt
    if (bytes > 0) {
      this.#use = this.#used(now) + (bytes * 1000) / USE_MS
      this.#usedAt = now
    }
    if (limit === Infinity) return 0
    this.#tokens -= bytes
    const wait = this.#tokens >= 0 ? 0 : (-this.#tokens / limit) * 1000
    this.#readyAt = now + wait
    return wait
  }

  /** For lanes. */
  forget(lane: Lane): void {
    this.#fill()
    this.#lanes.delete(lane)
  }

  #used(now: number): number {
    return this.#use * Math.exp((this.#usedAt - now) / USE_MS)
  }

  /** At the rate that counted until now; whatever comes next counts from here on. */
  #fill(): number {
    const limit = this.limit
    const now = this.#clock()
    if (limit === Infinity) this.#tokens = 0
    else this.#tokens = Math.min(limit * BURST_SECONDS, this.#tokens + ((now - this.#filledAt) / 1000) * limit)
    this.#filledAt = now
    return limit
  }
}

/** One download's way through: a bucket as the peer's downloads know them, which pays for itself and at the host. */
export class Lane extends TokenBucket {
  /** Bytes per second that its user wants for the whole host. */
  readonly total: number
  readonly #host: HostRate
  readonly #own: TokenBucket

  constructor(host: HostRate, options: { own: number; total: number; clock: Clock }) {
    super(Infinity)
    this.total = options.total
    this.#host = host
    this.#own = exactBucket(options.own, { clock: options.clock })
  }

  override take(bytes: number): number {
    return Math.max(this.#host.charge(bytes), this.#own.take(bytes))
  }

  /** Resolves when `bytes` may be asked for or read. ABORTED as soon as the signal says so. */
  async pay(bytes: number, signal: AbortSignal = new AbortController().signal): Promise<void> {
    for (let left = bytes; left > 0; left -= STEP_BYTES) {
      if (signal.aborted) throw signal.reason instanceof SkimmerError ? signal.reason : new SkimmerError('ABORTED', 'the download was given up', { cause: signal.reason })
      const wait = this.take(Math.min(left, STEP_BYTES))
      if (wait > 0) await pause(wait, signal)
    }
  }

  /** The download is over. */
  end(): void {
    this.#host.forget(this)
  }
}
