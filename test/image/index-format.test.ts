// The layer index survives a round trip, refuses lies, and never asks for more than its bounds.
import { describe, expect, test } from '@jest/globals'
import * as fc from 'fast-check'
import { createHash } from 'node:crypto'
import { zstdCompressSync, zstdDecompressSync } from 'node:zlib'
import { buildBlockTable, CODEC_RAW, CODEC_ZSTD } from '../../image/block-table.ts'
import { FileTableEncoder } from '../../image/file-table-encoder.ts'
import { assembleLayerIndex, decodeLayerIndex, decodeLayerIndexHead, encodeLayerIndex, INDEX_FORMAT_VERSION } from '../../image/index-format.ts'
import type { FileEntry, LayerIndex } from '../../image/layer-index.ts'
import { cleanPath } from '../../image/tar-path.ts'
import { SkimmerError } from '../../oci/errors.ts'

const digest = (text: string): string => `sha256:${createHash('sha256').update(text).digest('hex')}`
const plain: FileEntry = { path: 'a', type: 'file', mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanos: 0, size: 0, offset: 512, link: '', major: 0, minor: 0, xattrs: [] }

function indexOf(files: FileEntry[], streamLength: number): LayerIndex {
  const blocks = []
  for (let at = 0; at < streamLength; at += 262_144) {
    const rawLength = Math.min(262_144, streamLength - at)
    const isRaw = at % 524_288 === 0
    blocks.push({ rawLength, packedLength: isRaw ? rawLength : Math.ceil(rawLength / 3), codec: isRaw ? CODEC_RAW : CODEC_ZSTD, hash: createHash('sha256').update(String(at)).digest() })
  }
  return { diffId: digest('stream'), layerDigest: digest('blob'), layerSize: 12_345, blocks: buildBlockTable(blocks), files }
}

/** Entries as a tar could hold them: any names and numbers, data in order. */
const name = fc.string({ unit: fc.integer({ min: 1, max: 255 }).map((code) => String.fromCharCode(code)), minLength: 1, maxLength: 20 })
const path = fc.array(name, { minLength: 1, maxLength: 5 }).map((names) => cleanPath(names.join('/'))).filter((clean) => clean !== '')
const xattrs = fc.uniqueArray(fc.tuple(name, fc.uint8Array({ maxLength: 40 })), { selector: ([key]) => key, maxLength: 3 })
const common = fc.record({
  path,
  mode: fc.integer({ min: 0, max: 0o7777 }),
  uid: fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 2 ** 32 - 1 })),
  gid: fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 2 ** 32 - 1 })),
  mtimeSeconds: fc.oneof(fc.constant(1e9), fc.integer({ min: -(2 ** 50), max: 2 ** 50 })),
  mtimeNanos: fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 999_999_999 })),
  xattrs: fc.oneof(fc.constant([]), xattrs),
})
const kind = fc.oneof(
  fc.record({ type: fc.constant('file' as const), size: fc.integer({ min: 0, max: 600_000 }), gap: fc.integer({ min: 1, max: 4 }) }),
  fc.record({ type: fc.constant('file' as const), holes: fc.array(fc.tuple(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 9 })), { maxLength: 5 }), gap: fc.integer({ min: 1, max: 4 }) }),
  fc.record({ type: fc.constantFrom('dir' as const, 'fifo' as const) }),
  fc.record({ type: fc.constantFrom('symlink' as const, 'hardlink' as const), link: path }),
  fc.record({ type: fc.constantFrom('char' as const, 'block' as const), major: fc.integer({ min: 0, max: 0xfff }), minor: fc.integer({ min: 0, max: 0xfffff }) }),
)

function layerOf(drafts: [Record<string, unknown>, Record<string, unknown>][]): LayerIndex {
  let end = 0
  const files = drafts.map(([shared, own]) => {
    const { gap, holes, ...rest } = own as { gap?: number; holes?: [number, number][]; size?: number }
    const entry = { ...plain, offset: 0, ...shared, ...rest } as FileEntry
    if (gap === undefined) return entry
    const offset = end + gap * 512
    if (holes === undefined) {
      end = offset + Math.ceil(entry.size / 512) * 512
      return { ...entry, offset }
    }
    let fileOffset = 0
    let used = 0
    const extents = holes.map(([hole, length]) => {
      const extent = { fileOffset: fileOffset + hole * 512, offset: offset + used, length: length * 512 }
      fileOffset = extent.fileOffset + extent.length
      used += extent.length
      return extent
    })
    end = offset + used
    return { ...entry, offset, size: fileOffset + 100, extents }
  })
  return indexOf(files, end + 1024)
}
const layer = fc.array(fc.tuple(common, kind), { maxLength: 40 }).map((drafts) => layerOf(drafts as never))

const expectRefused = (bytes: Uint8Array, message: RegExp): void => {
  expect(() => decodeLayerIndex(bytes)).toThrow(message)
  expect(() => decodeLayerIndex(bytes)).toThrow(expect.objectContaining({ code: 'INVALID_DATA' }) as never)
}

/** An index of these entries as they are, lies included. */
function forge(files: FileEntry[], streamLength = 1024): Buffer {
  const encoder = new FileTableEncoder()
  for (const file of files) encoder.add(file)
  return assembleLayerIndex({ ...indexOf([], streamLength), fileCount: files.length }, encoder)
}

describe('a layer index', () => {
  test('comes back as it was written, byte for byte the same each time', () => {
    fc.assert(fc.property(layer, (index) => {
      const encoded = encodeLayerIndex(index)
      expect(decodeLayerIndex(encoded)).toEqual(index)
      expect(encodeLayerIndex(decodeLayerIndex(encoded)).equals(encoded)).toBe(true)
    }), { numRuns: 150 })
  })

  test('of an empty layer is one too', () => {
    const empty: LayerIndex = { ...indexOf([], 0), layerSize: 0 }
    expect(decodeLayerIndex(encodeLayerIndex(empty))).toEqual(empty)
  })

  test('gives its block table without its file table', () => {
    const index = indexOf([plain], 1_000_000)
    const encoded = encodeLayerIndex(index)
    encoded.fill(0, encoded.length - 20) // of the file table
    expect(decodeLayerIndexHead(encoded)).toEqual({ diffId: index.diffId, layerDigest: index.layerDigest, layerSize: index.layerSize, blocks: index.blocks, fileCount: 1 })
    expect(() => decodeLayerIndex(encoded)).toThrow(/file table/)
  })

  test('of 100,000 files is small', () => {
    const files = Array.from({ length: 100_000 }, (_, i) => ({ ...plain, path: `usr/lib/python3/dist-packages/package${i >> 6}/module${i & 63}.py`, size: (i * 7919) % 9000, offset: 0 }))
    let end = 0
    for (const file of files) {
      file.offset = end + 512
      end = file.offset + Math.ceil(file.size / 512) * 512
    }
    const index = indexOf(files, end + 1024)
    const encoded = encodeLayerIndex(index)
    expect(encoded.length).toBeLessThan(800_000)
    expect(decodeLayerIndex(encoded).files).toHaveLength(100_000)
  })

  test('refuses other digests than sha256', () => {
    expect(() => encodeLayerIndex({ ...indexOf([], 0), layerDigest: `sha512:${'0'.repeat(128)}` })).toThrow(/layerDigest/)
  })
})

describe('an index with lies in it', () => {
  const sample = encodeLayerIndex(layerOf([
    [{ path: 'dir' }, { type: 'dir' }],
    [{ path: 'dir/file', xattrs: [['user.a', Uint8Array.of(1)]] }, { type: 'file', size: 300_000, gap: 1 }],
    [{ path: 'dir/sparse' }, { type: 'file', holes: [[1, 2], [3, 4]], gap: 1 }],
    [{ path: 'link' }, { type: 'symlink', link: '../x' }],
    [{ path: 'dev' }, { type: 'char', major: 1, minor: 3 }],
  ]))
  const withHeader = (change: (header: Buffer) => void): Buffer => {
    const copy = Buffer.from(sample)
    change(copy)
    return copy
  }

  test.each<[string, (header: Buffer) => void, RegExp]>([
    ['magic', (h) => h.fill(0x41, 0, 8), /does not start/],
    ['version', (h) => h.writeUInt32LE(INDEX_FORMAT_VERSION + 1, 8), /version is 2/],
    ['header length', (h) => h.writeUInt32LE(64, 12), /headerLength/],
    ['layer size', (h) => h.fill(0xff, 80, 88), /layerSize/],
    ['stream length', (h) => h.fill(0xff, 88, 96), /streamLength/],
    ['a stream longer than the blocks', (h) => h.writeBigUInt64LE(999_999n, 88), /covers/],
    ['block count', (h) => h.writeUInt32LE(0xffffffff, 96), /blockCount/],
    ['file count', (h) => h.writeUInt32LE(0xffffffff, 100), /fileCount/],
    ['more files than there are', (h) => h.writeUInt32LE(6, 100), /flags/],
    ['fewer files than there are', (h) => h.writeUInt32LE(4, 100), /bytes too many/],
    ['block table length', (h) => h.writeUInt32LE(0xffffffff, 104), /blockTableLength/],
    ['file table length', (h) => h.writeUInt32LE(0xffffffff, 112), /fileTableLength/],
    ['a length that is a little off', (h) => h.writeUInt32LE(h.readUInt32LE(112) + 1, 112), /file table has/],
    ['packed lengths', (h) => h.writeUInt32LE(1, 116), /bytes, not the/],
    ['reserved bytes', (h) => h.writeUInt32LE(1, 120), /reserved/],
  ])('%s', (_what, change, message) => expectRefused(withHeader(change), message))

  test('a table that blows up stops at what the header says', () => {
    const bomb = zstdCompressSync(Buffer.alloc(64 * 1024 * 1024))
    const head = Buffer.from(sample.subarray(0, 128))
    const packedBlocks = head.readUInt32LE(108)
    head.writeUInt32LE(bomb.length, 116)
    expectRefused(Buffer.concat([head, sample.subarray(128, 128 + packedBlocks), bomb]), /file table cannot be decompressed/)
  })

  test.each<[string, Partial<FileEntry>, RegExp]>([
    ['a path that climbs', { path: 'a/../../etc' }, /not clean/],
    ['an absolute path', { path: '/etc' }, /not clean/],
    ['a path with an empty name', { path: 'a//b' }, /not clean/],
    ['a path with a slash at its end', { path: 'a/' }, /not clean/],
    ['a path with a NUL', { path: 'a\0b' }, /not clean/],
    ['a name of 256 bytes', { path: `a/${'x'.repeat(256)}` }, /not clean/],
    ['a path of 4,096 bytes', { path: 'x/'.repeat(2048) }, /path lengths/],
    ['a file at the root', { path: '' }, /root/],
    ['data outside the layer', { size: 2000 }, /outside the layer/],
    ['data far outside the layer', { offset: 512 * 2 ** 40 }, /data/],
    ['an impossible mode', { mode: 0o10000 }, /modes/],
    ['an impossible owner', { uid: 2 ** 32 }, /owners/],
    ['an impossible time', { mtimeSeconds: 2 ** 51 }, /times/],
    ['too many nanoseconds', { mtimeNanos: 1e9 }, /times/],
    ['an empty symlink', { type: 'symlink', link: '' }, /symlink/],
    ['a hardlink that climbs', { type: 'hardlink', link: '../x' }, /not clean/],
    ['a device that cannot be', { type: 'char', major: 0x1000 }, /devices/],
    ['an attribute without a name', { xattrs: [['', Uint8Array.of()]] }, /proper name/],
    ['extents longer than their file', { size: 100, extents: [{ fileOffset: 0, offset: 512, length: 512 }] }, /extent/],
    ['an extent of nothing', { size: 600, extents: [{ fileOffset: 0, offset: 512, length: 0 }] }, /extent/],
  ])('%s', (_what, change, message) => expectRefused(forge([{ ...plain, ...change }]), message))

  test('any damage gives an index or a clear error, in the compressed tables too', () => {
    const packedBlocks = sample.readUInt32LE(108)
    const tables = [sample.subarray(128, 128 + packedBlocks), sample.subarray(128 + packedBlocks)].map((packed) => zstdDecompressSync(packed))
    const edits = fc.array(fc.record({ table: fc.integer({ min: 0, max: 2 }), at: fc.nat(), byte: fc.nat(255) }), { minLength: 1, maxLength: 5 })
    fc.assert(fc.property(edits, fc.nat(sample.length), fc.boolean(), (changes, length, cut) => {
      const parts = [Buffer.from(sample.subarray(0, 128)), ...tables.map((table) => Buffer.from(table))]
      for (const { table, at, byte } of changes) parts[table][at % parts[table].length] = byte
      const packed = [zstdCompressSync(parts[1]), zstdCompressSync(parts[2])]
      if (!changes.some(({ table }) => table === 0)) {
        parts[0].writeUInt32LE(packed[0].length, 108)
        parts[0].writeUInt32LE(packed[1].length, 116)
      }
      const forged = Buffer.concat([parts[0], ...packed])
      expectDecodable(cut ? forged.subarray(0, length) : forged)
    }), { numRuns: 1000 })
  })
})

function expectDecodable(bytes: Uint8Array): void {
  try {
    for (const { path, offset } of decodeLayerIndex(bytes).files) {
      expect(cleanPath(path)).toBe(path)
      expect(offset % 512).toBe(0)
    }
  } catch (error) {
    expect((error as SkimmerError).message).toMatch(/^layer index: /)
    expect((error as SkimmerError).code).toBe('INVALID_DATA')
  }
}
