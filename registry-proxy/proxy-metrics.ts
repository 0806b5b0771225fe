// What the registry proxy counts. No label comes from outside.
import { Counter, Gauge, Histogram } from 'prom-client'
import type { Registry } from 'prom-client'
import type { Outcome } from './answers.ts'

export class ProxyMetrics {
  readonly #requests: Counter
  readonly #bytes: Counter
  readonly #seconds: Histogram
  readonly #connections: Gauge

  constructor(registry: Registry, connections: () => Promise<number>) {
    const registers = [registry]
    this.#requests = new Counter({
      name: 'skimmer_proxy_requests_total', registers, labelNames: ['kind', 'outcome'],
      help: 'Requests of clients by kind (ping, manifest, blob, tags, referrers, other) and outcome: hit (from this machine), miss (fetched), passed (the registry\'s own answer), stale (the registry cannot be asked), refused, missing, invalid, failed, gone (the client went)',
    })
    this.#bytes = new Counter({ name: 'skimmer_proxy_sent_bytes', registers, help: 'Bytes of blobs given to clients' })
    this.#seconds = new Histogram({ name: 'skimmer_proxy_request_seconds', registers, labelNames: ['kind'], buckets: [0.005, 0.02, 0.1, 0.3, 1, 3, 10, 30, 120], help: 'Time from a request to the end of its answer' })
    this.#connections = new Gauge({ name: 'skimmer_proxy_connections', registers, help: 'Connections of clients', collect: async () => this.#connections.set(await connections()) })
  }

  answered(kind: string, outcome: Outcome, seconds: number): void {
    this.#requests.inc({ kind, outcome })
    this.#seconds.observe({ kind }, seconds)
  }

  sent(bytes: number): void {
    this.#bytes.inc(bytes)
  }
}
