// What the indexer's threads and the main thread say to each other.
import { ERROR_CODES, SkimmerError } from '../oci/errors.ts'
import type { ErrorCode } from '../oci/errors.ts'
import type { IndexOptions } from './indexer.ts'

/** What of IndexOptions can be sent: the sink and the signal stay behind. */
export type JobOptions = Omit<IndexOptions, 'sink' | 'signal'>

export type ToWorker =
  | { type: 'start'; job: number; options: JobOptions }
  /** A piece of the blob, its memory transferred. At most INPUT_CREDIT pieces are under way. */
  | { type: 'piece'; job: number; bytes: Uint8Array<ArrayBuffer> }
  | { type: 'end'; job: number }
  /** The input failed or was given up; the error itself stays in the main thread. */
  | { type: 'fail'; job: number }
  /** The sink has taken so many bytes of packed blocks. */
  | { type: 'taken'; job: number; bytes: number }

export type FromWorker =
  /** The worker wants one more piece. */
  | { type: 'want'; job: number }
  /** Packed blocks one after another, in order. */
  | { type: 'blocks'; job: number; packed: Uint8Array<ArrayBuffer>; blocks: BlockNote[] }
  | { type: 'done'; job: number; encoded: Uint8Array<ArrayBuffer> }
  | { type: 'failed'; job: number; error: ErrorNote }

export interface BlockNote {
  readonly packedLength: number
  readonly rawLength: number
  readonly codec: number
  readonly hash: Uint8Array
}

export interface ErrorNote {
  readonly code: ErrorCode
  readonly message: string
  readonly details: Record<string, unknown>
}

/** Pieces of the blob that may be on their way to a worker or wait in it, a job. */
export const INPUT_CREDIT = 4
export const INPUT_PIECE_LENGTH = 256 * 1024
/** Packed bytes that may be on their way to the sink, a job. */
export const OUTPUT_CREDIT = 4 * 1024 * 1024
export const OUTPUT_BATCH = 512 * 1024

export function noteError(error: unknown): ErrorNote {
  if (error instanceof SkimmerError) return { code: error.code, message: error.message, details: error.details }
  return { code: 'INTERNAL', message: `indexing a layer failed: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`, details: {} }
}

export function errorFromNote(note: ErrorNote): SkimmerError {
  return new SkimmerError(ERROR_CODES.includes(note.code) ? note.code : 'INTERNAL', note.message, { details: note.details })
}
