// EROFS chunk tables: which blocks of which layer's stream a regular file's data is.
import { SkimmerError } from '../oci/errors.ts'
import { BLOCK_BITS, BLOCK_SIZE, CHUNK_ENTRY_LENGTH, MAX_CHUNK_BITS, NULL_BLOCK } from './erofs-format.ts'
import type { TreeInode } from './tree.ts'

/** 32 MiB of table. Only a sparse file with small pieces far apart needs so many. */
const MAX_CHUNKS = 1 << 22

/** log2 of the largest chunk that the file can be cut in: one chunk for the whole file where its data is in one piece. */
export function chunkBits(inode: TreeInode): number {
  let bits = BLOCK_BITS
  while (bits < MAX_CHUNK_BITS && 2 ** bits < inode.size) bits++
  let streamStart = -1
  let end = 0
  for (const { fileOffset, streamOffset, length } of inode.extents) {
    const continues = streamStart === streamOffset - fileOffset && fileOffset === end
    if (!continues && fileOffset > 0) bits = Math.min(bits, log2OfUnit(fileOffset))
    streamStart = streamOffset - fileOffset
    if (end > 0 && end < fileOffset) bits = Math.min(bits, log2OfUnit(end))
    end = fileOffset + length
  }
  if (end > 0 && end < inode.size) bits = Math.min(bits, log2OfUnit(end))
  return bits
}

/** log2 of the largest power of two that divides it. */
function log2OfUnit(value: number): number {
  let bits = 0
  for (let rest = value; rest % 2 === 0 && bits < MAX_CHUNK_BITS; rest /= 2) bits++
  return bits
}

export function chunkCount(inode: TreeInode, bits: number): number {
  const count = Math.ceil(inode.size / 2 ** bits)
  if (count > MAX_CHUNKS) throw new SkimmerError('UNSUPPORTED', `a sparse file of ${inode.size} bytes takes ${count} chunks; unpack this image the ordinary way`)
  return count
}

/** Chunks of a hole have no device and no block. The layer at position n of the tree is device n + 1; 0 is the image itself. */
export function writeChunks(target: Buffer, at: number, inode: TreeInode, bits: number, count: number): void {
  const chunk = 2 ** bits
  let extent = 0
  for (let i = 0; i < count; i++) {
    const offset = i * chunk
    while (extent < inode.extents.length && inode.extents[extent].fileOffset + inode.extents[extent].length <= offset) extent++
    const found = inode.extents[extent]
    const entryAt = at + i * CHUNK_ENTRY_LENGTH
    if (found === undefined || found.fileOffset > offset) {
      target.writeUInt16LE(0xffff, entryAt)
      target.writeUInt32LE(NULL_BLOCK, entryAt + 4)
      continue
    }
    const block = (found.streamOffset + offset - found.fileOffset) / BLOCK_SIZE
    if (block >= NULL_BLOCK) throw new SkimmerError('UNSUPPORTED', 'a layer of more than 2 TiB; unpack this image the ordinary way')
    target.writeUInt16LE(inode.layer + 1, entryAt + 2)
    target.writeUInt32LE(block, entryAt + 4)
  }
}
