// EROFS superblock and device table.
import { crc32c } from './crc32c.ts'
import * as format from './erofs-format.ts'
import { writeInt64 } from './erofs-inode.ts'
import type { ErofsLayout } from './erofs-layout.ts'

/** Where a layer lies on the flat disk: `uniaddr` in bytes from the start. */
export interface PlacedLayer {
  readonly diffId: string
  readonly rawLength: number
  readonly uniaddr: number
}

/** One slot a layer. The tag names the layer; the kernel wants one when no device is given for the slot. */
export function encodeDeviceSlots(layers: readonly PlacedLayer[]): Buffer {
  const slots = Buffer.alloc(layers.length * format.DEVICE_SLOT_LENGTH)
  layers.forEach(({ diffId, rawLength, uniaddr }, index) => {
    const at = index * format.DEVICE_SLOT_LENGTH
    slots.write(diffId.replace(/^sha256:/, '').slice(0, 64), at, 'latin1')
    slots.writeUInt32LE(Math.ceil(rawLength / format.BLOCK_SIZE), at + 64)
    slots.writeUInt32LE(uniaddr / format.BLOCK_SIZE, at + 68)
  })
  return slots
}

/** Fills in the superblock's block of which the device slots are already there. */
export function writeSuperblock(block: Buffer, layout: ErofsLayout, layers: number, uuid: Uint8Array): void {
  block.writeUInt32LE(format.SUPERBLOCK_MAGIC, 0)
  block.writeUInt32LE(format.COMPAT_CHECKSUM | format.COMPAT_MTIME, 8)
  block[12] = format.BLOCK_BITS
  block.writeUInt16LE(layout.nids[0], 14)
  writeInt64(block, layout.nids.length, 16)
  writeInt64(block, layout.epochSeconds, 24)
  block.writeUInt32LE(layout.epochNanos, 32)
  block.writeUInt32LE(layout.length / format.BLOCK_SIZE, 36)
  block.writeUInt32LE(0, 40) // inode numbers count from the start of the image
  block.writeUInt32LE(layout.sharedXattrsAt / format.BLOCK_SIZE, 44)
  block.set(uuid, 48)
  block.writeUInt32LE(format.INCOMPAT_CHUNKED | (layers > 0 ? format.INCOMPAT_DEVICE_TABLE : 0), 80)
  block.writeUInt16LE(layers, 86)
  block.writeUInt16LE(layers > 0 ? format.DEVICE_SLOTS_OFFSET / format.DEVICE_SLOT_LENGTH : 0, 88)
  block.writeUInt32LE(crc32c(format.CHECKSUM_SEED, block.subarray(8)), 4)
}
