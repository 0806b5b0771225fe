// Where a resource's bytes came from and when: for the metrics, `skimmer explain` and the demo's "bytes before the first output".
import { Counter } from 'prom-client'
import type { Registry } from 'prom-client'

/** `registry`: indexed here from the image's registry; `source`: a file or blob that this node read from its source itself. */
export const SOURCES = ['local', 'peer', 'supernode', 'registry', 'source'] as const
export type Source = (typeof SOURCES)[number]
export type SourceBytes = Record<Source, number>

export interface FetchStats {
  readonly bytes: SourceBytes
  readonly blocks: SourceBytes
  /** What came when: milliseconds since 1970, in steps of 10 ms at least, oldest first. Ends after 20,000 steps; the sums go on. */
  readonly timeline: readonly { readonly at: number; readonly source: Source; readonly bytes: number }[]
  /** Bytes by peer id. */
  readonly peers: Readonly<Record<string, number>>
}

interface Ledger { bytes: SourceBytes; blocks: SourceBytes; timeline: { at: number; source: Source; bytes: number }[]; peers: Record<string, number> }
const STEP_MS = 10
const MAX_STEPS = 20_000

const none = (): SourceBytes => ({ local: 0, peer: 0, supernode: 0, registry: 0, source: 0 })

export class FetchAccounting {
  readonly #ledgers = new Map<string, Ledger>()
  readonly #bytes: Counter<'source'>
  readonly #blocks: Counter<'source'>

  constructor(metrics: Registry) {
    this.#bytes = new Counter({ name: 'skimmer_peer_fetched_bytes', help: 'Packed bytes of blocks, and bytes of layer indexes, that came here, by source', labelNames: ['source'], registers: [metrics] })
    this.#blocks = new Counter({ name: 'skimmer_peer_fetched_blocks', help: 'Blocks that came here, by source', labelNames: ['source'], registers: [metrics] })
  }

  /** A layer index or another object came. */
  addObject(digest: string, source: Source, bytes: number, peer: string): void {
    this.add(`object:${digest}`, source, bytes, peer, 0)
  }

  add(resource: string, source: Source, bytes: number, peer?: string, blocks = 1): void {
    let ledger = this.#ledgers.get(resource)
    if (ledger === undefined) {
      ledger = { bytes: none(), blocks: none(), timeline: [], peers: {} }
      this.#ledgers.set(resource, ledger)
    }
    ledger.bytes[source] += bytes
    ledger.blocks[source] += blocks
    if (peer !== undefined) ledger.peers[peer] = (ledger.peers[peer] ?? 0) + bytes
    const now = Date.now()
    const last = ledger.timeline.at(-1)
    if (last !== undefined && last.source === source && now - last.at < STEP_MS) last.bytes += bytes
    else if (ledger.timeline.length < MAX_STEPS) ledger.timeline.push({ at: now, source, bytes })
    this.#bytes.inc({ source }, bytes)
    if (blocks > 0) this.#blocks.inc({ source }, blocks)
  }

  /** What is known of a resource since this process started. */
  stats(resource: string): FetchStats {
    return this.#ledgers.get(resource) ?? { bytes: none(), blocks: none(), timeline: [], peers: {} }
  }

  /** Bytes by source that came until `time` (milliseconds since 1970) for some resources, an image's layers for instance. */
  until(resources: readonly string[], time: number): SourceBytes {
    const sum = none()
    for (const resource of resources) for (const step of this.stats(resource).timeline) if (step.at <= time) sum[step.source] += step.bytes
    return sum
  }

  /** Bytes by source of everything that came until `time`, layer indexes included. */
  total(time: number): SourceBytes {
    return this.until([...this.#ledgers.keys()], time)
  }

  forget(resource: string): void {
    this.#ledgers.delete(resource)
  }
}
