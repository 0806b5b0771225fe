// What the indexer's threads and the main thread say to each other. Bytes go through an IndexMemory, messages say where they are.
import { ERROR_CODES, SkimmerError } from '../oci/errors.ts'
import type { ErrorCode } from '../oci/errors.ts'
import type { PackedSpan } from './block-packer.ts'
import type { BlockTable } from './block-table.ts'
import type { UnpackOptions, UnpackState } from './layer-unpacker.ts'

/** A piece of work for a thread; each is answered once. */
export type Task =
  /** Unpack on, in the thread that the layer is bound to: maybe with a new piece of the blob, its end, or memory for more spans. */
  | { type: 'unpack'; piece?: { position: number; length: number }; end: boolean; spans: number[] }
  /** Pack the blocks of a span, in any thread. */
  | { type: 'pack'; span: number; rawLengths: number[]; level: number }
  /** Make the index of a layer that has ended, in the thread that it is bound to. */
  | { type: 'assemble'; blocks: BlockTable }

export type ToWorker =
  /** Said before anything else about this memory; pools number what they make. */
  | { type: 'memory'; memory: number; shared: SharedArrayBuffer }
  /** Binds a layer to the thread. */
  | { type: 'start'; job: number; memory: number; options: UnpackOptions }
  | { type: 'task'; job: number; memory: number; task: Task }
  /** A bound layer is done with or given up. */
  | { type: 'drop'; job: number }

export type Answer =
  | { type: 'unpacked'; state: UnpackState; spans: { span: number; rawLengths: number[] }[] }
  | { type: 'packed'; span: number; blocks: PackedSpan }
  | { type: 'assembled'; diffId: string; fileCount: number; encoded: Uint8Array<ArrayBuffer> }
  | { type: 'failed'; error: ErrorNote }

export type FromWorker = { job: number; answer: Answer }

export interface ErrorNote {
  readonly code: ErrorCode
  readonly message: string
  readonly details: Record<string, unknown>
}

export function noteError(error: unknown): ErrorNote {
  if (error instanceof SkimmerError) return { code: error.code, message: error.message, details: error.details }
  return { code: 'INTERNAL', message: `indexing a layer failed: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`, details: {} }
}

export function errorFromNote(note: ErrorNote): SkimmerError {
  return new SkimmerError(ERROR_CODES.includes(note.code) ? note.code : 'INTERNAL', note.message, { details: note.details })
}
