// What each source said last while a resource was fetched: for the error that a reader gets when nothing helped.
import { SkimmerError } from '../oci/errors.ts'
import type { Ask, FetchTask } from './fetch-task.ts'

/** An error names so many sources at most. */
const NAMED = 8

export class FetchFailures {
  readonly #reasons = new Map<string, string>()

  note(source: string, reason: string): void {
    this.#reasons.set(source, reason)
  }

  clear(): void {
    this.#reasons.clear()
  }

  tried(asks: Iterable<Ask>): string {
    const sources = [...this.#reasons].map(([name, reason]) => `${name}: ${reason}`)
    for (const { peer } of asks) if (!this.#reasons.has(peer.id)) sources.push(`${peer.supernode ? 'supernode' : 'peer'} ${peer.id}: no answer`)
    return sources.length === 0 ? 'no peer, supernode or registry could be asked' : `tried ${sources.slice(0, NAMED).join('; ')}`
  }

  /** TIMEOUT when someone was asked and did not answer, UNAVAILABLE when there was nobody to ask. */
  outOfTime(resourceId: string, task: FetchTask, millis: number, asks: Iterable<Ask>): SkimmerError {
    return new SkimmerError(task.asks.length > 0 ? 'TIMEOUT' : 'UNAVAILABLE', `${resourceId}: block ${task.block} did not come within ${millis} ms; ${this.tried(asks)}`)
  }
}
