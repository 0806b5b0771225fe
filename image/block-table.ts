// The block table: how a resource's byte stream is cut into blocks, and each block's hash. Struct of arrays, shareable with threads.
import { SkimmerError } from '../oci/errors.ts'

export const CODEC_RAW = 0
export const CODEC_ZSTD = 1
export const HASH_LENGTH = 32
/** 2^23 blocks of 256 KiB are 2 TiB: more than any layer, little enough to keep their tables in memory. */
export const MAX_BLOCKS = 1 << 23

/**
 * Blocks are contiguous both in the stream ("raw") and in the pack ("packed"), so offsets have count + 1 entries and
 * lengths are differences. All arrays live in SharedArrayBuffers: FUSE threads read them without a copy.
 * Offsets are bytes; Float64 holds integers exactly to 2^53.
 */
export interface BlockTable {
  readonly count: number
  readonly rawOffsets: Float64Array<SharedArrayBuffer>
  readonly packedOffsets: Float64Array<SharedArrayBuffer>
  readonly codecs: Uint8Array<SharedArrayBuffer>
  /** sha256 of each block's packed bytes, 32 bytes each. */
  readonly hashes: Uint8Array<SharedArrayBuffer>
}

export interface BlockEntry {
  readonly rawLength: number
  readonly packedLength: number
  readonly codec: number
  readonly hash: Uint8Array
}

export const rawLength = (table: BlockTable): number => table.rawOffsets[table.count]
export const packedLength = (table: BlockTable): number => table.packedOffsets[table.count]
export const blockRawLength = (table: BlockTable, block: number): number => table.rawOffsets[block + 1] - table.rawOffsets[block]
export const blockPackedLength = (table: BlockTable, block: number): number => table.packedOffsets[block + 1] - table.packedOffsets[block]
export const blockHash = (table: BlockTable, block: number): Uint8Array => table.hashes.subarray(block * HASH_LENGTH, (block + 1) * HASH_LENGTH)

/** The block that holds the stream's byte at `offset`, or -1 past the end. */
export function blockAt(table: BlockTable, offset: number): number {
  if (offset < 0 || offset >= rawLength(table)) return -1
  let low = 0
  let high = table.count - 1
  while (low < high) {
    const middle = (low + high + 1) >>> 1
    if (table.rawOffsets[middle] <= offset) low = middle
    else high = middle - 1
  }
  return low
}

function emptyTable(count: number): BlockTable {
  return {
    count,
    rawOffsets: new Float64Array(new SharedArrayBuffer((count + 1) * 8)),
    packedOffsets: new Float64Array(new SharedArrayBuffer((count + 1) * 8)),
    codecs: new Uint8Array(new SharedArrayBuffer(count)),
    hashes: new Uint8Array(new SharedArrayBuffer(count * HASH_LENGTH)),
  }
}

/**
 * The table of `length` bytes in blocks of `blockBytes`, the last one shorter: stored as they are, so that the pack is the stream itself.
 * The hashes are zeros, which in an open resource means not known yet. No bytes, no blocks.
 * LIMIT_EXCEEDED over MAX_BLOCKS.
 */
export function fixedBlockTable(length: number, blockBytes: number): BlockTable {
  if (!Number.isSafeInteger(length) || length < 0 || !Number.isSafeInteger(blockBytes) || blockBytes < 1) throw new SkimmerError('INVALID_ARGUMENT', `${length} bytes in blocks of ${blockBytes}: not a table`)
  const count = Math.ceil(length / blockBytes)
  if (count > MAX_BLOCKS) throw new SkimmerError('LIMIT_EXCEEDED', `${length} bytes in blocks of ${blockBytes} are more than ${MAX_BLOCKS} blocks; use larger ones`)
  const table = emptyTable(count)
  for (let block = 1; block <= table.count; block++) table.rawOffsets[block] = Math.min(length, block * blockBytes)
  table.packedOffsets.set(table.rawOffsets)
  table.codecs.fill(CODEC_RAW)
  return table
}

export function buildBlockTable(entries: Iterable<BlockEntry> & { length: number }): BlockTable {
  const table = emptyTable(entries.length)
  let block = 0
  for (const entry of entries) {
    if (entry.hash.length !== HASH_LENGTH) throw new SkimmerError('INVALID_DATA', `block ${block}: hash has ${entry.hash.length} bytes, not ${HASH_LENGTH}`)
    table.rawOffsets[block + 1] = table.rawOffsets[block] + entry.rawLength
    table.packedOffsets[block + 1] = table.packedOffsets[block] + entry.packedLength
    table.codecs[block] = entry.codec
    table.hashes.set(entry.hash, block * HASH_LENGTH)
    block++
  }
  return table
}
