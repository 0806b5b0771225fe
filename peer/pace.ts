// Paying for bytes before they are asked for: a limit of one download's own, and limits that it shares with others.
import { pause } from './pause.ts'
import { TokenBucket } from './token-bucket.ts'

/**
 * What is paid for at once. Several that pay into one bucket take turns in steps of this size, so that they share it by bytes, however large
 * the blocks of each are. The smallest block has as much.
 */
const STEP_BYTES = 64 * 1024

/**
 * A bucket for limits that must be exact: it starts empty, and what was not used is kept for a quarter of a second only. That much makes good
 * for timers that fire late, and is a fortieth of what passes in ten seconds.
 */
export function exactBucket(bytesPerSecond: number, options: { clock?: () => number } = {}): TokenBucket {
  return new TokenBucket(bytesPerSecond, { burst: bytesPerSecond / 4, initial: 0, clock: options.clock })
}

export class Pace {
  readonly #buckets: () => readonly TokenBucket[]
  readonly #pause: typeof pause

  constructor(limit: number | (() => readonly TokenBucket[]) | undefined, options: { pause?: typeof pause } = {}) {
    const own = typeof limit === 'number' && limit < Infinity ? [exactBucket(limit)] : []
    this.#buckets = typeof limit === 'function' ? limit : () => own
    this.#pause = options.pause ?? pause
  }

  /** Whether anything must be paid just now. */
  get free(): boolean {
    return this.#buckets().length === 0
  }

  /** Resolves when `bytes` are paid for. Rejects with the reason of `signal`. */
  async pay(bytes: number, signal: AbortSignal): Promise<void> {
    for (let left = bytes; left > 0; left -= STEP_BYTES) {
      const step = Math.min(left, STEP_BYTES)
      const wait = this.#buckets().reduce((longest, bucket) => Math.max(longest, bucket.take(step)), 0)
      if (wait > 0) await this.#pause(wait, signal)
      signal.throwIfAborted()
    }
  }

  /** For a stream whose chunks are as they come: answers what waits until a chunk of so many bytes is paid for. */
  stream(): (bytes: number, signal: AbortSignal) => Promise<void> | undefined {
    let paid = 0
    return (bytes, signal) => {
      if (this.free || paid >= bytes) {
        paid = Math.max(0, paid - bytes)
        return undefined
      }
      const due = Math.ceil((bytes - paid) / STEP_BYTES) * STEP_BYTES
      paid += due - bytes
      return this.pay(due, signal)
    }
  }
}
