// The downloads of a node: one in flight for each key, however many ask.
import type { Logger } from 'pino'
import { Counter, Gauge } from 'prom-client'
import type { Registry } from 'prom-client'
import { SkimmerError } from '../oci/errors.ts'
import { Download } from './download.ts'
import type { DownloadOptions } from './download.ts'
import type { DownloadRequest } from './download-request.ts'
import type { Peer } from './peer.ts'
import type { SourceReads } from './source-fill.ts'

export type DownloadsOptions = Partial<DownloadOptions>

const MIB = 1024 * 1024
const DEFAULTS: DownloadOptions = {
  windowBytes: 64 * MIB, batchBytes: 8 * MIB, demandAfterMs: 1_500, fullWindowBytes: 4 * MIB,
  lingerMs: 15_000, slowReaderMs: 30_000, reconnectMs: 30_000, stalledMs: 4_000, stalledConnectedMs: 20_000,
}

export class Downloads {
  readonly #peer: Peer
  readonly #logger: Logger
  readonly #options: DownloadOptions
  /** In flight. */
  readonly #byKey = new Map<string, Download>()
  /** Also those that are over, but still used. */
  readonly #all = new Set<Download>()
  readonly #uses = new Map<string, number>()
  readonly #reads: SourceReads = new Set()
  readonly #results: Counter<'result'>
  #stopped = false

  constructor(components: { peer: Peer; logger: Logger; metrics: Registry }, options: DownloadsOptions = {}) {
    this.#peer = components.peer
    this.#logger = components.logger
    this.#options = { ...DEFAULTS, ...options }
    const registers = [components.metrics]
    this.#results = new Counter({ name: 'skimmer_peer_downloads_total', help: 'Downloads of files and blobs that ended, by how', labelNames: ['result'], registers })
    const inFlight = this.#byKey
    void new Gauge({ name: 'skimmer_peer_downloads_running', help: 'Downloads of files and blobs in flight', registers, collect() { this.set(inFlight.size) } })
  }

  /**
   * Joins the download of the same key that is in flight, else begins one. Resolves when what the source said is known, and how the stream is cut
   * if its length is. Whoever gets it calls `release()` once. Errors: what the supernode or the source says (NOT_FOUND, UNAUTHORIZED, FORBIDDEN …),
   * UNAVAILABLE when neither can be reached, ABORTED by `signal`.
   */
  async open(request: DownloadRequest, options: { signal?: AbortSignal } = {}): Promise<Download> {
    if (this.#stopped) throw new SkimmerError('ABORTED', 'this peer is stopping')
    options.signal?.throwIfAborted()
    let download = this.#byKey.get(request.key)
    if (download === undefined) {
      download = new Download({
        peer: this.#peer, logger: this.#logger, reads: this.#reads,
        onPart: (resource, change) => this.#onPart(resource, change),
        onEnd: ended => {
          if (this.#byKey.get(ended.key) === ended) this.#byKey.delete(ended.key)
          this.#results.inc({ result: ended.stats().failed === undefined ? 'whole' : ended.stats().failed!.code })
        },
        onDropped: dropped => this.#all.delete(dropped),
      }, request, this.#options)
      this.#byKey.set(request.key, download)
      this.#all.add(download)
    }
    download.use()
    try {
      await download.ready(options.signal ?? new AbortController().signal)
      return download
    } catch (error) {
      download.release()
      if (options.signal?.aborted === true) throw new SkimmerError('ABORTED', `${request.name ?? request.key}: given up by the caller`, { cause: error })
      throw error
    }
  }

  /** All that are in flight or used. */
  list(): Download[] {
    return [...this.#all]
  }

  /** Ends all; what is here stays in the store. */
  async stop(): Promise<void> {
    this.#stopped = true
    await Promise.all([...this.#all].map(download => download.stop(new SkimmerError('ABORTED', 'this peer is stopping'))))
  }

  /** What came for a resource is counted as long as some download has to do with it. */
  #onPart(resource: string, change: 1 | -1): void {
    const uses = (this.#uses.get(resource) ?? 0) + change
    if (uses > 0) this.#uses.set(resource, uses)
    else {
      this.#uses.delete(resource)
      this.#peer.fetcher.accounting.forget(resource)
    }
  }
}
