// So many at a time, the most urgent first: who waits for a slot may become more urgent while it waits.
import { SkimmerError } from '../oci/errors.ts'

/** 0 is the most urgent, 6 waits for everyone else. */
export const DEFAULT_PRIORITY = 3

export interface SlotWait {
  priority: number
}

interface Waiting extends SlotWait { start: () => void }

export class PrioritySlots {
  #free: number
  /** In the order of arrival. */
  readonly #waiting: Waiting[] = []

  constructor(slots: number) {
    this.#free = slots
  }

  get waiting(): number {
    return this.#waiting.length
  }

  get free(): number {
    return this.#free
  }

  /**
   * Resolves when its turn has come, with what gives the slot back (once; more do nothing). `wait.priority` is looked at when a slot gets free,
   * so it may be raised meanwhile. ABORTED by `signal` while it waits.
   */
  async take(wait: SlotWait, signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted()
    if (this.#free > 0) this.#free--
    else await this.#turn(wait, signal)
    let held = true
    return () => {
      if (held) this.#next()
      held = false
    }
  }

  #turn(wait: SlotWait, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const entry: Waiting = {
        get priority() { return wait.priority },
        start: () => {
          signal.removeEventListener('abort', gone)
          resolve()
        },
      }
      const gone = (): void => {
        this.#waiting.splice(this.#waiting.indexOf(entry), 1)
        reject(new SkimmerError('ABORTED', 'given up while waiting for a slot', { cause: signal.reason }))
      }
      signal.addEventListener('abort', gone, { once: true })
      this.#waiting.push(entry)
    })
  }

  #next(): void {
    let best = 0
    for (let at = 1; at < this.#waiting.length; at++) if (this.#waiting[at].priority < this.#waiting[best].priority) best = at
    const [next] = this.#waiting.splice(best, 1)
    if (next === undefined) this.#free++
    else next.start()
  }
}
