// An image's merged tree as flat arrays in shared memory: built once, read by every FUSE thread without a copy of its own.
import type { ImageTree, TreeInode } from '../image/tree.ts'
import { S_IFDIR, S_IFLNK, S_IFREG } from './fuse-protocol.ts'

const FILE_TYPES: Record<TreeInode['type'], number> = { file: S_IFREG, dir: S_IFDIR, symlink: S_IFLNK, char: 0o020000, block: 0o060000, fifo: 0o010000 }

/** Columns of `numbers`, one row an inode. `first` and `count` name rows of entries (directories) or extents (files). */
export const COLUMN = { MODE: 0, UID: 1, GID: 2, NLINK: 3, NANOS: 4, MAJOR: 5, MINOR: 6, LAYER: 7, FIRST: 8, COUNT: 9, PARENT: 10, LINK: 11, XATTR: 12, XATTRS: 13 } as const
export const COLUMNS = 14
/** In column LAYER: no data. */
export const NO_LAYER = 0xffff_ffff

export interface TreeTable {
  readonly inodes: number
  /** Names the layers under which their streams are published. */
  readonly layers: readonly string[]
  readonly numbers: Uint32Array<SharedArrayBuffer>
  /** size and mtime seconds, two an inode. */
  readonly wide: Float64Array<SharedArrayBuffer>
  /** file offset, stream offset, length: three an extent. */
  readonly extents: Float64Array<SharedArrayBuffer>
  /** name's start and length in `bytes`, inode: three an entry. */
  readonly entries: Uint32Array<SharedArrayBuffer>
  /** name's start and length, value's start and length in `bytes`: four an xattr. */
  readonly xattrs: Uint32Array<SharedArrayBuffer>
  /** Names, link targets, xattr values. */
  readonly bytes: Uint8Array<SharedArrayBuffer>
}

const u32 = (length: number) => new Uint32Array(new SharedArrayBuffer(length * 4))
const f64 = (length: number) => new Float64Array(new SharedArrayBuffer(length * 8))

/** `layerName` gives the published name of a layer (its diffID's hex, as in /layers). */
export function buildTreeTable(tree: ImageTree, layerName: (diffId: string) => string): TreeTable {
  let entryCount = 0
  let extentCount = 0
  let xattrCount = 0
  let byteCount = 0
  for (const inode of tree.inodes) {
    extentCount += inode.extents.length
    byteCount += inode.link.length
    for (const [name] of inode.entries ?? []) byteCount += name.length
    entryCount += inode.entries?.length ?? 0
    xattrCount += inode.xattrs.length
    for (const [name, value] of inode.xattrs) byteCount += name.length + value.length
  }
  const table: TreeTable = {
    inodes: tree.inodes.length,
    layers: tree.layers.map((layer) => layerName(layer.diffId)),
    numbers: u32(tree.inodes.length * COLUMNS),
    wide: f64(tree.inodes.length * 2),
    extents: f64(extentCount * 3),
    entries: u32(entryCount * 3),
    xattrs: u32(xattrCount * 4),
    bytes: new Uint8Array(new SharedArrayBuffer(byteCount)),
  }
  fill(table, tree)
  return table
}

function fill(table: TreeTable, tree: ImageTree): void {
  const heap = Buffer.from(table.bytes.buffer, table.bytes.byteOffset, table.bytes.byteLength)
  let bytes = 0
  let entry = 0
  let extent = 0
  let xattr = 0
  const put = (text: string): number => {
    heap.write(text, bytes, 'latin1')
    bytes += text.length
    return bytes - text.length
  }
  for (const [position, inode] of tree.inodes.entries()) {
    const row = table.numbers.subarray(position * COLUMNS, (position + 1) * COLUMNS)
    const directory = inode.type === 'dir'
    row[COLUMN.MODE] = FILE_TYPES[inode.type] | inode.mode
    row[COLUMN.UID] = inode.uid
    row[COLUMN.GID] = inode.gid
    row[COLUMN.NLINK] = inode.nlink
    row[COLUMN.NANOS] = inode.mtimeNanos
    row[COLUMN.MAJOR] = inode.major
    row[COLUMN.MINOR] = inode.minor
    row[COLUMN.LAYER] = inode.layer < 0 ? NO_LAYER : inode.layer
    row[COLUMN.PARENT] = inode.parent ?? 0
    row[COLUMN.FIRST] = directory ? entry : extent
    row[COLUMN.COUNT] = directory ? (inode.entries?.length ?? 0) : inode.extents.length
    row[COLUMN.LINK] = put(inode.link)
    row[COLUMN.XATTR] = xattr
    row[COLUMN.XATTRS] = inode.xattrs.length
    table.wide[position * 2] = inode.type === 'symlink' ? inode.link.length : inode.size
    table.wide[position * 2 + 1] = inode.mtimeSeconds
    for (const [name, child] of inode.entries ?? []) table.entries.set([put(name), name.length, child], entry++ * 3)
    for (const piece of inode.extents) table.extents.set([piece.fileOffset, piece.streamOffset, piece.length], extent++ * 3)
    for (const [name, value] of inode.xattrs) {
      const nameAt = put(name)
      heap.set(value, bytes)
      table.xattrs.set([nameAt, name.length, bytes, value.length], xattr++ * 4)
      bytes += value.length
    }
  }
}

export const column = (table: TreeTable, inode: number, which: number): number => table.numbers[inode * COLUMNS + which]

/** A view of `table.bytes` as a Buffer, so that names compare natively. */
export const treeBytes = (table: TreeTable): Buffer => Buffer.from(table.bytes.buffer, table.bytes.byteOffset, table.bytes.byteLength)

/** Binary search among a directory's children; -1 when there is none of that name. */
export function findChild(table: TreeTable, heap: Buffer, directory: number, name: Uint8Array): number {
  const first = column(table, directory, COLUMN.FIRST)
  let low = 0
  let high = column(table, directory, COLUMN.COUNT) - 1
  while (low <= high) {
    const middle = (low + high) >>> 1
    const at = (first + middle) * 3
    const start = table.entries[at]
    const order = heap.compare(name, 0, name.length, start, start + table.entries[at + 1])
    if (order === 0) return table.entries[at + 2]
    if (order < 0) low = middle + 1
    else high = middle - 1
  }
  return -1
}
