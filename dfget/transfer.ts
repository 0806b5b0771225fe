// One call of `POST /v1/files`: what it is about, how far it is, and how it ended.
import { randomBytes } from 'node:crypto'
import { hasCode, SkimmerError } from '../oci/errors.ts'
import type { Download } from '../peer/download.ts'

/** The rate is of this last while, milliseconds. */
const RATE_MS = 2_000

/** waiting: for its turn, the supernode or the source; gone: the caller left. */
export type TransferState = 'waiting' | 'running' | 'done' | 'failed' | 'gone'

/** As the API tells it. */
export interface TransferAnswer {
  readonly id: string
  /** Without user, password and query. */
  readonly url: string
  readonly state: TransferState
  readonly startedAt: number
  readonly endedAt?: number
  readonly length?: number
  /** Bytes given to the caller. */
  readonly sent: number
  /** Bytes of it that this host has. */
  readonly stored: number
  /** Bytes by where they came from since the download began; who joins a running one sees its bytes too. */
  readonly received: { readonly local: number; readonly peer: number; readonly supernode: number; readonly source: number }
  /** Bytes that the supernode has read from the source so far. */
  readonly fetched?: number
  /** Bytes per second that came lately. */
  readonly rate: number
  readonly failed?: { readonly code: string; readonly message: string }
}

export class Transfer {
  readonly id = randomBytes(8).toString('hex')
  readonly url: string
  readonly startedAt = Date.now()
  state: TransferState = 'waiting'
  sent = 0
  endedAt: number | undefined
  #download: Download | undefined
  #failed: { code: string; message: string } | undefined
  #last: TransferAnswer | undefined
  readonly #samples: { at: number; bytes: number }[] = []
  readonly #sample = (): void => {
    const now = performance.now()
    this.#samples.push({ at: now, bytes: this.#arrived() })
    while (this.#samples.length > 2 && now - this.#samples[1].at > RATE_MS) this.#samples.shift()
  }

  constructor(url: string) {
    this.url = url
  }

  begins(download: Download): void {
    this.#download = download
    this.state = 'running'
    this.#sample()
    download.on('progress', this.#sample)
  }

  ends(error?: unknown): void {
    this.state = error === undefined ? 'done' : hasCode(error, 'ABORTED') ? 'gone' : 'failed'
    if (error !== undefined) this.#failed = { code: error instanceof SkimmerError ? error.code : 'INTERNAL', message: (error as Error).message }
    this.endedAt = Date.now()
    // The download and its tables are not kept for the sake of an answer.
    this.#last = this.answer()
    this.#download?.off('progress', this.#sample)
    this.#download = undefined
    this.#samples.length = 0
  }

  answer(): TransferAnswer {
    if (this.#last !== undefined) return this.#last
    const stats = this.#download?.stats()
    return {
      id: this.id,
      url: this.url,
      state: this.state,
      startedAt: this.startedAt,
      ...(this.endedAt !== undefined && { endedAt: this.endedAt }),
      ...(this.#download?.length !== undefined && { length: this.#download.length }),
      sent: this.sent,
      stored: stats?.storedBytes ?? 0,
      received: { local: stats?.local ?? 0, peer: stats?.peer ?? 0, supernode: stats?.supernode ?? 0, source: stats?.source ?? 0 },
      ...(stats?.fetched !== undefined && { fetched: stats.fetched }),
      rate: this.#rate(),
      ...(this.#failed !== undefined && { failed: this.#failed }),
    }
  }

  #arrived(): number {
    const stats = this.#download?.stats()
    return stats === undefined ? 0 : stats.peer + stats.supernode + stats.source
  }

  #rate(): number {
    const first = this.#samples[0]
    if (first === undefined) return 0
    return Math.round(((this.#arrived() - first.bytes) * 1000) / Math.max(1, performance.now() - first.at))
  }
}
