// Writes an image's merged tree as a metadata-only EROFS filesystem: its files' data stay where they are, in the layers' tar streams.
//
// The image serves two ways: with each layer's stream as a `device=` of its own, in the order of ImageTree.layers, or flat, as
// one disk that has the layers behind the metadata, each at its `uniaddr`.
import { createHash, randomBytes } from 'node:crypto'
import { closeSync, openSync, readSync, renameSync, rmSync, writeSync } from 'node:fs'
import { SkimmerError } from '../oci/errors.ts'
import { writeChunks, chunkCount } from './erofs-chunks.ts'
import { directoryBlockEnd, withDots, writeDirectoryBlock } from './erofs-dirents.ts'
import * as format from './erofs-format.ts'
import { writeInode } from './erofs-inode.ts'
import { type ErofsLayout, layOut } from './erofs-layout.ts'
import { encodeDeviceSlots, type PlacedLayer, writeSuperblock } from './erofs-superblock.ts'
import { SequentialFile } from './sequential-file.ts'
import type { ImageTree } from './tree.ts'

const { alignUp, BLOCK_SIZE } = format
/** Layers start at whole pages of the flat disk. */
const LAYER_ALIGNMENT = 4096
/** EROFS names blocks by 32 bits, the last value means none. */
const MAX_DISK_LENGTH = 0xffffffff * BLOCK_SIZE

export interface WrittenErofs {
  /** Bytes of the metadata file, a multiple of 4096. */
  readonly length: number
  readonly layers: readonly PlacedLayer[]
}

/**
 * Writes synchronously, through a temporary file beside `path` that takes its place at the end. The same tree gives the same
 * bytes; the filesystem's uuid is drawn from them. Throws UNSUPPORTED for what the format cannot say.
 */
export function writeErofs(tree: ImageTree, target: { path: string }): WrittenErofs {
  const layout = layOut(tree)
  const layers = placeLayers(tree, layout.length)
  const temporary = `${target.path}.${randomBytes(6).toString('hex')}.tmp`
  const fd = openSync(temporary, 'wx+', 0o644)
  try {
    writeImage(fd, tree, layout, layers)
    renameSync(temporary, target.path)
  } catch (error) {
    rmSync(temporary, { force: true })
    throw error
  } finally {
    closeSync(fd)
  }
  return { length: layout.length, layers }
}

function placeLayers(tree: ImageTree, metadataLength: number): PlacedLayer[] {
  let end = metadataLength
  return tree.layers.map(({ diffId, rawLength }) => {
    const uniaddr = alignUp(end, LAYER_ALIGNMENT)
    end = uniaddr + rawLength
    if (end > MAX_DISK_LENGTH) throw new SkimmerError('UNSUPPORTED', 'an image of more than 2 TiB; unpack it the ordinary way')
    return { diffId, rawLength, uniaddr }
  })
}

function writeImage(fd: number, tree: ImageTree, layout: ErofsLayout, layers: readonly PlacedLayer[]): void {
  const hash = createHash('sha256')
  const file = new SequentialFile(fd, (bytes) => hash.update(bytes))
  file.moveTo(format.DEVICE_SLOTS_OFFSET)
  file.append(encodeDeviceSlots(layers))
  writeInodes(file, tree, layout)
  file.moveTo(layout.sharedXattrsAt)
  file.append(layout.xattrs.shared)
  writeDataBlocks(file, tree, layout)
  file.moveTo(layout.length)
  file.flush()

  // Name-based uuid of the bytes, marked as version 8 (custom) of RFC 9562.
  const uuid = hash.digest().subarray(0, 16)
  uuid[6] = (uuid[6] & 0x0f) | 0x80
  uuid[8] = (uuid[8] & 0x3f) | 0x80
  const block = Buffer.alloc(BLOCK_SIZE)
  readSync(fd, block, 0, BLOCK_SIZE, format.SUPERBLOCK_OFFSET)
  writeSuperblock(block, layout, layers.length, uuid)
  writeSync(fd, block, 0, BLOCK_SIZE, format.SUPERBLOCK_OFFSET)
}

function writeInodes(file: SequentialFile, tree: ImageTree, layout: ErofsLayout): void {
  const { inodes } = tree
  for (let i = 0; i < inodes.length; i++) {
    const inode = inodes[i]
    file.moveTo(layout.nids[i] * format.INODE_SLOT)
    const body = layout.xattrs.body(i)
    const at = file.reserve(layout.inodeLengths[i])
    writeInode(file.window, at, inode, i, layout, body?.length ?? 0)
    if (body) file.append(body)
    if (layout.dataLayouts[i] === format.LAYOUT_CHUNKED) {
      file.moveTo(alignUp(file.position, format.CHUNK_ENTRY_LENGTH))
      const count = chunkCount(inode, layout.chunkBits[i])
      const tableAt = file.reserve(count * format.CHUNK_ENTRY_LENGTH)
      writeChunks(file.window, tableAt, inode, layout.chunkBits[i], count)
    } else if (layout.dataLayouts[i] === format.LAYOUT_INLINE) {
      const tail = layout.sizes[i] % BLOCK_SIZE
      const tailAt = file.reserve(tail)
      if (inode.type === 'symlink') file.window.write(inode.link.slice(-tail), tailAt, 'latin1')
      // A directory of one block is all here; a longer one's blocks are written later, its tail here.
      else writeTail(file, tailAt, tree, i, layout)
    }
  }
}

function writeTail(file: SequentialFile, at: number, tree: ImageTree, index: number, layout: ErofsLayout): void {
  const inode = tree.inodes[index]
  const entries = withDots(inode.entries ?? [], index, inode.parent ?? 0)
  let from = 0
  for (let blocks = Math.floor(layout.sizes[index] / BLOCK_SIZE); blocks > 0; blocks--) from = directoryBlockEnd(entries, from)
  writeDirectoryBlock(file.window, at, entries, from, tree.inodes, layout.nids)
}

function writeDataBlocks(file: SequentialFile, tree: ImageTree, layout: ErofsLayout): void {
  for (let i = 0; i < tree.inodes.length; i++) {
    if (layout.dataBlocks[i] === format.NULL_BLOCK) continue
    const inode = tree.inodes[i]
    file.moveTo(layout.dataBlocks[i] * BLOCK_SIZE)
    const inline = layout.dataLayouts[i] === format.LAYOUT_INLINE
    const blocks = inline ? Math.floor(layout.sizes[i] / BLOCK_SIZE) : Math.ceil(layout.sizes[i] / BLOCK_SIZE)
    if (inode.type === 'symlink') {
      const at = file.reserve(blocks * BLOCK_SIZE)
      file.window.write(inode.link.slice(0, blocks * BLOCK_SIZE), at, 'latin1')
      continue
    }
    const entries = withDots(inode.entries ?? [], i, inode.parent ?? 0)
    for (let block = 0, from = 0; block < blocks; block++) {
      const at = file.reserve(BLOCK_SIZE)
      from = writeDirectoryBlock(file.window, at, entries, from, tree.inodes, layout.nids)
    }
  }
}
