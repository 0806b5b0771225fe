// An image's merged tree as a FUSE filesystem: attributes, names, links, xattrs and where a file's bytes are. For hosts without EROFS.
import { deviceNumber, S_IFDIR, S_IFLNK, S_IFMT } from './fuse-protocol.ts'
import type { Attributes } from './fuse-protocol.ts'
import { nodeId } from './published.ts'
import type { NodeKey } from './published.ts'
import { column, COLUMN, findChild, NO_LAYER, treeBytes } from './tree-table.ts'
import type { TreeTable } from './tree-table.ts'
import type { Stretch } from './virtual-disk.ts'

/** One child of a directory, or `.` and `..`. */
export interface DirectoryEntry { readonly name: Uint8Array; readonly attributes: Attributes }

/** A view of one image's table under its node key. Positions are those of the image's inodes; 0 is its root. */
export class TreeView {
  readonly table: TreeTable
  readonly key: NodeKey
  readonly #heap: Buffer

  constructor(table: TreeTable, key: NodeKey) {
    this.table = table
    this.key = key
    this.#heap = treeBytes(table)
  }

  has(position: number): boolean {
    return position < this.table.inodes
  }

  mode(position: number): number {
    return column(this.table, position, COLUMN.MODE)
  }

  isDirectory(position: number): boolean {
    return (this.mode(position) & S_IFMT) === S_IFDIR
  }

  attributes(position: number): Attributes {
    const { table } = this
    return {
      node: nodeId(this.key, position),
      size: table.wide[position * 2],
      mtimeSeconds: table.wide[position * 2 + 1],
      mtimeNanos: column(table, position, COLUMN.NANOS),
      mode: column(table, position, COLUMN.MODE),
      nlink: column(table, position, COLUMN.NLINK),
      uid: column(table, position, COLUMN.UID),
      gid: column(table, position, COLUMN.GID),
      rdev: deviceNumber(column(table, position, COLUMN.MAJOR), column(table, position, COLUMN.MINOR)),
    }
  }

  /** Position of the child, or -1. `.` and `..` are asked for by those who decode file handles. */
  child(directory: number, name: Uint8Array): number {
    if (!this.isDirectory(directory)) return -1
    return findChild(this.table, this.#heap, directory, name)
  }

  parent(position: number): number {
    return column(this.table, position, COLUMN.PARENT)
  }

  entryCount(directory: number): number {
    return column(this.table, directory, COLUMN.COUNT)
  }

  entry(directory: number, index: number): { name: Uint8Array; position: number } {
    const at = (column(this.table, directory, COLUMN.FIRST) + index) * 3
    const { entries } = this.table
    return { name: this.#heap.subarray(entries[at], entries[at] + entries[at + 1]), position: entries[at + 2] }
  }

  /** Target of a symlink as bytes; undefined for anything else. */
  link(position: number): Uint8Array | undefined {
    if ((this.mode(position) & S_IFMT) !== S_IFLNK) return undefined
    const start = column(this.table, position, COLUMN.LINK)
    return this.#heap.subarray(start, start + this.table.wide[position * 2])
  }

  *xattrs(position: number): Generator<{ name: Uint8Array; value: Uint8Array }> {
    const first = column(this.table, position, COLUMN.XATTR)
    const count = column(this.table, position, COLUMN.XATTRS)
    for (let row = first; row < first + count; row++) {
      const [nameAt, nameLength, valueAt, valueLength] = this.table.xattrs.subarray(row * 4, row * 4 + 4)
      yield { name: this.#heap.subarray(nameAt, nameAt + nameLength), value: this.#heap.subarray(valueAt, valueAt + valueLength) }
    }
  }

  xattr(position: number, name: Uint8Array): Uint8Array | undefined {
    for (const one of this.xattrs(position)) if (Buffer.compare(one.name, name) === 0) return one.value
    return undefined
  }

  /** The stretches of `length` bytes of a file at `offset`, cut at the file's end; holes are zeros. */
  stretches(position: number, offset: number, length: number): Stretch[] {
    const { table } = this
    const end = Math.min(offset + length, table.wide[position * 2])
    const layerRow = column(table, position, COLUMN.LAYER)
    const layer = layerRow === NO_LAYER ? '' : (table.layers[layerRow] ?? '')
    const first = column(table, position, COLUMN.FIRST)
    const last = first + column(table, position, COLUMN.COUNT)
    const stretches: Stretch[] = []
    let at = offset
    for (let row = this.#firstExtentEndingAfter(first, last, offset); row < last && at < end; row++) {
      const [fileOffset, streamOffset, extentLength] = table.extents.subarray(row * 3, row * 3 + 3)
      if (fileOffset >= end) break
      if (fileOffset > at) {
        stretches.push({ kind: 'zero', length: fileOffset - at })
        at = fileOffset
      }
      const piece = Math.min(end, fileOffset + extentLength) - at
      if (piece > 0) stretches.push({ kind: 'layer', layer, offset: streamOffset + at - fileOffset, length: piece })
      at += Math.max(piece, 0)
    }
    if (at < end) stretches.push({ kind: 'zero', length: end - at })
    return stretches
  }

  #firstExtentEndingAfter(first: number, last: number, offset: number): number {
    let low = first
    let high = last
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.table.extents[middle * 3] + this.table.extents[middle * 3 + 2] <= offset) low = middle + 1
      else high = middle
    }
    return low
  }
}
