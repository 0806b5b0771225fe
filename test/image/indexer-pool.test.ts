// Indexing in worker threads gives what indexing in place gives, for several layers at once, and fails as cleanly.
import { afterEach, describe, expect, test } from '@jest/globals'
import { createHash } from 'node:crypto'
import { gzipSync, zstdDecompressSync } from 'node:zlib'
import { CODEC_RAW } from '../../image/block-table.ts'
import { SkimmerError } from '../../oci/errors.ts'
import { indexLayer } from '../../image/indexer.ts'
import type { IndexOptions } from '../../image/indexer.ts'
import { IndexerPool } from '../../image/indexer-pool.ts'
import { buildTar } from './tar-builder.ts'

const digestOf = (bytes: Uint8Array): string => `sha256:${createHash('sha256').update(bytes).digest('hex')}`
const noise = (length: number, seed: number): Buffer => Buffer.concat(Array.from({ length: Math.ceil(length / 64) }, (_, i) => createHash('sha512').update(`${seed} ${i}`).digest()))

const layers = Array.from({ length: 12 }, (_, seed) => {
  const tar = buildTar([{ name: `dir${seed}`, type: 'dir' }, { name: 'big', data: noise(1_500_000, seed) }, ...Array.from({ length: 100 }, (_, i) => ({ name: `f${i}`, data: `${seed} `.repeat(i * 20) }))])
  const blob = gzipSync(tar, { level: 1 })
  return { tar, blob, options: { layerDigest: digestOf(blob), layerSize: blob.length, compression: 'gzip' as const, expectedDiffId: digestOf(tar) } }
})
type Sink = IndexOptions['sink']
const ignore: Sink = { blocks() {} }

async function* pieces(blob: Uint8Array): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < blob.length; at += 30_000) yield blob.subarray(at, at + 30_000)
}

/** A registry that does not answer any more. */
const never = (): AsyncIterable<Uint8Array> => ({ [Symbol.asyncIterator]: () => ({ next: () => new Promise(() => {}) }) })

let pool: IndexerPool
afterEach(() => pool.close())

describe('the indexer pool', () => {
  test('indexes more layers at once than it has threads, each as it would be alone', async () => {
    pool = new IndexerPool({ threads: 2 })
    await Promise.all(layers.map(async ({ tar, blob, options }) => {
      const stream = createHash('sha256')
      let working = false
      const sink: Sink = {
        async blocks(batch) {
          expect(working).toBe(false)
          working = true
          await new Promise((resolve) => setImmediate(resolve))
          for (const { packed, codec, hash } of batch) {
            expect(digestOf(packed)).toBe(`sha256:${Buffer.from(hash).toString('hex')}`)
            stream.update(codec === CODEC_RAW ? packed : zstdDecompressSync(packed))
          }
          working = false
        },
      }
      const layer = await pool.index(pieces(blob), { ...options, sink })
      expect(`sha256:${stream.digest('hex')}`).toBe(digestOf(tar))
      const alone = await indexLayer(pieces(blob), { ...options, sink: ignore })
      expect([layer.indexDigest, layer.diffId, layer.fileCount]).toEqual([alone.indexDigest, digestOf(tar), 102])
      expect(layer.blocks).toEqual(alone.blocks)
      expect(layer.decode().files).toHaveLength(102)
    }))
  })

  test('passes errors on with their code, and goes on working', async () => {
    pool = new IndexerPool({ threads: 1 })
    const [{ blob, options }] = layers
    await expect(pool.index(pieces(blob.subarray(0, 50_000)), { ...options, sink: ignore })).rejects.toMatchObject({ name: 'SkimmerError', code: 'DIGEST_MISMATCH' })
    await expect(pool.index(pieces(blob), { ...options, layerDigest: digestOf(Buffer.of(1)), sink: ignore })).rejects.toMatchObject({ code: 'DIGEST_MISMATCH' })
    const text = Buffer.from('no tar at all '.repeat(100))
    await expect(pool.index(pieces(text), { layerDigest: digestOf(text), layerSize: text.length, compression: 'detect', sink: ignore })).rejects.toMatchObject({ code: 'INVALID_DATA' })
    await expect(pool.index(pieces(blob), { ...options, sink: { blocks: () => Promise.reject(new Error('disk full')) } })).rejects.toThrow('disk full')
    async function* broken() {
      yield blob.subarray(0, 1000)
      throw new Error('connection reset')
    }
    await expect(pool.index(broken(), { ...options, sink: ignore })).rejects.toThrow('connection reset')
    expect((await pool.index(pieces(blob), { ...options, sink: ignore })).diffId).toBe(options.expectedDiffId)
  })

  test('of a layer that breaks early, the rest of the blob is still asked whether it was the promised one', async () => {
    pool = new IndexerPool({ threads: 1 })
    const broken = gzipSync(Buffer.concat([Buffer.from('no tar at all '.repeat(100)), noise(4_000_000, 1)]))
    const options = { layerDigest: digestOf(broken), layerSize: broken.length, compression: 'gzip' as const, sink: ignore }
    let asked = 0
    async function* watched(bytes: Uint8Array) {
      for await (const piece of pieces(bytes)) {
        asked += piece.length
        yield piece
      }
    }
    await expect(pool.index(watched(broken), options)).rejects.toMatchObject({ code: 'INVALID_DATA' })
    expect(asked).toBe(broken.length)
    const damaged = Buffer.from(broken)
    damaged[damaged.length - 20] ^= 1
    await expect(pool.index(pieces(damaged), options)).rejects.toMatchObject({ code: 'DIGEST_MISMATCH' })
  })

  test('an input that checks its digest itself is believed about it, and its error is what counts', async () => {
    pool = new IndexerPool({ threads: 1 })
    const [{ blob, options }] = layers
    async function* registry(bytes: Uint8Array) {
      yield* pieces(bytes.subarray(0, -1000))
      if (digestOf(bytes) !== options.layerDigest) throw new SkimmerError('DIGEST_MISMATCH', 'not what the manifest names')
      yield bytes.subarray(-1000)
    }
    expect((await pool.index(registry(blob), { ...options, verified: true, sink: ignore })).diffId).toBe(options.expectedDiffId)
    const damaged = Buffer.from(blob)
    damaged[1_000] ^= 1
    await expect(pool.index(registry(damaged), { ...options, verified: true, sink: ignore })).rejects.toThrow('not what the manifest names')
  })

  test('a sink that does not take blocks stops the download; what it was lent stays as it is', async () => {
    pool = new IndexerPool({ threads: 2 })
    const tar = buildTar(Array.from({ length: 40 }, (_, i) => ({ name: `f${i}`, data: noise(1_000_000, i) })))
    let asked = 0
    async function* plain() {
      for (let at = 0; at < tar.length; at += 100_000) {
        asked += 100_000
        yield tar.subarray(at, at + 100_000)
      }
    }
    const waiting: (() => void)[] = []
    let open = false
    const stream = createHash('sha256')
    const sink: Sink = {
      async blocks(batch) {
        const before = batch.map(({ packed }) => digestOf(packed))
        if (!open) await new Promise<void>((resolve) => waiting.push(resolve))
        expect(batch.map(({ packed }) => digestOf(packed))).toEqual(before)
        for (const { packed, codec } of batch) stream.update(codec === CODEC_RAW ? packed : zstdDecompressSync(packed))
      },
    }
    const indexing = pool.index(plain(), { layerDigest: digestOf(tar), layerSize: tar.length, compression: 'none', sink })
    let settled = -1
    while (waiting.length === 0 || settled !== asked) {
      settled = asked
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
    expect(asked).toBeLessThan(12_000_000)
    open = true
    waiting[0]()
    await indexing
    expect(`sha256:${stream.digest('hex')}`).toBe(digestOf(tar))
  })

  test('gives up when it is told to, also while a layer waits for its turn', async () => {
    pool = new IndexerPool({ threads: 1 })
    const [{ options }] = layers
    const controller = new AbortController()
    const attempts = Array.from({ length: 6 }, () => pool.index(never(), { ...options, sink: ignore, signal: controller.signal }))
    controller.abort()
    for (const attempt of await Promise.allSettled(attempts)) expect(attempt).toMatchObject({ status: 'rejected', reason: { code: 'ABORTED' } })
    await expect(pool.index(never(), { ...options, sink: ignore, signal: controller.signal })).rejects.toMatchObject({ code: 'ABORTED' })
  })

  test('closing ends the layers under way', async () => {
    pool = new IndexerPool({ threads: 1 })
    const [{ blob, options }] = layers
    const started = Promise.withResolvers<void>()
    const stuck: Sink = {
      blocks: () => {
        started.resolve()
        return new Promise(() => {})
      },
    }
    const attempt = pool.index(pieces(blob), { ...options, sink: stuck })
    await started.promise
    const [closed] = await Promise.all([pool.close(), expect(attempt).rejects.toMatchObject({ code: 'ABORTED' })])
    expect(closed).toBeUndefined()
    await expect(pool.index(pieces(blob), { ...options, sink: ignore })).rejects.toMatchObject({ code: 'ABORTED' })
  })
})
