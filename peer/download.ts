// One file or blob on its way to this node: who uses it, how much is here, and reading it in order while it comes.
import type { EventEmitter } from 'node:events'
import type { DownloadHead, DownloadStats, ReadRange } from './download-request.ts'

export interface DownloadEvents {
  /** Something came; at most every 100 ms. */
  progress: [stats: DownloadStats]
  /** Whole, failed, or given up by its last user. */
  end: [stats: DownloadStats]
}

export declare class Download extends EventEmitter<DownloadEvents> {
  /** Short and unique in this process. */
  readonly id: string
  readonly key: string
  /** These two may change until the first bytes went to a reader: it starts again when the source changes under it. */
  get head(): DownloadHead
  get length(): number | undefined
  /** Resolves when all of it is in the store. Rejects with what went wrong; NO_SPACE when it is only passed through. */
  get whole(): Promise<void>
  /** Resources of its parts so far. */
  get resources(): string[]
  get ended(): boolean
  read(range?: ReadRange, options?: { signal?: AbortSignal }): AsyncIterable<Buffer>
  stats(): DownloadStats
  release(): void
}
