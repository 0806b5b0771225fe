// The rate of all downloads through one process: exact in sum, shared fairly by the downloads that run, with each one's own limit.
import { SkimmerError } from '../oci/errors.ts'
import { TokenBucket } from '../peer/token-bucket.ts'

/**
 * What may come at once after a pause, in seconds of the rate. Small, so that ten seconds are exact to a hundredth; large enough that a late
 * timer loses nothing.
 */
const BURST_SECONDS = 0.1
/** A download that took nothing for this long does not count among those that share. */
const IDLE_MS = 1_000
/** Over this time a download's use is averaged. */
const USE_MS = 1_000
/** A payment larger than this much time of the whole rate waits in steps, so that others get their turns. */
const STEP_BYTES = 256 * 1024

type Clock = () => number

/**
 * Bytes per second over all lanes together. The smallest limit that anyone names counts: the configuration's, the share of a limit that
 * several processes have together (`share`), and those that running downloads were given for the whole host.
 */
export class HostRate {
  readonly #configured: number
  readonly #clock: Clock
  readonly #lanes = new Set<Lane>()
  #share = Infinity
  #tokens = 0
  #filledAt: number

  /** `bytesPerSecond` 0 or undefined: no limit of its own. */
  constructor(options: { bytesPerSecond?: number; clock?: Clock } = {}) {
    this.#configured = options.bytesPerSecond || Infinity
    this.#clock = options.clock ?? performance.now.bind(performance)
    this.#filledAt = this.#clock()
  }

  /** A download begins. `total` is what its user wants for the whole host while it runs. */
  lane(limits: { bytesPerSecond?: number; total?: number } = {}): Lane {
    this.#fill()
    const lane = new Lane(this, { own: limits.bytesPerSecond || Infinity, total: limits.total || Infinity, clock: this.#clock })
    this.#lanes.add(lane)
    return lane
  }

  /** Bytes per second that count now; Infinity: none. */
  get limit(): number {
    let least = Math.min(this.#configured, this.#share)
    for (const lane of this.#lanes) least = Math.min(least, lane.total)
    return least
  }

  /** The smallest limit that downloads here name for the host, their processes' share left out; Infinity: none. */
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

  get lanes(): number {
    return this.#lanes.size
  }

  /** Bytes per second used lately, and whether some download waits for its turn. */
  use(): { bytesPerSecond: number; hungry: boolean } {
    const now = this.#clock()
    let bytesPerSecond = 0
    let hungry = false
    for (const lane of this.#lanes) {
      bytesPerSecond += lane.used(now)
      hungry ||= lane.waitsForHost(now)
    }
    return { bytesPerSecond, hungry }
  }

  /** For lanes: milliseconds until `bytes` are paid. */
  charge(bytes: number): number {
    const limit = this.#fill()
    if (limit === Infinity) return 0
    this.#tokens -= bytes
    return this.#tokens >= 0 ? 0 : (-this.#tokens / limit) * 1000
  }

  /** For lanes: what one may take while others use theirs: an equal part, and what they leave. */
  fairRate(mine: Lane): number {
    const limit = this.limit
    if (limit === Infinity) return Infinity
    const now = this.#clock()
    const sharing = [...this.#lanes].filter((lane) => lane === mine || lane.sharing(now))
    const part = limit / sharing.length
    let others = 0
    for (const lane of sharing) if (lane !== mine) others += Math.min(part, lane.own, lane.waitsForHost(now) ? Infinity : lane.used(now))
    return Math.max(part, limit - others)
  }

  /** For lanes. */
  forget(lane: Lane): void {
    this.#fill()
    this.#lanes.delete(lane)
  }

  /** At the rate that counted until now; the new one counts from here on. */
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
  /** Bytes per second of this download alone. */
  readonly own: number
  readonly total: number
  readonly #host: HostRate
  readonly #clock: Clock
  #tokens = 0
  #filledAt: number
  #use = 0
  #usedAt: number
  #takenAt = -Infinity
  /** Until then the last payment waits, and how long it would wait for its own limit alone. */
  #readyAt = -Infinity
  #ownReadyAt = -Infinity
  #ownTokens = 0

  constructor(host: HostRate, options: { own: number; total: number; clock: Clock }) {
    super(Infinity)
    this.own = options.own
    this.total = options.total
    this.#host = host
    this.#clock = options.clock
    this.#filledAt = this.#usedAt = this.#clock()
  }

  override take(bytes: number): number {
    const now = this.#clock()
    const fair = this.#host.fairRate(this)
    const elapsed = (now - this.#filledAt) / 1000
    this.#filledAt = now
    this.#tokens = fair === Infinity ? 0 : Math.min(fair * BURST_SECONDS, this.#tokens + elapsed * fair)
    this.#ownTokens = this.own === Infinity ? 0 : Math.min(this.own * BURST_SECONDS, this.#ownTokens + elapsed * this.own)
    if (bytes > 0) {
      this.#use = this.used(now) + (bytes * 1000) / USE_MS
      this.#usedAt = this.#takenAt = now
    }
    const wait = (tokens: number, rate: number): number => (tokens >= 0 ? 0 : (-tokens / rate) * 1000)
    const atHost = this.#host.charge(bytes)
    const shared = Math.max(atHost, fair === Infinity ? 0 : wait((this.#tokens -= bytes), fair))
    const alone = this.own === Infinity ? 0 : wait((this.#ownTokens -= bytes), this.own)
    this.#readyAt = now + shared
    this.#ownReadyAt = now + alone
    return Math.max(shared, alone)
  }

  /** Resolves when `bytes` may be asked for or read. ABORTED as soon as the signal says so. */
  async pay(bytes: number, signal?: AbortSignal): Promise<void> {
    for (let left = bytes; left > 0; left -= STEP_BYTES) {
      signal?.throwIfAborted()
      const wait = this.take(Math.min(left, STEP_BYTES))
      if (wait > 0) await sleep(wait, signal)
    }
  }

  /** Bytes per second, averaged. */
  used(now: number): number {
    return this.#use * Math.exp((this.#usedAt - now) / USE_MS)
  }

  /** True while it takes its part, or waits for it. */
  sharing(now: number): boolean {
    return now < this.#readyAt || now - this.#takenAt < IDLE_MS
  }

  /** True while the host's limit, and not its own, holds it up. */
  waitsForHost(now: number): boolean {
    return now < this.#readyAt && this.#ownReadyAt <= this.#readyAt
  }

  /** The download is over. */
  end(): void {
    this.#host.forget(this)
  }
}

async function sleep(ms: number, signal: AbortSignal | undefined): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const timer = setTimeout(done, ms)
    function done(): void {
      signal?.removeEventListener('abort', stop)
      resolve()
    }
    function stop(): void {
      clearTimeout(timer)
      reject(signal?.reason instanceof SkimmerError ? signal.reason : new SkimmerError('ABORTED', 'the download was given up', { cause: signal?.reason }))
    }
    signal?.addEventListener('abort', stop, { once: true })
  })
}
