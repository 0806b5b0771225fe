// Layers to store in tests: bytes that compress as real ones do, cut in blocks, with their table.
import * as fs from 'node:fs'
import * as os from 'node:os'
import * as path from 'node:path'
import * as zlib from 'node:zlib'
import { pino } from 'pino'
import { buildBlockTable, CODEC_RAW, CODEC_ZSTD } from '../../image/block-table.ts'
import type { BlockTable } from '../../image/block-table.ts'
import { sha256 } from '../../peer/block-codec.ts'
import { BlockStore } from '../../peer/block-store.ts'
import type { BlockStoreOptions } from '../../peer/block-store.ts'

export interface SampleLayer {
  readonly raw: Buffer
  readonly packed: Buffer[]
  readonly table: BlockTable
  readonly diffId: string
}

/** A layer of `lengths.length` blocks; the same seed makes the same bytes, block by block. */
export function sampleLayer(lengths: readonly number[], options: { seed?: number; codec?: number } = {}): SampleLayer {
  const codec = options.codec ?? CODEC_ZSTD
  let word = (options.seed ?? 1) * 2654435761 >>> 0 || 1
  const blocks = lengths.map((length) => {
    const raw = Buffer.alloc(length)
    for (let at = 0; at < length; at++) {
      if (at % 3 === 0) word = (Math.imul(word, 1664525) + 1013904223) >>> 0
      raw[at] = at % 3 === 0 ? word >>> 24 : at & 15
    }
    return raw
  })
  const packed = blocks.map((raw) => (codec === CODEC_RAW ? raw : zlib.zstdCompressSync(raw, { params: { [zlib.constants.ZSTD_c_compressionLevel]: 1 } })))
  const raw = Buffer.concat(blocks)
  const table = buildBlockTable(packed.map((bytes, block) => ({ rawLength: lengths[block], packedLength: bytes.length, codec, hash: sha256(bytes) })))
  return { raw, packed, table, diffId: `sha256:${sha256(raw).toString('hex')}` }
}

export const silent = pino({ level: 'silent' })

export function makeDirectory(): string {
  return fs.mkdtempSync(path.join(os.tmpdir(), 'skimmer-store-'))
}

export function openStore(directory: string, options: Partial<BlockStoreOptions> = {}): Promise<BlockStore> {
  return BlockStore.open({ directory, capBytes: 1e9, logger: silent, ...options })
}

/** The file under `packs/` with this ending; there must be exactly one. */
export function packFile(directory: string, ending: RegExp): string {
  const names = fs.readdirSync(path.join(directory, 'packs')).filter((name) => ending.test(name))
  if (names.length !== 1) throw new Error(`expected one file like ${String(ending)}, found ${names.join(', ') || 'none'}`)
  return path.join(directory, 'packs', names[0])
}
export const PACK = /^[0-9a-f]{32}$/

export async function fill(resource: { putBlock(block: number, packed: Uint8Array): Promise<void> }, layer: SampleLayer, blocks = layer.packed.map((_, block) => block)): Promise<void> {
  await Promise.all(blocks.map((block) => resource.putBlock(block, layer.packed[block])))
}

/** Flips one byte of a file. */
export function damage(file: string, position: number): void {
  const fd = fs.openSync(file, 'r+')
  const byte = Buffer.alloc(1)
  fs.readSync(fd, byte, 0, 1, position)
  byte[0] ^= 0xff
  fs.writeSync(fd, byte, 0, 1, position)
  fs.closeSync(fd)
}

/** Jest's own comparison of large buffers takes seconds. */
export const same = (one: Uint8Array | Uint8Array[], other: Uint8Array | Uint8Array[]): boolean => Buffer.concat([one].flat()).equals(Buffer.concat([other].flat()))
