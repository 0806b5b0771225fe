// What Prometheus hears of files and blobs.
import { Counter, Gauge, Histogram } from 'prom-client'
import type { Registry as Metrics } from 'prom-client'
import type { PrioritySlots } from './priority-slots.ts'
import type { StreamRecord } from './stream-record.ts'
import type { StreamWork } from './stream-work.ts'

type Kind = StreamRecord['kind']

export class StreamMetrics {
  readonly #bytes: Counter<'kind'>
  readonly #results: Counter<'kind' | 'result'>
  readonly #seconds: Histogram<'kind'>

  constructor(registry: Metrics, { works, slots }: { works: ReadonlyMap<string, StreamWork>; slots: PrioritySlots }) {
    const registers = [registry]
    this.#bytes = new Counter({ name: 'skimmer_supernode_stream_source_bytes', help: 'Bytes of files and blobs read from their sources', labelNames: ['kind'], registers })
    this.#results = new Counter({ name: 'skimmer_supernode_streams_total', help: 'Files and blobs brought from their sources, by result', labelNames: ['kind', 'result'], registers })
    this.#seconds = new Histogram({ name: 'skimmer_supernode_stream_seconds', help: 'Time to bring a file or blob', labelNames: ['kind'], buckets: [0.01, 0.1, 1, 10, 100, 1000, 10_000], registers })
    void new Gauge({ name: 'skimmer_supernode_streams_in_work', help: 'Files and blobs being brought now, or waiting for it', registers, collect() { this.set(works.size) } })
    void new Gauge({ name: 'skimmer_supernode_streams_waiting', help: 'Files and blobs that wait for their turn to be brought or asked for', registers, collect() { this.set(slots.waiting) } })
    void new Gauge({ name: 'skimmer_supernode_stream_followers', help: 'Calls of nodes that follow a file or blob that is being brought', registers, collect() { this.set([...works.values()].reduce((sum, work) => sum + work.followers, 0)) } })
  }

  received(kind: Kind, bytes: number): void {
    this.#bytes.inc({ kind }, bytes)
  }

  /** `seconds`: of one that came. */
  ended(kind: Kind, result: string, seconds?: number): void {
    this.#results.inc({ kind, result })
    if (seconds !== undefined) this.#seconds.observe({ kind }, seconds)
  }
}
