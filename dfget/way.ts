// A way by which a file can come: through a daemon, or straight from its source.
import type { DfgetWords } from './read-options.ts'

export interface Received {
  /** Here already. */
  local: number
  peer: number
  supernode: number
  source: number
}

/** How far a download is; kept up to date by whoever brings it. */
export interface Snapshot {
  /** Bytes that are here, those of an earlier attempt included. */
  bytes: number
  length?: number
  received: Received
}

export interface FileJob {
  readonly words: DfgetWords
  readonly url: string
  /** Without secrets. */
  readonly shown: string
  /** As the user wrote it; `-`: standard output. */
  readonly output: string
  readonly snapshot: Snapshot
  readonly signal: AbortSignal
  /** Something worth a line when the user wants many. */
  readonly note: (line: string) => void
}

export interface Arrived {
  readonly route: 'node' | 'peer' | 'straight'
  readonly bytes: number
  readonly received: Received
  /** Checked, when one was asked for. */
  readonly digest?: string
  readonly contentType?: string
  /** Of an earlier attempt. */
  readonly resumedBytes?: number
}

export const nothing = (): Received => ({ local: 0, peer: 0, supernode: 0, source: 0 })
