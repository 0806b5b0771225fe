// A small reader of metadata-only EROFS images, after the format's description and not after our writer: what a kernel would see.
import assert from 'node:assert/strict'
import { crc32c } from '../../image/crc32c.ts'

const BLOCK = 512
const TYPES: Record<number, string> = { 1: 'fifo', 2: 'char', 4: 'dir', 6: 'block', 8: 'file', 10: 'symlink' }
const DIRENT_TYPES: Record<number, string> = { 1: 'file', 2: 'dir', 3: 'char', 4: 'block', 5: 'fifo', 7: 'symlink' }
const PREFIXES: Record<number, string> = { 1: 'user.', 2: 'system.posix_acl_access', 3: 'system.posix_acl_default', 4: 'trusted.', 6: 'security.' }

export interface ReadInode {
  nid: number
  type: string
  mode: number
  uid: number
  gid: number
  mtimeSeconds: number
  mtimeNanos: number
  nlink: number
  size: number
  link: string
  major: number
  minor: number
  xattrs: [string, string][]
  /** Runs of data: where in the file, which device, where on it, how long. */
  data: { fileOffset: number; device: number; deviceOffset: number; length: number }[]
  entries?: [string, number][]
}

export function readErofs(image: Buffer) {
  const superblock = image.subarray(1024, 1152)
  assert.equal(superblock.readUInt32LE(0), 0xe0f5e1e2, 'magic')
  assert.equal(superblock[12], 9, 'block size')
  const checked = Buffer.from(image.subarray(1024, 1024 + BLOCK))
  checked.fill(0, 4, 8)
  assert.equal(superblock.readUInt32LE(4), crc32c(0xffffffff, checked), 'checksum')
  assert.equal(superblock.readUInt32LE(36) * BLOCK, image.length, 'blocks')
  const metaAt = superblock.readUInt32LE(40) * BLOCK
  const sharedAt = superblock.readUInt32LE(44) * BLOCK
  const epoch = { seconds: Number(superblock.readBigInt64LE(24)), nanos: superblock.readUInt32LE(32) }
  const devices = Array.from({ length: superblock.readUInt16LE(86) }, (_, index) => {
    const at = superblock.readUInt16LE(88) * 128 + index * 128
    return { tag: image.toString('latin1', at, at + 64), blocks: image.readUInt32LE(at + 64), uniaddr: image.readUInt32LE(at + 68) * BLOCK }
  })

  function xattrEntry(at: number): { pair: [string, string]; end: number } {
    const valueAt = at + 4 + image[at]
    const length = image.readUInt16LE(at + 2)
    const prefix = PREFIXES[image[at + 1]]
    assert.ok(prefix, 'xattr prefix')
    return { pair: [prefix + image.toString('latin1', at + 4, valueAt), image.toString('hex', valueAt, valueAt + length)], end: Math.ceil((valueAt + length) / 4) * 4 }
  }

  function inode(nid: number): ReadInode {
    const at = metaAt + nid * 32
    const format = image.readUInt16LE(at)
    const extended = (format & 1) === 1
    const layout = (format >> 1) & 7
    const mode = image.readUInt16LE(at + 4)
    const type = TYPES[mode >> 12]
    const size = extended ? Number(image.readBigUInt64LE(at + 8)) : image.readUInt32LE(at + 8)
    const u = image.readUInt32LE(at + 16)
    const count = image.readUInt16LE(at + 2)
    const xattrsAt = at + (extended ? 64 : 32)
    const behind = xattrsAt + (count === 0 ? 0 : 12 + (count - 1) * 4)
    const xattrs: [string, string][] = []
    if (count > 0) {
      let next = xattrsAt + 12
      for (let shared = image[xattrsAt + 4]; shared > 0; shared--, next += 4) xattrs.push(xattrEntry(sharedAt + image.readUInt32LE(next) * 4).pair)
      while (next < behind) {
        const { pair, end } = xattrEntry(next)
        xattrs.push(pair)
        next = end
      }
      assert.equal(next, behind, 'xattrs end where the inode says')
    }
    const device = type === 'char' || type === 'block'
    const result: ReadInode = {
      nid,
      type,
      mode: mode & 0o7777,
      uid: extended ? image.readUInt32LE(at + 24) : image.readUInt16LE(at + 24),
      gid: extended ? image.readUInt32LE(at + 28) : image.readUInt16LE(at + 26),
      mtimeSeconds: extended ? Number(image.readBigInt64LE(at + 32)) : epoch.seconds,
      mtimeNanos: extended ? image.readUInt32LE(at + 40) : epoch.nanos,
      nlink: extended ? image.readUInt32LE(at + 44) : image.readUInt16LE(at + 6),
      size,
      link: '',
      major: device ? (u >> 8) & 0xfff : 0,
      minor: device ? (u & 0xff) | ((u >>> 12) & 0xfff00) : 0,
      xattrs: xattrs.sort((a, b) => (a[0] < b[0] ? -1 : 1)),
      data: [],
    }
    if (type === 'file') {
      if (size > 0) assert.equal(layout, 4, 'files with data have chunks')
      if (size > 0) result.data = chunks(Math.ceil(behind / 8) * 8, u, size)
    } else if (type === 'dir' || type === 'symlink') {
      const bytes = flatData(layout, u, size, behind)
      if (type === 'symlink') result.link = bytes.toString('latin1')
      else result.entries = directory(bytes)
    }
    return result
  }

  function chunks(at: number, format: number, size: number): ReadInode['data'] {
    assert.equal(format & ~0x1f, 0x20, 'chunk entries name devices')
    const chunk = 2 ** ((format & 0x1f) + 9)
    const runs: ReadInode['data'] = []
    for (let offset = 0, entry = at; offset < size; offset += chunk, entry += 8) {
      const block = image.readUInt32LE(entry + 4)
      if (block === 0xffffffff) continue
      const device = image.readUInt16LE(entry + 2)
      const length = Math.min(chunk, size - offset)
      const last = runs.at(-1)
      if (last && last.fileOffset + last.length === offset && last.device === device && last.deviceOffset + last.length === block * BLOCK) last.length += length
      else runs.push({ fileOffset: offset, device, deviceOffset: block * BLOCK, length })
    }
    return runs
  }

  function flatData(layout: number, block: number, size: number, behind: number): Buffer {
    if (layout === 0) return image.subarray(block * BLOCK, block * BLOCK + size)
    assert.equal(layout, 2, 'inline')
    const tail = size % BLOCK
    assert.ok((behind % BLOCK) + tail <= BLOCK, 'inline data stays within a block')
    return Buffer.concat([image.subarray(block * BLOCK, size > tail ? block * BLOCK + size - tail : block * BLOCK), image.subarray(behind, behind + tail)])
  }

  function directory(bytes: Buffer): [string, number][] {
    const entries: [string, number][] = []
    for (let start = 0; start < bytes.length; start += BLOCK) {
      const block = bytes.subarray(start, start + BLOCK)
      const count = block.readUInt16LE(8) / 12
      assert.ok(Number.isInteger(count) && count > 0, 'first name follows the last entry')
      for (let i = 0; i < count; i++) {
        const from = block.readUInt16LE(i * 12 + 8)
        const zero = block.indexOf(0, from)
        const to = i + 1 < count ? block.readUInt16LE((i + 1) * 12 + 8) : zero === -1 ? block.length : zero
        const nid = Number(block.readBigUInt64LE(i * 12))
        const name = block.toString('latin1', from, to)
        if (entries.length > 0) assert.ok(entries.at(-1)![0] < name, 'names are sorted')
        assert.equal(DIRENT_TYPES[block[i * 12 + 10]], TYPES[image.readUInt16LE(metaAt + nid * 32 + 4) >> 12], 'type in the directory')
        entries.push([name, nid])
      }
    }
    return entries
  }

  return { root: superblock.readUInt16LE(14), uuid: superblock.toString('hex', 48, 64), inodes: Number(superblock.readBigUInt64LE(16)), devices, inode }
}
