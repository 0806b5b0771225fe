// A layer blob goes in, as registries have them or as an enemy sends them; blocks and an index come out, or a clear error.
import { describe, expect, test } from '@jest/globals'
import { createHash } from 'node:crypto'
import { gzipSync, zstdCompressSync, zstdDecompressSync } from 'node:zlib'
import { blockHash, CODEC_RAW, packedLength, rawLength } from '../../image/block-table.ts'
import { indexLayer } from '../../image/indexer.ts'
import type { IndexOptions, PackedBlock } from '../../image/indexer.ts'
import { END, header, octal } from './odd-tar.ts'
import { buildTar } from './tar-builder.ts'

const digestOf = (bytes: Uint8Array): string => `sha256:${createHash('sha256').update(bytes).digest('hex')}`

/** Bytes that do not compress, always the same. */
function noise(length: number, seed = 1): Buffer {
  const parts: Buffer[] = []
  for (let i = 0; i * 64 < length; i++) parts.push(createHash('sha512').update(`${seed} ${i}`).digest())
  return Buffer.concat(parts).subarray(0, length)
}

const tar = buildTar([
  { name: 'etc', type: 'dir' },
  { name: 'etc/passwd', data: 'root:x:0:0\n'.repeat(50) },
  { name: 'bin/big', data: Buffer.concat([noise(500_000), Buffer.alloc(500_000, 'text ')]), mode: 0o755 },
  ...Array.from({ length: 300 }, (_, i) => ({ name: `share/${i}`, data: `number ${i} `.repeat(i) })),
  { name: 'sh', type: 'symlink' as const, link: 'bin/big' },
])

async function* pieces(blob: Uint8Array, length = 10_000): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < blob.length; at += length) yield blob.subarray(at, at + length)
}

function collect(): { blocks: PackedBlock[]; sink: IndexOptions['sink']; stream(): Buffer } {
  const blocks: PackedBlock[] = []
  return {
    blocks,
    sink: { blocks: (batch) => batch.forEach((block) => blocks.push({ ...block, packed: Uint8Array.from(block.packed) })) },
    stream: () => Buffer.concat(blocks.map(({ packed, codec }) => (codec === CODEC_RAW ? packed : zstdDecompressSync(packed)))),
  }
}

const hashes = (blocks: PackedBlock[]): string[] => blocks.map(({ packed }) => digestOf(packed))

async function index(blob: Uint8Array, change: Partial<IndexOptions> = {}, pieceLength?: number) {
  const out = collect()
  const layer = await indexLayer(pieces(blob, pieceLength), { layerDigest: digestOf(blob), layerSize: blob.length, compression: 'detect', expectedDiffId: digestOf(tar), sink: out.sink, ...change })
  return { layer, ...out }
}

const skippable = Buffer.from([0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3])
const halves = [tar.subarray(0, 300_000), tar.subarray(300_000)]

const changed = (bytes: Buffer, at: number): Buffer => {
  const copy = Buffer.from(bytes)
  copy[at] ^= 0x55
  return copy
}

const peakOf = async (make: () => AsyncGenerator<Uint8Array>): Promise<{ grown: number; files: number }> => {
  const hash = createHash('sha256')
  let size = 0
  for await (const piece of make()) {
    hash.update(piece)
    size += piece.length
  }
  const before = process.memoryUsage().rss
  let peak = before
  const watched = async function* () {
    let i = 0
    for await (const piece of make()) {
      if (i++ % 16 === 0) peak = Math.max(peak, process.memoryUsage.rss())
      yield piece
    }
  }
  const { fileCount } = await indexLayer(watched(), { layerDigest: `sha256:${hash.digest('hex')}`, layerSize: size, compression: 'none', sink: { blocks() {} } })
  return { grown: Math.max(peak, process.memoryUsage.rss()) - before, files: fileCount }
}

describe('indexing a layer', () => {
  test.each<[string, Buffer]>([
    ['plain', tar],
    ['gzip', gzipSync(tar)],
    ['gzip of several members', Buffer.concat(halves.map((half) => gzipSync(half)))],
    ['zstd', zstdCompressSync(tar)],
    ['zstd of several frames and skippable ones', Buffer.concat([skippable, ...halves.map((half) => zstdCompressSync(half)), skippable])],
  ])('%s: the blocks are the stream, the index says where everything is', async (_name, blob) => {
    const { layer, blocks, stream } = await index(blob)
    expect(stream().equals(tar)).toBe(true)
    expect(layer).toMatchObject({ diffId: digestOf(tar), layerDigest: digestOf(blob), layerSize: blob.length, fileCount: 304 })
    expect(layer.indexDigest).toBe(digestOf(layer.encoded))
    expect([rawLength(layer.blocks), packedLength(layer.blocks)]).toEqual([tar.length, blocks.reduce((sum, { packed }) => sum + packed.length, 0)])
    blocks.forEach(({ packed, hash }, i) => {
      expect(digestOf(packed)).toBe(`sha256:${Buffer.from(hash).toString('hex')}`)
      expect(Buffer.from(blockHash(layer.blocks, i)).equals(hash)).toBe(true)
    })
    expect(blocks.some(({ codec }) => codec === CODEC_RAW)).toBe(true)
    const files = layer.decode().files
    expect(files).toHaveLength(304)
    const passwd = files.find(({ path }) => path === 'etc/passwd')
    expect(tar.toString('latin1', passwd?.offset, (passwd?.offset ?? 0) + (passwd?.size ?? 0))).toMatch(/^root:x:0:0\n/)
  })

  test('the same layer gives the same bytes whatever the pieces it comes in', async () => {
    const blob = gzipSync(tar)
    const first = await index(blob)
    for (const length of [1000, 77_777, 1e9]) {
      const again = await index(blob, {}, length)
      expect(again.layer.encoded.equals(first.layer.encoded)).toBe(true)
      expect(hashes(again.blocks)).toEqual(hashes(first.blocks))
    }
  })

  test('other compression of the same stream gives the same blocks', async () => {
    const [gzip, zstd] = [await index(gzipSync(tar)), await index(zstdCompressSync(tar), {}, 500)]
    expect(hashes(zstd.blocks)).toEqual(hashes(gzip.blocks))
  })

  test('an empty layer, and one of an empty tar', async () => {
    for (const blob of [Buffer.alloc(0), END, gzipSync(END), gzipSync(Buffer.alloc(0))]) {
      const { layer } = await index(blob, { expectedDiffId: undefined })
      expect([layer.fileCount, layer.layerSize]).toEqual([0, blob.length])
    }
  })

  test('a slow sink slows the layer down instead of filling memory', async () => {
    const blob = zstdCompressSync(buildTar(Array.from({ length: 200 }, (_, i) => ({ name: String(i), data: noise(100_000, i) }))))
    let given = 0
    let inSink = 0
    const sink = {
      async blocks(batch: readonly PackedBlock[]) {
        expect(++inSink).toBe(1)
        await new Promise((resolve) => setImmediate(resolve))
        inSink--
        given += batch.length
      },
    }
    let mostAhead = 0
    async function* watched() {
      let sent = 0
      for await (const piece of pieces(blob, 100_000)) {
        yield piece
        mostAhead = Math.max(mostAhead, ++sent - given)
      }
    }
    const layer = await indexLayer(watched(), { layerDigest: digestOf(blob), layerSize: blob.length, compression: 'zstd', sink })
    expect(given).toBe(layer.blocks.count)
    expect(mostAhead).toBeLessThan(80)
  })
})

describe('a layer that is not what it should be', () => {
  const blob = gzipSync(tar)
  const zstd = zstdCompressSync(tar)
  test.each<[string, () => Promise<unknown>, string, RegExp]>([
    ['another blob', () => index(blob, { layerDigest: digestOf(tar) }), 'DIGEST_MISMATCH', /came as/],
    ['a longer blob', () => index(blob, { layerSize: blob.length - 1 }), 'DIGEST_MISMATCH', /more than/],
    ['a shorter blob', () => index(blob, { layerSize: blob.length + 1 }), 'DIGEST_MISMATCH', /bytes, not the/],
    ['another diffID', () => index(blob, { expectedDiffId: digestOf(blob) }), 'DIGEST_MISMATCH', /diffID/],
    ['a blob damaged on its way', () => index(changed(blob, 5000), { layerDigest: digestOf(blob) }), 'DIGEST_MISMATCH', /came as/],
    ['corrupt gzip', () => index(changed(blob, 5000)), 'INVALID_DATA', /gzip/],
    ['gzip with a wrong checksum', () => index(changed(blob, blob.length - 5)), 'INVALID_DATA', /gzip/],
    ['truncated gzip', () => index(blob.subarray(0, -9)), 'INVALID_DATA', /gzip/],
    ['gzip with garbage behind', () => index(Buffer.concat([blob, Buffer.from('garbage behind')])), 'INVALID_DATA', /gzip/],
    ['gzip with zeros behind', () => index(Buffer.concat([blob, Buffer.alloc(100)])), 'INVALID_DATA', /something else after/],
    ['gzip with the start of a member behind', () => index(Buffer.concat([blob, blob.subarray(0, 5)])), 'INVALID_DATA', /gzip/],
    ['corrupt zstd', () => index(changed(zstd, 1)), 'INVALID_DATA', /tar/],
    ['zstd with a broken second frame', () => index(Buffer.concat([zstd, changed(zstd, 1)])), 'INVALID_DATA', /zstd/],
    ['truncated zstd', () => index(zstd.subarray(0, -9)), 'INVALID_DATA', /zstd/],
    ['zstd with garbage behind', () => index(Buffer.concat([zstd, Buffer.from('garbage')])), 'INVALID_DATA', /zstd/],
    ['zstd that wants 1 GiB of memory', () => index(Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0, 20 << 3, 1, 0, 0])), 'UNSUPPORTED', /window/],
    ['no tar', () => index(noise(5000)), 'INVALID_DATA', /tar/],
    ['a truncated tar', () => index(gzipSync(tar.subarray(0, 400_000))), 'INVALID_DATA', /cut off/],
    ['a bomb', () => index(gzipSync(Buffer.alloc(3_000_000)), { maxRawBytes: 1_000_000 }), 'LIMIT_EXCEEDED', /more than 1000000/],
    ['a digest of another kind', () => index(blob, { layerDigest: 'sha512:00' }), 'UNSUPPORTED', /sha256/],
  ])('%s', async (_name, attempt, code, message) => {
    await expect(attempt()).rejects.toThrow(message)
    await expect(attempt()).rejects.toMatchObject({ code })
  })

  test('any damage ends in an error or in the right index', async () => {
    for (const bytes of [blob, zstd]) {
      for (let i = 0; i < 25; i++) {
        const damaged = changed(bytes, (i * 7919) % bytes.length)
        await expect(index(damaged)).rejects.toMatchObject({ name: 'SkimmerError' })
      }
    }
  })

  test('an input or a sink that fails is passed on', async () => {
    async function* broken() {
      yield blob.subarray(0, 100)
      throw new Error('connection reset')
    }
    const options = { layerDigest: digestOf(blob), layerSize: blob.length, compression: 'detect' as const }
    await expect(indexLayer(broken(), { ...options, sink: collect().sink })).rejects.toThrow('connection reset')
    const full = { blocks: () => Promise.reject(new Error('disk full')) }
    await expect(indexLayer(pieces(blob), { ...options, sink: full })).rejects.toThrow('disk full')
  })

  test('a stream that never answers again ends with its signal', async () => {
    const controller = new AbortController()
    let returned = false
    const stuck: AsyncIterable<Uint8Array> = {
      [Symbol.asyncIterator]: () => ({
        next: () => {
          setImmediate(() => controller.abort())
          return new Promise(() => {})
        },
        return: () => {
          returned = true
          return Promise.resolve({ done: true, value: undefined })
        },
      }),
    }
    await expect(indexLayer(stuck, { layerDigest: digestOf(blob), layerSize: 5, compression: 'detect', sink: collect().sink, signal: controller.signal })).rejects.toMatchObject({ code: 'ABORTED' })
    expect(returned).toBe(true)
  })
})

describe('memory', () => {
  test('a layer of 512 MiB needs no more than a small one', async () => {
    const file = noise(1_000_000)
    const { grown } = await peakOf(async function* () {
      for (let i = 0; i < 512; i++) {
        yield header({ name: `f${i}`, size: octal(1024 * 1024) })
        yield file
        yield Buffer.alloc(1024 * 1024 - file.length)
      }
      yield END
    })
    expect(grown).toBeLessThan(150 * 1024 * 1024)
  })

  test('a million empty files do not either', async () => {
    const template = Buffer.concat(Array.from({ length: 1000 }, (_, i) => header({ name: `dir000/file${i}` })))
    const { grown, files } = await peakOf(async function* () {
      for (let dir = 0; dir < 1000; dir++) {
        const digits = String(dir).padStart(3, '0')
        const added = [...digits].reduce((sum, digit) => sum + Number(digit), 0) // to the checksum of 000
        const headers = Buffer.from(template)
        for (let at = 0; at < headers.length; at += 512) {
          headers.write(digits, at + 3, 'latin1')
          headers.write((Number.parseInt(template.toString('latin1', at + 148, at + 154), 8) + added).toString(8).padStart(6, '0'), at + 148, 'latin1')
        }
        yield headers
      }
      yield END
    })
    expect(files).toBe(1_000_000)
    expect(grown).toBeLessThan(200 * 1024 * 1024)
  })
})
