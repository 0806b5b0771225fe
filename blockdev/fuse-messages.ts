// What the daemon and its FUSE threads tell each other: messages, and the cells of shared memory that spare most of them.
import type { Need } from './fuse-responder.ts'
import type { Published, Room } from './published.ts'
import type { TouchLog } from './touch-log.ts'

/** Cells of the control array. VERSION counts news; a thread that has taken them in says so in its SEEN cell. */
export const CONTROL = { VERSION: 0, STOP: 1, THREADS: 2 } as const
/** Two cells a thread: BUSY (1 while it works on a request) and SEEN. */
export const busyCell = (thread: number): number => CONTROL.THREADS + thread * 2
export const seenCell = (thread: number): number => CONTROL.THREADS + thread * 2 + 1

/** Columns of a thread's counters. */
export const COUNT = { REQUESTS: 0, READS: 1, BYTES: 2, WAITS: 3 } as const
export const COUNTS = 4

export interface ThreadData {
  readonly fd: number
  readonly thread: number
  /** A reader blocks in read(2) on the fd; the answerer waits for jobs from the daemon. */
  readonly role: 'reader' | 'answerer'
  readonly control: Int32Array<SharedArrayBuffer>
  readonly counts: Float64Array<SharedArrayBuffer>
  readonly touches: TouchLog
  readonly cacheBytes: number
}

/** To a thread. */
export type News =
  | { readonly kind: 'publish'; readonly published: Published; readonly version: number }
  | { readonly kind: 'withdraw'; readonly room: Room; readonly name: string; readonly version: number }
  | { readonly kind: 'restored'; readonly version: number }
  /** For the answerer: answer this request now, with an errno when it failed. */
  | { readonly kind: 'answer'; readonly request: Uint8Array; readonly error: number }
  | { readonly kind: 'stop' }

/** From a thread. */
export type Report =
  | { readonly kind: 'park'; readonly unique: bigint; readonly pid: number; readonly request: Uint8Array; readonly needs: Need[]; readonly offset: number; readonly length: number }
  | { readonly kind: 'answered'; readonly unique: bigint; readonly failure?: string }
  | { readonly kind: 'interrupt'; readonly unique: bigint }
  /** The connection is gone: unmounted or aborted. */
  | { readonly kind: 'gone' }
  | { readonly kind: 'trouble'; readonly message: string }
