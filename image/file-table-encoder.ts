// Writes a layer's file table entry by entry into compact columns, so that a million entries need no million objects.
import { SkimmerError } from '../oci/errors.ts'
import { ColumnWriter } from './byte-columns.ts'
import { MAX_EXTENTS, MAX_FILE_TABLE_BYTES, MAX_FILES, MAX_NAME_BYTES, MAX_XATTR_BYTES, MAX_XATTR_TOTAL, MAX_XATTRS } from './index-limits.ts'
import type { FileEntry } from './layer-index.ts'
import { padded, TAR_BLOCK } from './tar-header.ts'

export const FILE_TYPES: readonly FileEntry['type'][] = ['file', 'dir', 'symlink', 'hardlink', 'char', 'block', 'fifo']
export const FLAG_TYPE_MASK = 0x07
export const FLAG_XATTRS = 0x08
export const FLAG_SPARSE = 0x10
export const FLAG_SAME_MODE = 0x20
export const FLAG_SAME_OWNER = 0x40
export const FLAG_SAME_TIME = 0x80

/** The columns in the order of the file table; docs/format.md says what each holds. */
export const COLUMNS = ['flags', 'path lengths', 'path bytes', 'modes', 'owners', 'times', 'data', 'extents', 'link lengths', 'link bytes', 'devices', 'xattr sets', 'xattr references'] as const
export type ColumnName = (typeof COLUMNS)[number]

/** What the first entry is compared with. */
export const FIRST = { path: '', mode: 0, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanos: 0 }

export class FileTableEncoder {
  readonly #columns = Object.fromEntries(COLUMNS.map((name) => [name, new ColumnWriter()])) as Record<ColumnName, ColumnWriter>
  readonly #xattrSets = new Map<string, number>()
  #previous: typeof FIRST = FIRST
  /** Where the data of the entries so far ends in the stream, with its padding. */
  #dataEnd = 0
  #nameBytes = 0
  #extents = 0
  #xattrs = 0
  #count = 0

  get count(): number {
    return this.#count
  }

  /** Entries must come in tar order. Throws UNSUPPORTED when the layer is beyond what an index may hold. */
  add(entry: FileEntry): void {
    this.#count++
    this.#nameBytes += entry.path.length + entry.link.length
    this.#extents += entry.extents?.length ?? 0
    if (this.#count > MAX_FILES) throw tooMuch(`more than ${MAX_FILES} entries`)
    if (this.#nameBytes > MAX_NAME_BYTES) throw tooMuch(`more than ${MAX_NAME_BYTES} bytes of names`)
    if (this.#extents > MAX_EXTENTS) throw tooMuch(`more than ${MAX_EXTENTS} pieces of sparse files`)
    const previous = this.#previous
    const columns = this.#columns
    const sameMode = entry.mode === previous.mode
    const sameOwner = entry.uid === previous.uid && entry.gid === previous.gid
    const sameTime = entry.mtimeSeconds === previous.mtimeSeconds && entry.mtimeNanos === previous.mtimeNanos
    columns.flags.byte(
      FILE_TYPES.indexOf(entry.type) |
        (entry.xattrs.length > 0 ? FLAG_XATTRS : 0) |
        (entry.extents === undefined ? 0 : FLAG_SPARSE) |
        (sameMode ? FLAG_SAME_MODE : 0) |
        (sameOwner ? FLAG_SAME_OWNER : 0) |
        (sameTime ? FLAG_SAME_TIME : 0),
    )
    this.#path(entry.path)
    if (!sameMode) columns.modes.varint(entry.mode)
    if (!sameOwner) {
      columns.owners.varint(entry.uid)
      columns.owners.varint(entry.gid)
    }
    if (!sameTime) {
      columns.times.signed(entry.mtimeSeconds - previous.mtimeSeconds)
      columns.times.varint(entry.mtimeNanos)
    }
    if (entry.type === 'file') this.#data(entry)
    else if (entry.type === 'symlink' || entry.type === 'hardlink') {
      columns['link lengths'].varint(entry.link.length)
      columns['link bytes'].text(entry.link)
    } else if (entry.type === 'char' || entry.type === 'block') {
      columns.devices.varint(entry.major)
      columns.devices.varint(entry.minor)
    }
    if (entry.xattrs.length > 0) columns['xattr references'].varint(this.#xattrSet(entry.xattrs))
    this.#previous = entry
  }

  /** The file table: the length of every column (u32, little-endian), then the columns. */
  finish(): Buffer {
    const columns = COLUMNS.map((name) => this.#columns[name].view())
    const lengths = Buffer.alloc(COLUMNS.length * 4)
    columns.forEach((column, position) => lengths.writeUInt32LE(column.length, position * 4))
    const table = Buffer.concat([lengths, ...columns])
    if (table.length > MAX_FILE_TABLE_BYTES) throw tooMuch(`a file table of ${table.length} bytes`)
    return table
  }

  #path(path: string): void {
    const before = this.#previous.path
    const most = Math.min(path.length, before.length)
    let shared = 0
    while (shared < most && path.charCodeAt(shared) === before.charCodeAt(shared)) shared++
    this.#columns['path lengths'].varint(shared)
    this.#columns['path lengths'].varint(path.length - shared)
    this.#columns['path bytes'].text(path, shared)
  }

  #data(entry: FileEntry): void {
    const gap = entry.offset - this.#dataEnd
    if (gap < 0 || gap % TAR_BLOCK !== 0) throw new SkimmerError('INVALID_ARGUMENT', `layer index: the data of entry ${this.#count - 1} is not in tar order`)
    const { data } = this.#columns
    data.varint(entry.size)
    data.varint(gap / TAR_BLOCK)
    this.#dataEnd = entry.offset + padded(entry.extents === undefined ? entry.size : this.#extentList(entry.extents, entry.offset))
  }

  /** Returns how many bytes of the stream the extents use: they follow each other from the entry's offset on. */
  #extentList(extents: NonNullable<FileEntry['extents']>, offset: number): number {
    const column = this.#columns.extents
    column.varint(extents.length)
    let fileEnd = 0
    let used = 0
    for (const extent of extents) {
      const hole = extent.fileOffset - fileEnd
      if (hole < 0 || hole % TAR_BLOCK !== 0 || extent.offset !== offset + used) throw new SkimmerError('INVALID_ARGUMENT', `layer index: the extents of entry ${this.#count - 1} are not in order`)
      column.varint(hole / TAR_BLOCK)
      column.varint(extent.length)
      fileEnd = extent.fileOffset + extent.length
      used += extent.length
    }
    return used
  }

  #xattrSet(xattrs: FileEntry['xattrs']): number {
    const set = new ColumnWriter()
    set.varint(xattrs.length)
    for (const [name, value] of xattrs) {
      set.varint(name.length)
      set.text(name)
      set.varint(value.length)
      set.bytes(value)
    }
    if (xattrs.length > MAX_XATTRS || set.length > MAX_XATTR_BYTES) throw tooMuch(`an entry with ${xattrs.length} extended attributes of ${set.length} bytes`)
    const key = set.view().toString('latin1')
    let position = this.#xattrSets.get(key)
    if (position === undefined) {
      position = this.#xattrSets.size
      this.#xattrs += xattrs.length
      if (this.#xattrs > MAX_XATTR_TOTAL) throw tooMuch(`more than ${MAX_XATTR_TOTAL} different extended attributes`)
      this.#xattrSets.set(key, position)
      this.#columns['xattr sets'].bytes(set.view())
    }
    return position
  }
}

function tooMuch(what: string): SkimmerError {
  return new SkimmerError('UNSUPPORTED', `the layer has ${what}, beyond what an index may hold: it must be unpacked`)
}
