// How many fetches there were, how they ended and how long they took.
import { Counter, Histogram } from 'prom-client'
import type { Registry } from 'prom-client'
import { SkimmerError } from '../oci/errors.ts'

export class FetchMetrics {
  readonly #waits: Histogram<'priority'>
  readonly #failures: Counter<'priority' | 'code'>

  constructor(metrics: Registry) {
    const registers = [metrics]
    this.#waits = new Histogram({ name: 'skimmer_peer_fetch_seconds', help: 'Time from a wish for blocks to their arrival', labelNames: ['priority'], buckets: [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30], registers })
    this.#failures = new Counter({ name: 'skimmer_peer_fetch_failures_total', help: 'Wishes for blocks that ended in an error', labelNames: ['priority', 'code'], registers })
  }

  async time<T>(priority: string, work: Promise<T>): Promise<T> {
    const begun = performance.now()
    try {
      const result = await work
      this.#waits.observe({ priority }, (performance.now() - begun) / 1000)
      return result
    } catch (error) {
      this.#failures.inc({ priority, code: error instanceof SkimmerError ? error.code : 'INTERNAL' })
      throw error
    }
  }
}
