// The memory that a layer's bytes pass through on their way between threads: input pieces, raw spans and their packed blocks, all reused.
import { PACK_MARGIN } from './block-packer.ts'
import { SPAN_LENGTH } from './layer-unpacker.ts'

export const PIECES = 4
export const PIECE_LENGTH = 256 * 1024
/** Spans being filled, packed, waiting for their turn or being written: enough for a thread of each kind never to wait. */
export const SPANS = 6

const PACKED_LENGTH = Math.ceil((SPAN_LENGTH + PACK_MARGIN) / 4096) * 4096
const SPANS_AT = PIECES * PIECE_LENGTH

/** Every thread has views of its own. Who may use which part is agreed by messages: a part belongs to whom it was sent last. */
export class IndexMemory {
  readonly shared: SharedArrayBuffer
  readonly pieces: readonly Uint8Array[]
  readonly raws: readonly Uint8Array[]
  readonly packs: readonly Uint8Array[]

  /** 13 MiB, of which the system gives what is touched. */
  constructor(shared = new SharedArrayBuffer(SPANS_AT + SPANS * (SPAN_LENGTH + PACKED_LENGTH))) {
    this.shared = shared
    this.pieces = Array.from({ length: PIECES }, (_, i) => Buffer.from(shared, i * PIECE_LENGTH, PIECE_LENGTH))
    this.raws = Array.from({ length: SPANS }, (_, i) => Buffer.from(shared, SPANS_AT + i * SPAN_LENGTH, SPAN_LENGTH))
    this.packs = Array.from({ length: SPANS }, (_, i) => Buffer.from(shared, SPANS_AT + SPANS * SPAN_LENGTH + i * PACKED_LENGTH, PACKED_LENGTH))
  }
}
