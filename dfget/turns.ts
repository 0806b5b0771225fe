// So many at once; the others wait in the order they came.
import { SkimmerError } from '../oci/errors.ts'

export class Turns {
  readonly #most: number
  readonly #mostWaiting: number
  readonly #waiting = new Set<() => void>()
  #taken = 0

  constructor(most: number, options: { mostWaiting?: number } = {}) {
    this.#most = most
    this.#mostWaiting = options.mostWaiting ?? 1_000
  }

  /** Answers what ends the turn. UNAVAILABLE: too many wait already; what the signal says when it ends the wait. */
  async take(signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted()
    if (this.#taken < this.#most) this.#taken++
    else {
      if (this.#waiting.size >= this.#mostWaiting) throw new SkimmerError('UNAVAILABLE', `${this.#taken} downloads run and ${this.#waiting.size} wait already: try again later`)
      await new Promise<void>((resolve, reject) => {
        const begin = (): void => {
          signal.removeEventListener('abort', leave)
          resolve()
        }
        const leave = (): void => {
          this.#waiting.delete(begin)
          reject(signal.reason)
        }
        this.#waiting.add(begin)
        signal.addEventListener('abort', leave, { once: true })
      })
    }
    let ended = false
    return () => {
      if (ended) return
      ended = true
      const next = this.#waiting.values().next().value
      if (next === undefined) this.#taken--
      else {
        this.#waiting.delete(next)
        next()
      }
    }
  }
}
