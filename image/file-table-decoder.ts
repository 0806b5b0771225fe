// Reads a file table that an enemy may have written: every number has a bound, every offset lies in the stream, every path is clean.
import { SkimmerError } from '../oci/errors.ts'
import { ColumnReader } from './byte-columns.ts'
import { COLUMNS, FILE_TYPES, FIRST, FLAG_SAME_MODE, FLAG_SAME_OWNER, FLAG_SAME_TIME, FLAG_SPARSE, FLAG_TYPE_MASK, FLAG_XATTRS } from './file-table-encoder.ts'
import type { ColumnName } from './file-table-encoder.ts'
import { MAX_EXTENTS, MAX_ID, MAX_NAME_BYTES, MAX_STREAM_LENGTH, MAX_TIME_STEP, MAX_XATTR_TOTAL, MAX_XATTRS } from './index-limits.ts'
import type { FileEntry } from './layer-index.ts'
import { MAX_MAJOR, MAX_MINOR, MAX_XATTR_VALUE, TIME_LIMIT } from './tar-entry.ts'
import { padded, TAR_BLOCK } from './tar-header.ts'
import { MAX_NAME_LENGTH, MAX_PATH_LENGTH } from './tar-path.ts'
import { MAX_SPARSE_SIZE } from './tar-sparse.ts'

const SLASH = 0x2f
const DOT = 0x2e
const NO_XATTRS: FileEntry['xattrs'] = []

/** `streamLength`: bytes of the layer's stream, which no data may lie outside of. Throws INVALID_DATA naming the column. */
export function decodeFileTable(table: Buffer, count: number, streamLength: number): FileEntry[] {
  return new FileTableDecoder(table, streamLength).all(count)
}

class FileTableDecoder {
  readonly #columns: Record<ColumnName, ColumnReader>
  readonly #streamLength: number
  readonly #xattrSets: FileEntry['xattrs'][]
  /** The current path as bytes: the next one keeps its start. */
  readonly #path = Buffer.alloc(MAX_PATH_LENGTH)
  #pathLength = 0
  #dataEnd = 0
  #nameBytes = 0
  #extents = 0

  constructor(table: Buffer, streamLength: number) {
    this.#columns = openColumns(table)
    this.#streamLength = streamLength
    this.#xattrSets = readXattrSets(this.#columns['xattr sets'], table.readUInt32LE(COLUMNS.indexOf('xattr sets') * 4))
  }

  all(count: number): FileEntry[] {
    const files: FileEntry[] = []
    let previous: typeof FIRST = FIRST
    for (let position = 0; position < count; position++) {
      const entry = this.#entry(previous)
      files.push(entry)
      previous = entry
    }
    for (const name of COLUMNS) if (name !== 'xattr sets') this.#columns[name].end()
    return files
  }

  #entry(previous: typeof FIRST): FileEntry {
    const columns = this.#columns
    const flags = columns.flags.byte()
    const type = FILE_TYPES[flags & FLAG_TYPE_MASK]
    if (type === undefined) throw columns.flags.invalid('names an unknown type')
    const isSparse = (flags & FLAG_SPARSE) !== 0
    if (isSparse && type !== 'file') throw columns.flags.invalid('calls sparse what is no file')
    const path = this.#nextPath()
    if (path === '' && type !== 'dir') throw columns['path lengths'].invalid('makes the root something else than a directory')
    const sameOwner = (flags & FLAG_SAME_OWNER) !== 0
    const sameTime = (flags & FLAG_SAME_TIME) !== 0
    const isLink = type === 'symlink' || type === 'hardlink'
    const isDevice = type === 'char' || type === 'block'
    const size = type === 'file' ? columns.data.varint(isSparse ? MAX_SPARSE_SIZE : MAX_STREAM_LENGTH) : 0
    const offset = type === 'file' ? this.#dataEnd + columns.data.varint(MAX_STREAM_LENGTH / TAR_BLOCK) * TAR_BLOCK : 0
    const extents = isSparse ? this.#extentList(size, offset) : undefined
    const entry: FileEntry = {
      path,
      type,
      mode: (flags & FLAG_SAME_MODE) === 0 ? columns.modes.varint(0o7777) : previous.mode,
      uid: sameOwner ? previous.uid : columns.owners.varint(MAX_ID),
      gid: sameOwner ? previous.gid : columns.owners.varint(MAX_ID),
      mtimeSeconds: sameTime ? previous.mtimeSeconds : this.#time(previous.mtimeSeconds),
      mtimeNanos: sameTime ? previous.mtimeNanos : columns.times.varint(999_999_999),
      size,
      offset,
      link: isLink ? this.#link(type === 'symlink') : '',
      major: isDevice ? columns.devices.varint(MAX_MAJOR) : 0,
      minor: isDevice ? columns.devices.varint(MAX_MINOR) : 0,
      xattrs: (flags & FLAG_XATTRS) === 0 ? NO_XATTRS : this.#xattrs(),
    }
    if (type === 'file') this.#data(offset, extents === undefined ? size : extents.reduce((sum, extent) => sum + extent.length, 0))
    return extents === undefined ? entry : { ...entry, extents }
  }

  #data(offset: number, length: number): void {
    if (offset + length > this.#streamLength) throw this.#columns.data.invalid('points outside the layer')
    this.#dataEnd = offset + padded(length)
  }

  #extentList(size: number, dataOffset: number): NonNullable<FileEntry['extents']> {
    const column = this.#columns.extents
    const count = column.varint(MAX_EXTENTS - this.#extents)
    this.#extents += count
    const extents: { fileOffset: number; offset: number; length: number }[] = []
    let fileEnd = 0
    let offset = dataOffset
    for (let i = 0; i < count; i++) {
      const fileOffset = fileEnd + column.varint(MAX_SPARSE_SIZE / TAR_BLOCK) * TAR_BLOCK
      const length = column.varint(MAX_SPARSE_SIZE)
      fileEnd = fileOffset + length
      if (length === 0 || fileEnd > size || (length % TAR_BLOCK !== 0 && (i !== count - 1 || fileEnd !== size))) throw column.invalid('has an extent that does not fit its file')
      extents.push({ fileOffset, offset, length })
      offset += length
    }
    return extents
  }

  #time(previous: number): number {
    const seconds = previous + this.#columns.times.signed(MAX_TIME_STEP)
    if (Math.abs(seconds) > TIME_LIMIT) throw this.#columns.times.invalid('has a time out of range')
    return seconds
  }

  #link(isSymlink: boolean): string {
    const column = this.#columns['link bytes']
    const length = this.#columns['link lengths'].varint(MAX_PATH_LENGTH)
    this.#countName(length)
    const bytes = column.bytes(length)
    if (isSymlink && (length === 0 || bytes.includes(0))) throw column.invalid('holds no symlink target')
    if (!isSymlink && !isCleanPath(bytes, 0, length)) throw column.invalid('holds a path that is not clean')
    return bytes.toString('latin1')
  }

  #xattrs(): FileEntry['xattrs'] {
    if (this.#xattrSets.length === 0) throw this.#columns['xattr references'].invalid('names a set that is not there')
    return this.#xattrSets[this.#columns['xattr references'].varint(this.#xattrSets.length - 1)]
  }

  #nextPath(): string {
    const lengths = this.#columns['path lengths']
    const shared = lengths.varint(this.#pathLength)
    const added = lengths.varint(MAX_PATH_LENGTH - shared)
    this.#path.set(this.#columns['path bytes'].bytes(added), shared)
    this.#pathLength = shared + added
    this.#countName(this.#pathLength)
    // What is shared was clean up to its last slash: only the names from there on are new.
    const from = this.#path.lastIndexOf(SLASH, shared - 1) + 1
    if (!isCleanPath(this.#path, shared === 0 ? 0 : from, this.#pathLength)) throw this.#columns['path bytes'].invalid('holds a path that is not clean')
    return this.#path.toString('latin1', 0, this.#pathLength)
  }

  #countName(length: number): void {
    this.#nameBytes += length
    if (this.#nameBytes > MAX_NAME_BYTES) throw new SkimmerError('INVALID_DATA', `layer index: its names are longer than ${MAX_NAME_BYTES} bytes together`)
  }
}

function openColumns(table: Buffer): Record<ColumnName, ColumnReader> {
  const columns = {} as Record<ColumnName, ColumnReader>
  let start = COLUMNS.length * 4
  if (table.length < start) throw new SkimmerError('INVALID_DATA', 'layer index: the file table is too short for its columns')
  COLUMNS.forEach((name, position) => {
    const end = start + table.readUInt32LE(position * 4)
    if (end > table.length) throw new SkimmerError('INVALID_DATA', `layer index: the column ${name} is longer than the file table`)
    columns[name] = new ColumnReader(table.subarray(start, end), `the column "${name}"`)
    start = end
  })
  if (start !== table.length) throw new SkimmerError('INVALID_DATA', 'layer index: the file table is longer than its columns')
  return columns
}

function readXattrSets(column: ColumnReader, columnLength: number): FileEntry['xattrs'][] {
  const sets: FileEntry['xattrs'][] = []
  let total = 0
  while (column.position < columnLength) {
    const set: [string, Uint8Array][] = []
    const count = column.varint(MAX_XATTRS)
    total += count
    if (count === 0 || total > MAX_XATTR_TOTAL) throw column.invalid('has an empty set, or too many attributes')
    for (let i = 0; i < count; i++) {
      const name = column.text(column.varint(MAX_NAME_LENGTH))
      if (name === '' || name.includes('\0')) throw column.invalid('holds an attribute without a proper name')
      set.push([name, Uint8Array.from(column.bytes(column.varint(MAX_XATTR_VALUE)))])
    }
    sets.push(set)
  }
  return sets
}

/** No empty name, no `.` or `..`, none longer than NAME_MAX, no NUL. `from` must be the start of a name; '' is clean. */
function isCleanPath(bytes: Buffer, from: number, to: number): boolean {
  if (to === 0) return true
  let start = from
  for (let at = from; at <= to; at++) {
    if (at < to && bytes[at] === 0) return false
    if (at < to && bytes[at] !== SLASH) continue
    const length = at - start
    if (length === 0 || length > MAX_NAME_LENGTH) return false
    if (bytes[start] === DOT && (length === 1 || (length === 2 && bytes[start + 1] === DOT))) return false
    start = at + 1
  }
  return true
}
