// EROFS inodes: the fixed part, compact (32 bytes) or extended (64 bytes).
import { BLOCK_BITS, CHUNK_INDEXES, COMPACT_LENGTH, EXTENDED_LENGTH, LAYOUT_CHUNKED } from './erofs-format.ts'
import type { ErofsLayout } from './erofs-layout.ts'
import { xattrCount } from './erofs-xattrs.ts'
import type { TreeInode } from './tree.ts'

const FILE_TYPES: Record<TreeInode['type'], number> = { fifo: 0o010000, char: 0o020000, dir: 0o040000, block: 0o060000, file: 0o100000, symlink: 0o120000 }

/** `target` must be zeroed from `at` on. */
export function writeInode(target: Buffer, at: number, inode: TreeInode, index: number, layout: ErofsLayout, xattrLength: number): void {
  const extended = layout.inodeLengths[index] === EXTENDED_LENGTH
  const size = layout.sizes[index]
  target.writeUInt16LE((extended ? 1 : 0) | (layout.dataLayouts[index] << 1), at)
  target.writeUInt16LE(xattrCount(xattrLength), at + 2)
  target.writeUInt16LE(FILE_TYPES[inode.type] | inode.mode, at + 4)
  target.writeUInt32LE(unionField(inode, index, layout), at + 16)
  target.writeUInt32LE(index + 1, at + 20)
  if (!extended) {
    target.writeUInt16LE(inode.nlink, at + 6)
    target.writeUInt32LE(size, at + 8)
    target.writeUInt16LE(inode.uid, at + COMPACT_LENGTH - 8)
    target.writeUInt16LE(inode.gid, at + COMPACT_LENGTH - 6)
    return
  }
  writeInt64(target, size, at + 8)
  target.writeUInt32LE(inode.uid, at + 24)
  target.writeUInt32LE(inode.gid, at + 28)
  writeInt64(target, inode.mtimeSeconds, at + 32)
  target.writeUInt32LE(inode.mtimeNanos, at + 40)
  target.writeUInt32LE(inode.nlink, at + 44)
}

/** Device number, chunk format or first data block: what the inode's kind calls for. */
function unionField(inode: TreeInode, index: number, layout: ErofsLayout): number {
  if (inode.type === 'char' || inode.type === 'block') return deviceNumber(inode.major, inode.minor)
  if (layout.dataLayouts[index] === LAYOUT_CHUNKED) return CHUNK_INDEXES | (layout.chunkBits[index] - BLOCK_BITS)
  return inode.type === 'fifo' ? 0 : layout.dataBlocks[index]
}

/** The kernel's new_encode_dev: 12 bits of major between the low 8 and the high 12 bits of minor. */
const deviceNumber = (major: number, minor: number): number => ((minor & 0xff) | (major << 8) | ((minor & 0xfff00) << 12)) >>> 0

export function writeInt64(target: Buffer, value: number, at: number): void {
  target.writeUInt32LE(value >>> 0, at)
  target.writeInt32LE(Math.floor(value / 2 ** 32), at + 4)
}
