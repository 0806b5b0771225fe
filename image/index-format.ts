// The layer index as bytes: header, block table, file table. docs/format.md is its description, field by field.
import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib'
import { SkimmerError } from '../oci/errors.ts'
import { buildBlockTable, CODEC_RAW, CODEC_ZSTD, HASH_LENGTH, rawLength } from './block-table.ts'
import type { BlockTable } from './block-table.ts'
import { ColumnReader, ColumnWriter } from './byte-columns.ts'
import { decodeFileTable } from './file-table-decoder.ts'
import { FileTableEncoder } from './file-table-encoder.ts'
import { MAX_BLOCK_RAW_LENGTH, MAX_BLOCKS, MAX_FILE_TABLE_BYTES, MAX_FILES, MAX_STREAM_LENGTH } from './index-limits.ts'
import type { LayerIndex } from './layer-index.ts'
import { TAR_BLOCK } from './tar-header.ts'

export const INDEX_FORMAT_VERSION = 1
/** The line end in it shows when something treated an index as text. */
const MAGIC = Buffer.from('SKIMIDX\n', 'latin1')
const HEADER_LENGTH = 128
/** varints of at most 4 and 5 bytes, and the hash. */
const MAX_BLOCK_ENTRY = 9 + HASH_LENGTH
/** Small and made once, read often: worth more work than blocks are. */
const COMPRESSION_LEVEL = 6
/** Output is asked of zstd in pieces of at most this, and put together. */
const LARGEST_CHUNK = 16 * 1024 * 1024

/** What the header says, and the block table: all that moving and storing a layer needs. */
export interface LayerIndexHead {
  readonly diffId: string
  readonly layerDigest: string
  readonly layerSize: number
  readonly blocks: BlockTable
  readonly fileCount: number
}

/** The same index gives the same bytes (with the same zstd). Throws UNSUPPORTED when the layer is beyond the format's bounds. */
export function encodeLayerIndex(index: LayerIndex): Buffer {
  const files = new FileTableEncoder()
  for (const entry of index.files) files.add(entry)
  return assembleLayerIndex({ ...index, fileCount: files.count }, files)
}

/** For who has encoded the file table while the entries came by. */
export function assembleLayerIndex(head: LayerIndexHead, files: FileTableEncoder): Buffer {
  const streamLength = rawLength(head.blocks)
  if (head.blocks.count > MAX_BLOCKS || streamLength > MAX_STREAM_LENGTH) {
    throw new SkimmerError('UNSUPPORTED', `the layer has ${streamLength} bytes in ${head.blocks.count} blocks, beyond what an index may hold: it must be unpacked`)
  }
  const blockTable = encodeBlocks(head.blocks)
  const fileTable = files.finish()
  const packedBlocks = compress(blockTable)
  const packedFiles = compress(fileTable)
  const header = Buffer.alloc(HEADER_LENGTH)
  MAGIC.copy(header, 0)
  header.writeUInt32LE(INDEX_FORMAT_VERSION, 8)
  header.writeUInt32LE(HEADER_LENGTH, 12)
  digestBytes(head.diffId, 'diffId').copy(header, 16)
  digestBytes(head.layerDigest, 'layerDigest').copy(header, 48)
  header.writeBigUInt64LE(BigInt(head.layerSize), 80)
  header.writeBigUInt64LE(BigInt(streamLength), 88)
  ;[head.blocks.count, files.count, blockTable.length, packedBlocks.length, fileTable.length, packedFiles.length].forEach((value, position) => {
    header.writeUInt32LE(value, 96 + position * 4)
  })
  return Buffer.concat([header, packedBlocks, packedFiles])
}

/** Reads a whole index. Throws INVALID_DATA, naming what is wrong, for anything but a well-formed one of this version. */
export function decodeLayerIndex(bytes: Uint8Array): LayerIndex {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const header = readHeader(buffer)
  const blocks = decodeBlocks(buffer, header)
  const table = decompress(header.fileTable(buffer), header.fileTableLength, 'the file table')
  const files = decodeFileTable(table, header.fileCount, header.streamLength)
  return { diffId: header.diffId, layerDigest: header.layerDigest, layerSize: header.layerSize, blocks, files }
}

/** Reads all but the file table, which may be many times larger; it is neither decompressed nor checked. */
export function decodeLayerIndexHead(bytes: Uint8Array): LayerIndexHead {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const header = readHeader(buffer)
  const { diffId, layerDigest, layerSize, fileCount } = header
  return { diffId, layerDigest, layerSize, blocks: decodeBlocks(buffer, header), fileCount }
}

type Header = ReturnType<typeof readHeader>

function readHeader(bytes: Buffer) {
  if (bytes.length < HEADER_LENGTH || !bytes.subarray(0, MAGIC.length).equals(MAGIC)) throw invalid('it does not start with the header of an index')
  const version = bytes.readUInt32LE(8)
  if (version !== INDEX_FORMAT_VERSION) throw invalid(`its format version is ${version}; this Skimmer reads version ${INDEX_FORMAT_VERSION}`)
  if (bytes.readUInt32LE(12) !== HEADER_LENGTH) throw invalid('headerLength is wrong')
  const [blockCount, fileCount, blockTableLength, packedBlocks, fileTableLength, packedFiles] = [96, 100, 104, 108, 112, 116].map((at) => bytes.readUInt32LE(at))
  if (bytes.readBigUInt64LE(120) !== 0n) throw invalid('reserved bytes are not zero')
  const streamLength = integer(bytes, 88, MAX_STREAM_LENGTH, 'streamLength')
  if (blockCount > MAX_BLOCKS) throw invalid(`blockCount is ${blockCount}, more than ${MAX_BLOCKS}`)
  if (fileCount > MAX_FILES) throw invalid(`fileCount is ${fileCount}, more than ${MAX_FILES}`)
  if (blockTableLength > blockCount * MAX_BLOCK_ENTRY) throw invalid('blockTableLength does not fit blockCount')
  if (fileTableLength > MAX_FILE_TABLE_BYTES) throw invalid(`fileTableLength is ${fileTableLength}, more than ${MAX_FILE_TABLE_BYTES}`)
  if (bytes.length !== HEADER_LENGTH + packedBlocks + packedFiles) throw invalid(`it has ${bytes.length} bytes, not the ${HEADER_LENGTH + packedBlocks + packedFiles} its header speaks of`)
  return {
    diffId: `sha256:${bytes.toString('hex', 16, 48)}`,
    layerDigest: `sha256:${bytes.toString('hex', 48, 80)}`,
    layerSize: integer(bytes, 80, Number.MAX_SAFE_INTEGER, 'layerSize'),
    streamLength,
    blockCount,
    fileCount,
    blockTableLength,
    fileTableLength,
    blockTable: (whole: Buffer): Buffer => whole.subarray(HEADER_LENGTH, HEADER_LENGTH + packedBlocks),
    fileTable: (whole: Buffer): Buffer => whole.subarray(HEADER_LENGTH + packedBlocks),
  }
}

function encodeBlocks(blocks: BlockTable): Buffer {
  const lengths = new ColumnWriter()
  for (let block = 0; block < blocks.count; block++) {
    lengths.varint(blocks.rawOffsets[block + 1] - blocks.rawOffsets[block])
    // Only a raw block is as long packed as it is raw, so that its codec need not be said.
    lengths.varint(blocks.packedOffsets[block + 1] - blocks.packedOffsets[block])
  }
  return Buffer.concat([lengths.view(), blocks.hashes.subarray(0, blocks.count * HASH_LENGTH)])
}

function decodeBlocks(bytes: Buffer, header: Header): BlockTable {
  const { blockCount, blockTableLength, streamLength } = header
  const table = decompress(header.blockTable(bytes), blockTableLength, 'the block table')
  const hashStart = blockTableLength - blockCount * HASH_LENGTH
  if (hashStart < 0) throw invalid('the block table has not a hash for every block')
  const lengths = new ColumnReader(table.subarray(0, hashStart), 'the block table')
  const entries: { rawLength: number; packedLength: number; codec: number; hash: Uint8Array }[] = []
  let end = 0
  for (let block = 0; block < blockCount; block++) {
    const rawLength = lengths.varint(MAX_BLOCK_RAW_LENGTH)
    const packedLength = lengths.varint(rawLength)
    end += rawLength
    if (packedLength === 0) throw lengths.invalid(`has nothing in block ${block}`)
    if (end % TAR_BLOCK !== 0 && block !== blockCount - 1) throw lengths.invalid(`lets block ${block} end at ${end}, which is no multiple of ${TAR_BLOCK}`)
    const hash = table.subarray(hashStart + block * HASH_LENGTH, hashStart + (block + 1) * HASH_LENGTH)
    entries.push({ rawLength, packedLength, codec: packedLength === rawLength ? CODEC_RAW : CODEC_ZSTD, hash })
  }
  lengths.end()
  if (end !== streamLength) throw lengths.invalid(`covers ${end} bytes of a stream of ${streamLength}`)
  return buildBlockTable(entries)
}

function compress(table: Buffer): Buffer {
  return zstdCompressSync(table, {
    params: { [constants.ZSTD_c_compressionLevel]: COMPRESSION_LEVEL, [constants.ZSTD_c_contentSizeFlag]: 1 },
    pledgedSrcSize: table.length,
  })
}

/** Never makes more than the `length` bytes that the (bounded) header announced. */
function decompress(packed: Buffer, length: number, what: string): Buffer {
  let table: Buffer
  try {
    table = zstdDecompressSync(packed, { maxOutputLength: Math.max(length, 1), chunkSize: Math.min(Math.max(length, 64), LARGEST_CHUNK), params: { [constants.ZSTD_d_windowLogMax]: 27 } })
  } catch (error) {
    throw invalid(`${what} cannot be decompressed`, error)
  }
  if (table.length !== length) throw invalid(`${what} has ${table.length} bytes, not ${length}`)
  return table
}

function integer(bytes: Buffer, at: number, most: number, field: string): number {
  const value = bytes.readBigUInt64LE(at)
  if (value > BigInt(most)) throw invalid(`${field} is ${value}, more than ${most}`)
  return Number(value)
}

function digestBytes(digest: string, field: string): Buffer {
  if (!/^sha256:[0-9a-f]{64}$/.test(digest)) throw new SkimmerError('UNSUPPORTED', `layer index: ${field} ${digest} is no sha256 digest`)
  return Buffer.from(digest.slice(7), 'hex')
}

function invalid(what: string, cause?: unknown): SkimmerError {
  return new SkimmerError('INVALID_DATA', `layer index: ${what}`, { cause })
}
