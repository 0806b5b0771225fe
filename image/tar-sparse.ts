// Sparse files in a tar: GNU's old header maps and PAX sparse 0.0, 0.1 and 1.0, turned into extents of the stream.
import { SkimmerError } from '../oci/errors.ts'
import type { FileEntry } from './layer-index.ts'
import { decimal, MAX_META_LENGTH } from './pax.ts'
import type { PaxRecords } from './pax.ts'
import { invalidTar, TAR_BLOCK, tarNumber } from './tar-header.ts'

/** Where a piece of data belongs in the file; the pieces' bytes follow each other in the stream without gaps. */
export interface SparsePiece {
  readonly fileOffset: number
  readonly length: number
}

/** A hole costs nothing in a tar but a chunk index entry each in an image; no image needs files beyond this. */
export const MAX_SPARSE_SIZE = 2 ** 40

const OLD_HEADER_MAP = { from: 386, entries: 4 }
const OLD_EXTENSION_MAP = { from: 0, entries: 21 }

/** Reads one map of the old GNU format into `pieces`; true when one more extension block follows. */
export function readOldSparseMap(block: Buffer, isHeader: boolean, pieces: SparsePiece[], offset: number): boolean {
  const map = isHeader ? OLD_HEADER_MAP : OLD_EXTENSION_MAP
  for (let entry = 0; entry < map.entries; entry++) {
    const at = map.from + entry * 24
    if (block[at] === 0) break
    const fileOffset = tarNumber(block, at, 12)
    const length = tarNumber(block, at + 12, 12)
    if (fileOffset === undefined || length === undefined) throw invalidTar('a sparse map entry is not a number', offset)
    pieces.push({ fileOffset, length })
  }
  if (pieces.length * 24 > MAX_META_LENGTH) throw new SkimmerError('UNSUPPORTED', `tar: the sparse map at byte ${offset} is too long`)
  return block[map.from + map.entries * 24] !== 0
}

export interface PaxSparse {
  readonly version: '0.1' | '1.0'
  readonly name: string | undefined
  readonly size: number | undefined
  /** Version 0.x only: 1.0 has its map at the start of the data. */
  readonly pieces: SparsePiece[] | undefined
}

/** What the pax records say about sparseness; undefined for an ordinary file and for versions nobody knows, as in Go. */
export function paxSparse(records: PaxRecords, offset: number): PaxSparse | undefined {
  const major = records.get('GNU.sparse.major') ?? ''
  const minor = records.get('GNU.sparse.minor') ?? ''
  const map = records.get('GNU.sparse.map') ?? ''
  const isOld = (major === '0' && (minor === '0' || minor === '1')) || (major === '' && minor === '' && map !== '')
  if (!isOld && !(major === '1' && minor === '0')) return undefined
  const sizeText = records.get('GNU.sparse.size') || records.get('GNU.sparse.realsize') || ''
  const size = sizeText === '' ? undefined : decimal(sizeText)
  if (sizeText !== '' && size === undefined) throw invalidTar('the size of a sparse file is not a number', offset)
  const name = records.get('GNU.sparse.name') || undefined
  if (name?.includes('\0')) throw invalidTar('the name of a sparse file has a NUL byte', offset)
  if (!isOld) return { version: '1.0', name, size, pieces: undefined }
  const count = decimal(records.get('GNU.sparse.numblocks') ?? '')
  const numbers = map === '' ? [] : map.split(',')
  if (count === undefined || count < 0 || numbers.length !== 2 * count) throw invalidTar('a sparse map has not the number of entries it claims', offset)
  return { version: '0.1', name, size, pieces: piecesOf(numbers, offset) }
}

function piecesOf(numbers: string[], offset: number): SparsePiece[] {
  const pieces: SparsePiece[] = []
  for (let i = 0; i + 1 < numbers.length; i += 2) {
    const fileOffset = decimal(numbers[i])
    const length = decimal(numbers[i + 1])
    if (fileOffset === undefined || length === undefined) throw invalidTar('a sparse map entry is not a number', offset)
    pieces.push({ fileOffset, length })
  }
  return pieces
}

/** The map of PAX sparse 1.0: decimal numbers, a line each, in as many whole blocks of the data as they need. */
export class SparseMapReader {
  #lines: string[] = []
  #rest = ''
  #bytes = 0
  readonly #offset: number

  constructor(offset: number) {
    this.#offset = offset
  }

  /** Takes one 512-byte block; returns the pieces once the map is whole. */
  add(block: Buffer): SparsePiece[] | undefined {
    this.#bytes += TAR_BLOCK
    if (this.#bytes > MAX_META_LENGTH) throw new SkimmerError('UNSUPPORTED', `tar: the sparse map at byte ${this.#offset} is too long`)
    const lines = (this.#rest + block.toString('latin1', 0, TAR_BLOCK)).split('\n')
    this.#rest = lines.pop() ?? ''
    for (const line of lines) this.#lines.push(line)
    if (this.#lines.length === 0) return undefined
    const count = decimal(this.#lines[0])
    if (count === undefined || count < 0) throw invalidTar('a sparse map without its number of entries', this.#offset)
    if (this.#lines.length < 1 + 2 * count) return undefined
    return piecesOf(this.#lines.slice(1, 1 + 2 * count), this.#offset)
  }
}

/**
 * Checks a map against the file and turns it into extents. `dataOffset` and `dataLength` are of the packed data in the stream.
 * UNSUPPORTED when an extent does not start at a multiple of 512 in the file and in the stream: no block device could show it.
 */
export function sparseExtents(pieces: readonly SparsePiece[], size: number, dataOffset: number, dataLength: number, offset: number): NonNullable<FileEntry['extents']> {
  if (size < 0) throw invalidTar('a sparse file has a negative size', offset)
  if (size > MAX_SPARSE_SIZE) throw new SkimmerError('UNSUPPORTED', `tar: the sparse file at byte ${offset} is larger than ${MAX_SPARSE_SIZE} bytes`)
  const extents: { fileOffset: number; offset: number; length: number }[] = []
  let fileEnd = 0
  let used = 0
  for (const { fileOffset, length } of pieces) {
    if (length < 0 || fileOffset < fileEnd || fileOffset + length > size) throw invalidTar('a sparse map that does not fit its file', offset)
    fileEnd = fileOffset + length
    if (length === 0) continue
    const last = extents.at(-1)
    const follows = last !== undefined && last.fileOffset + last.length === fileOffset
    if (!follows && (fileOffset % TAR_BLOCK !== 0 || used % TAR_BLOCK !== 0)) throw unaligned(offset)
    if (follows) last.length += length
    else extents.push({ fileOffset, offset: dataOffset + used, length })
    used += length
  }
  if (used !== dataLength) throw invalidTar('a sparse map that does not match the data', offset)
  const last = extents.at(-1)
  if (last !== undefined && last.length % TAR_BLOCK !== 0 && last.fileOffset + last.length !== size) throw unaligned(offset)
  return extents
}

function unaligned(offset: number): SkimmerError {
  return new SkimmerError('UNSUPPORTED', `tar: the sparse file at byte ${offset} has data that does not start or end at a multiple of ${TAR_BLOCK}; its layer must be unpacked`)
}
