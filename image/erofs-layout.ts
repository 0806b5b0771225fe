// Where everything of an EROFS image goes: one pass over the tree before a byte is written.
import { SkimmerError } from '../oci/errors.ts'
import { chunkBits, chunkCount } from './erofs-chunks.ts'
import { directoryLength, withDots } from './erofs-dirents.ts'
import * as format from './erofs-format.ts'
import { XattrTables } from './erofs-xattrs.ts'
import type { ImageTree, TreeInode } from './tree.ts'

const { alignUp, BLOCK_SIZE } = format
/** The superblock has 16 bits for the root's number. */
const MAX_ROOT_NID = 0xffff

/** Struct of arrays, by position in the tree: images may have millions of inodes. */
export interface ErofsLayout {
  /** Time that compact inodes have; the others say their own. */
  readonly epochSeconds: number
  readonly epochNanos: number
  readonly nids: Uint32Array
  /** COMPACT_LENGTH or EXTENDED_LENGTH. */
  readonly inodeLengths: Uint8Array
  readonly dataLayouts: Uint8Array
  /** log2 of the chunk size of regular files with data. */
  readonly chunkBits: Uint8Array
  /** Bytes of data: of directories, their entries; else the inode's own size. */
  readonly sizes: Float64Array
  /** First block of directories' and symlinks' whole blocks; NULL_BLOCK when there is none. */
  readonly dataBlocks: Uint32Array
  readonly xattrs: XattrTables
  /** Byte offsets. */
  readonly sharedXattrsAt: number
  readonly dataAt: number
  readonly length: number
}

export function layOut(tree: ImageTree): ErofsLayout {
  const { inodes } = tree
  const count = inodes.length
  const [epochSeconds, epochNanos] = mostCommonTime(inodes)
  const xattrs = new XattrTables(inodes)
  const nids = new Uint32Array(count)
  const inodeLengths = new Uint8Array(count)
  const dataLayouts = new Uint8Array(count)
  const bits = new Uint8Array(count)
  const sizes = new Float64Array(count)
  const dataBlocks = new Uint32Array(count).fill(format.NULL_BLOCK)

  let at = format.DEVICE_SLOTS_OFFSET + tree.layers.length * format.DEVICE_SLOT_LENGTH
  let blocks = 0
  if (at / format.INODE_SLOT > MAX_ROOT_NID) throw new SkimmerError('UNSUPPORTED', `an image of ${tree.layers.length} layers; unpack it the ordinary way`)
  for (let i = 0; i < count; i++) {
    const inode = inodes[i]
    const size = inode.type === 'dir' ? directoryLength(withDots(inode.entries ?? [], i, inode.parent ?? 0)) : inode.size
    const inodeLength = isCompact(inode, size, epochSeconds, epochNanos) ? format.COMPACT_LENGTH : format.EXTENDED_LENGTH
    const headLength = inodeLength + (xattrs.body(i)?.length ?? 0)
    sizes[i] = size
    inodeLengths[i] = inodeLength

    let behind = 0 // bytes of chunk table or data behind the head
    if (inode.type === 'file' && size > 0) {
      dataLayouts[i] = format.LAYOUT_CHUNKED
      bits[i] = chunkBits(inode)
      behind = alignUp(headLength, format.CHUNK_ENTRY_LENGTH) - headLength + chunkCount(inode, bits[i]) * format.CHUNK_ENTRY_LENGTH
    } else if (inode.type === 'dir' || inode.type === 'symlink') {
      const tail = size % BLOCK_SIZE
      const inline = tail > 0 && headLength + tail <= BLOCK_SIZE
      dataLayouts[i] = inline ? format.LAYOUT_INLINE : format.LAYOUT_PLAIN
      behind = inline ? tail : 0
      const whole = inline ? Math.floor(size / BLOCK_SIZE) : Math.ceil(size / BLOCK_SIZE)
      if (whole > 0) {
        dataBlocks[i] = blocks // counted from the start of the data for now
        blocks += whole
      }
      // Inline data must not cross a block. Older kernels also want a symlink's inode and attributes in the same one.
      if (inline && (at % BLOCK_SIZE) + headLength + tail > BLOCK_SIZE) at = alignUp(at, BLOCK_SIZE)
    }
    nids[i] = at / format.INODE_SLOT
    at = alignUp(at + headLength + behind, format.INODE_SLOT)
  }
  const sharedXattrsAt = alignUp(at, BLOCK_SIZE)
  const dataAt = alignUp(sharedXattrsAt + xattrs.shared.length, BLOCK_SIZE)
  const firstBlock = dataAt / BLOCK_SIZE
  for (let i = 0; i < count; i++) if (dataBlocks[i] !== format.NULL_BLOCK) dataBlocks[i] += firstBlock
  const length = alignUp(dataAt + blocks * BLOCK_SIZE, 4096)
  return { epochSeconds, epochNanos, nids, inodeLengths, dataLayouts, chunkBits: bits, sizes, dataBlocks, xattrs, sharedXattrsAt, dataAt, length }
}

/**
 * Compact inodes know sizes and owners of 32 and 16 bits and no time of their own (kernels before 6.15 do not look at the
 * field that newer ones add to the epoch), so only inodes of the commonest time can be compact.
 */
function isCompact(inode: TreeInode, size: number, epochSeconds: number, epochNanos: number): boolean {
  return inode.mtimeSeconds === epochSeconds && inode.mtimeNanos === epochNanos && size <= 0xffffffff && inode.uid <= 0xffff && inode.gid <= 0xffff && inode.nlink <= 0xffff
}

function mostCommonTime(inodes: readonly TreeInode[]): [seconds: number, nanos: number] {
  const counts = new Map<number, Map<number, number>>()
  let best: [number, number] = [0, 0]
  let most = 0
  for (const { mtimeSeconds, mtimeNanos } of inodes) {
    let nanos = counts.get(mtimeSeconds)
    if (!nanos) counts.set(mtimeSeconds, (nanos = new Map()))
    const count = (nanos.get(mtimeNanos) ?? 0) + 1
    nanos.set(mtimeNanos, count)
    if (count > most) {
      most = count
      best = [mtimeSeconds, mtimeNanos]
    }
  }
  return best
}
