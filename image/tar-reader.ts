// The streaming tar reader: takes an uncompressed layer in pieces of any size, gives its entries and where their data lies.
import { SkimmerError } from '../oci/errors.ts'
import type { FileEntry, FileType } from './layer-index.ts'
import { MAX_META_LENGTH, parsePaxRecords } from './pax.ts'
import type { PaxRecords } from './pax.ts'
import { checkRecords, fileEntry, memberDataLength, memberType } from './tar-entry.ts'
import type { Member } from './tar-entry.ts'
import { invalidTar, isZeroBlock, padded, parseTarHeader, TAR_BLOCK, tarNumber, tarString } from './tar-header.ts'
import { paxSparse, readOldSparseMap, SparseMapReader, sparseExtents } from './tar-sparse.ts'
import type { SparsePiece } from './tar-sparse.ts'

const NO_RECORDS: PaxRecords = new Map()
const META_TYPES = 'xgLK'

/**
 * What the reader finds, in tar order. `dataOffset` is where the entry's data starts in the stream (a multiple of 512) and
 * `dataLength` its bytes there without padding: 0 for all but files.
 */
export type OnEntry = (entry: FileEntry, dataOffset: number, dataLength: number) => void

type Step = 'header' | 'second zero' | 'meta' | 'sparse extension' | 'sparse map' | 'data' | 'padding' | 'end'

/** A sparse file whose map is still being read. */
interface SparseFile {
  readonly member: Member
  readonly name: string | undefined
  readonly size: number
  readonly pieces: SparsePiece[]
  readonly map: SparseMapReader
  /** Of the data in the stream, less the map's blocks read so far; and its padding. */
  dataLength: number
  readonly padding: number
}

/**
 * Push parser. Its measure is what containerd makes of a tar through Go's archive/tar: pax records win over ustar fields, GNU
 * long names over both; a `g` header is passed over and forgets what stood before it; the size of a link is ignored; a
 * '0'-typed name with a trailing slash is a file, an old '\0'-typed one a directory; two zero blocks end the archive and what
 * follows is data of no one; an archive may end without them, and without the last padding.
 *
 * Throws INVALID_DATA for a broken tar, UNSUPPORTED for one that is legal but beyond what can be shown lazily. After a throw
 * the reader must not be used any more.
 */
export class TarReader {
  readonly #onEntry: OnEntry
  /** Bytes of the stream taken so far. */
  #offset = 0
  #step: Step = 'header'
  /** Where the block or meta data that is being gathered starts, and its first part when it did not come in one piece. */
  #itemOffset = 0
  #partial = Buffer.allocUnsafe(TAR_BLOCK)
  #partialLength = 0
  #metaType = ''
  #metaLength = 0
  #remaining = 0
  #padding = 0
  #records = NO_RECORDS
  #longName = ''
  #longLink = ''
  #sparse: SparseFile | undefined

  constructor(onEntry: OnEntry) {
    this.#onEntry = onEntry
  }

  push(chunk: Uint8Array): void {
    const bytes = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength)
    const start = this.#offset
    let at = 0
    while (at < bytes.length) {
      at += this.#take(bytes, at)
      this.#offset = start + at
    }
  }

  /** Call once after the last piece: throws INVALID_DATA when the tar ends inside an entry. */
  end(): void {
    const between = (this.#step === 'header' || this.#step === 'second zero') && this.#partialLength === 0
    if (!between && this.#step !== 'end' && this.#step !== 'padding') throw invalidTar('the archive is cut off', this.#offset)
  }

  /** Handles what it can of bytes[at…] in the current step; returns how many bytes were used (at least one). */
  #take(bytes: Buffer, at: number): number {
    if (this.#step === 'end') return bytes.length - at
    if (this.#step === 'data' || this.#step === 'padding') {
      const used = Math.min(bytes.length - at, this.#remaining)
      this.#remaining -= used
      if (this.#remaining === 0) this.#next()
      return used
    }
    if (this.#partialLength === 0) this.#itemOffset = this.#offset
    return this.#gather(bytes, at, this.#step === 'meta' ? this.#metaLength : TAR_BLOCK)
  }

  /** Hands on `wanted` contiguous bytes: a view of the piece when it holds them all, else a copy put together over several. */
  #gather(bytes: Buffer, at: number, wanted: number): number {
    if (this.#partialLength === 0 && bytes.length - at >= wanted) {
      this.#item(bytes.subarray(at, at + wanted))
      return wanted
    }
    if (this.#partial.length < wanted) this.#partial = Buffer.concat([this.#partial.subarray(0, this.#partialLength)], wanted)
    const used = Math.min(bytes.length - at, wanted - this.#partialLength)
    bytes.copy(this.#partial, this.#partialLength, at, at + used)
    this.#partialLength += used
    if (this.#partialLength === wanted) {
      this.#partialLength = 0
      this.#item(this.#partial.subarray(0, wanted))
    }
    return used
  }

  #item(data: Buffer): void {
    const offset = this.#itemOffset
    if (this.#step === 'meta') this.#meta(data, offset)
    else if (this.#step === 'sparse map') this.#sparseMap(data, offset)
    else if (this.#step === 'sparse extension') {
      const sparse = this.#sparse as SparseFile
      if (!readOldSparseMap(data, false, sparse.pieces, offset)) this.#emitSparse(sparse, sparse.pieces, offset + TAR_BLOCK)
    } else if (this.#step === 'second zero') {
      if (!isZeroBlock(data)) throw invalidTar('a zero block inside the archive', offset)
      this.#step = 'end'
    } else if (isZeroBlock(data)) this.#step = 'second zero'
    else this.#header(data, offset)
  }

  #header(block: Buffer, offset: number): void {
    const header = parseTarHeader(block, offset)
    if (META_TYPES.includes(header.typeflag)) {
      if (header.size < 0) throw invalidTar('an entry has a negative size', offset)
      if (header.size > MAX_META_LENGTH) throw new SkimmerError('UNSUPPORTED', `tar: the extended header at byte ${offset} has ${header.size} bytes; at most ${MAX_META_LENGTH} are read`)
      this.#metaType = header.typeflag
      this.#metaLength = header.size
      this.#step = 'meta'
      if (header.size === 0) this.#meta(block.subarray(0, 0), offset)
      return
    }
    const member: Member = { offset, header, records: this.#records, longName: this.#longName, longLink: this.#longLink }
    this.#forget()
    checkRecords(member.records, offset)
    const type = memberType(member)
    const dataLength = memberDataLength(member, type)
    const dataOffset = offset + TAR_BLOCK
    if (header.typeflag === 'S') this.#oldSparse(member, block, dataLength)
    else if (!this.#paxSparse(member, type, dataLength)) {
      this.#emit(member, type, { offset: dataOffset, size: dataLength, name: undefined, extents: undefined }, dataOffset, dataLength)
      this.#pass(dataLength, padded(dataLength) - dataLength)
    }
  }

  #meta(data: Buffer, offset: number): void {
    if (this.#metaType === 'x') this.#records = parsePaxRecords(data, offset)
    else if (this.#metaType === 'L') this.#longName = tarString(data, 0, data.length)
    else if (this.#metaType === 'K') this.#longLink = tarString(data, 0, data.length)
    else {
      checkRecords(parsePaxRecords(data, offset), offset)
      this.#forget()
    }
    this.#pass(0, padded(this.#metaLength) - this.#metaLength)
  }

  #forget(): void {
    this.#records = NO_RECORDS
    this.#longName = ''
    this.#longLink = ''
  }

  #oldSparse(member: Member, block: Buffer, dataLength: number): void {
    const size = tarNumber(block, 483, 12)
    if (member.header.format !== 'gnu' || size === undefined) throw invalidTar('a malformed sparse header', member.offset)
    const sparse = this.#sparseFile(member, undefined, size, dataLength)
    if (readOldSparseMap(block, true, sparse.pieces, member.offset)) this.#step = 'sparse extension'
    else this.#emitSparse(sparse, sparse.pieces, member.offset + TAR_BLOCK)
  }

  /** False when the pax records say nothing of sparseness. */
  #paxSparse(member: Member, type: FileType, dataLength: number): boolean {
    const found = member.records.size === 0 ? undefined : paxSparse(member.records, member.offset)
    if (found === undefined) return false
    if (type !== 'file') throw invalidTar('a sparse entry that is no file', member.offset)
    const sparse = this.#sparseFile(member, found.name, found.size ?? dataLength, dataLength)
    if (found.pieces !== undefined) this.#emitSparse(sparse, found.pieces, member.offset + TAR_BLOCK)
    else if (dataLength < TAR_BLOCK) throw invalidTar('a sparse file without its map', member.offset)
    else this.#step = 'sparse map'
    return true
  }

  #sparseFile(member: Member, name: string | undefined, size: number, dataLength: number): SparseFile {
    this.#sparse = { member, name, size, dataLength, padding: padded(dataLength) - dataLength, pieces: [], map: new SparseMapReader(member.offset) }
    return this.#sparse
  }

  #sparseMap(block: Buffer, offset: number): void {
    const sparse = this.#sparse as SparseFile
    sparse.dataLength -= TAR_BLOCK
    const pieces = sparse.map.add(block)
    if (pieces !== undefined) this.#emitSparse(sparse, pieces, offset + TAR_BLOCK)
    else if (sparse.dataLength < TAR_BLOCK) throw invalidTar('a sparse map is cut off', offset)
  }

  #emitSparse({ member, name, size, dataLength, padding }: SparseFile, pieces: readonly SparsePiece[], dataOffset: number): void {
    this.#sparse = undefined
    const extents = sparseExtents(pieces, size, dataOffset, dataLength, member.offset)
    this.#emit(member, 'file', { offset: dataOffset, size, name, extents }, dataOffset, dataLength)
    this.#pass(dataLength, padding)
  }

  #emit(member: Member, type: FileType, place: Parameters<typeof fileEntry>[2], dataOffset: number, dataLength: number): void {
    const entry = fileEntry(member, type, place)
    if (entry !== undefined) this.#onEntry(entry, dataOffset, dataLength)
  }

  #pass(length: number, padding: number): void {
    this.#step = 'data'
    this.#remaining = length
    this.#padding = padding
    if (length === 0) this.#next()
  }

  #next(): void {
    this.#remaining = this.#padding
    this.#padding = 0
    this.#step = this.#remaining > 0 ? 'padding' : 'header'
  }
}
