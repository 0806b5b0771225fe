// What the block store counts for Prometheus.
import { Counter, Gauge } from 'prom-client'
import type { Registry } from 'prom-client'
import type { StoreSpace } from './store-space.ts'

export class StoreMetrics {
  readonly #verified?: Counter
  readonly #corrupt?: Counter
  readonly #evictions?: Counter<'kind'>
  readonly #evictedBytes?: Counter<'kind'>
  readonly #proofs?: Counter<'result'>
  readonly #full?: Counter

  constructor(registry: Registry | undefined, space: StoreSpace, resources: () => number) {
    if (registry === undefined) return
    const registers = [registry]
    const gauge = new Gauge({
      name: 'skimmer_peer_store_used_bytes', help: 'Bytes in the block store, by what they are', labelNames: ['kind'], registers,
      collect: () => {
        for (const [kind, bytes] of Object.entries(space.used)) gauge.set({ kind }, bytes)
      },
    })
    new Gauge({ name: 'skimmer_peer_store_cap_bytes', help: 'Bytes the block store may take', registers }).set(space.capBytes)
    const count = new Gauge({
      name: 'skimmer_peer_store_resources_count', help: 'Resources in the block store', registers,
      collect: () => {
        count.set(resources())
      },
    })
    this.#verified = new Counter({ name: 'skimmer_peer_store_verified_blocks_total', help: 'Blocks whose hash was checked and right', registers })
    this.#corrupt = new Counter({ name: 'skimmer_peer_store_corrupt_blocks_total', help: 'Blocks whose hash was checked and wrong, offered or on disk', registers })
    this.#evictions = new Counter({ name: 'skimmer_peer_store_evictions_total', help: 'What was dropped to make room', labelNames: ['kind'], registers })
    this.#evictedBytes = new Counter({ name: 'skimmer_peer_store_evicted_bytes_total', help: 'Bytes dropped to make room', labelNames: ['kind'], registers })
    this.#proofs = new Counter({ name: 'skimmer_peer_store_proofs_total', help: 'Whole resources hashed against their diffID', labelNames: ['result'], registers })
    this.#full = new Counter({ name: 'skimmer_peer_store_refused_writes_total', help: 'Writes refused because the disk or the cap was full', registers })
  }

  verified(): void { this.#verified?.inc() }
  corrupt(): void { this.#corrupt?.inc() }
  evicted(kind: 'raw' | 'packed' | 'objects', bytes: number): void {
    this.#evictions?.inc({ kind })
    this.#evictedBytes?.inc({ kind }, bytes)
  }
  proof(result: 'proved' | 'quarantined' | 'failed'): void { this.#proofs?.inc({ result }) }
  refused(): void { this.#full?.inc() }
}
