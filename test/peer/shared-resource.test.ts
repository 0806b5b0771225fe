import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import * as fs from 'node:fs'
import { Worker } from 'node:worker_threads'
import * as fc from 'fast-check'
import { CODEC_RAW } from '../../image/block-table.ts'
import type { BlockStore } from '../../peer/block-store.ts'
import { readSharedSync, setUnpackedCacheBytes } from '../../peer/shared-resource.ts'
import { damage, fill, makeDirectory, openStore, PACK, packFile, same, sampleLayer } from './sample-layer.ts'

const read = (shared: Parameters<typeof readSharedSync>[0], offset: number, length: number): Buffer | { from: number; to: number }[] => {
  const into = Buffer.alloc(length + 20, 0xee)
  const answer = readSharedSync(shared, offset, length, into, 10)
  if (typeof answer !== 'number') return answer
  // Nothing around the answer is touched. (Jest's own comparison of buffers takes its time.)
  expect(into.subarray(0, 10).equals(Buffer.alloc(10, 0xee)) && into.subarray(10 + answer).equals(Buffer.alloc(length + 10 - answer, 0xee))).toBe(true)
  return into.subarray(10, 10 + answer)
}

describe('reading a resource from a thread', () => {
  let directory: string
  let store: BlockStore
  const layer = sampleLayer([5000, 70_000, 1, 300_000, 4096, 512, 100_000])
  beforeEach(async () => {
    directory = makeDirectory()
    store = await openStore(directory)
  })
  afterEach(async () => {
    setUnpackedCacheBytes(64 * 1024 * 1024)
    await store.close()
    fs.rmSync(directory, { recursive: true, force: true })
  })

  test('any part of the stream, whatever of it is packed, unpacked or not here', async () => {
    const resource = await store.add('layer:a', layer.table, { diffId: layer.diffId })
    const plain = sampleLayer([4096, 4096, 100], { codec: CODEC_RAW, seed: 3 })
    const raw = await store.add('blob:b', plain.table, { diffId: plain.diffId })
    await fill(raw, plain)
    const property = (missing: Set<number>): void => fc.assert(fc.property(fc.nat(layer.raw.length + 1000), fc.nat(400_000), (offset, length) => {
      const answer = read(resource.shared(), offset, length)
      const end = Math.min(offset + length, layer.raw.length)
      const wanted = [...layer.packed.keys()].filter((block) => missing.has(block) && layer.table.rawOffsets[block] < end && layer.table.rawOffsets[block + 1] > offset && end > offset)
      if (wanted.length === 0) expect(Buffer.compare(answer as Buffer, layer.raw.subarray(offset, end))).toBe(0)
      else expect((answer as { from: number; to: number }[]).flatMap(({ from, to }) => Array.from({ length: to - from }, (_, index) => from + index))).toEqual(wanted)
    }), { numRuns: 150 })
    property(new Set(layer.packed.keys()))
    await fill(resource, layer, [0, 1, 3, 6])
    property(new Set([2, 4, 5]))
    setUnpackedCacheBytes(150_000)
    await fill(resource, layer)
    property(new Set())
    await resource.prove()
    expect(resource.state[0]).toBe(3)
    property(new Set())
    resource.dropRaw()
    expect(resource.state[0]).toBe(2)
    property(new Set())
    expect(same(read(raw.shared(), 4000, 5000) as Buffer, plain.raw.subarray(4000))).toBe(true)
  })

  test('what was stored before the last start is missing until someone checked it', async () => {
    await fill(await store.add('layer:a', layer.table, {}), layer)
    await store.close()
    store = await openStore(directory)
    const resource = store.get('layer:a')!
    expect(read(resource.shared(), 0, 100)).toEqual([{ from: 0, to: 1 }])
    await resource.check(0)
    expect(same(read(resource.shared(), 0, 100) as Buffer, layer.raw.subarray(0, 100))).toBe(true)
  })

  test('a block that turns bad on disk counts as missing, is found out by check(), and can be brought again', async () => {
    const resource = await store.add('layer:a', layer.table, {})
    await fill(resource, layer)
    damage(packFile(directory, PACK), layer.table.packedOffsets[3])
    expect(read(resource.shared(), 5000, 200_000)).toEqual([{ from: 3, to: 4 }])
    expect(resource.state[3]).toBe(1)
    expect(await resource.check(3)).toBe(false)
    await resource.putBlock(3, layer.packed[3])
    expect(same(read(resource.shared(), 5000, 200_000) as Buffer, layer.raw.subarray(5000, 205_000))).toBe(true)
  })

  test('a raw file that cannot be read any more leaves the pack', async () => {
    const resource = await store.add('layer:a', layer.table, { diffId: layer.diffId })
    await fill(resource, layer)
    await resource.prove()
    fs.truncateSync(packFile(directory, /\.raw$/), 100)
    const answer = read(resource.shared(), 0, 80_000)
    expect(answer).toEqual([{ from: 0, to: 4 }])
    for (let block = 0; block < layer.table.count; block++) await resource.check(block)
    expect(same(read(resource.shared(), 0, 80_000) as Buffer, layer.raw.subarray(0, 80_000))).toBe(true)
  })

  test('a block that found no room is served from memory, for a while', async () => {
    await store.close()
    store = await openStore(directory, { heldBytes: layer.packed[3].length + layer.packed[1].length })
    const resource = await store.add('layer:a', layer.table, {})
    resource.holdBlock(3, layer.packed[3])
    resource.holdBlock(1, layer.packed[1])
    expect(resource.state[3]).toBe(0)
    expect(same(read(resource.shared(), 75_001, 300_000) as Buffer, layer.raw.subarray(75_001, 375_001))).toBe(true)
    setUnpackedCacheBytes(0)
    resource.holdBlock(6, layer.packed[6]) // takes the place of 3
    expect(read(resource.shared(), 75_001, 10)).toEqual([{ from: 3, to: 4 }])
    expect(same(read(resource.shared(), 6000, 10) as Buffer, layer.raw.subarray(6000, 6010))).toBe(true)
  })

  test('threads go on reading the right bytes while the raw file comes and goes under them', async () => {
    const resource = await store.add('layer:a', layer.table, { diffId: layer.diffId })
    await fill(resource, layer)
    const stop = new Int32Array(new SharedArrayBuffer(8))
    const source = `
      const { parentPort, workerData } = require('node:worker_threads')
      import(workerData.module).then(({ readSharedSync }) => {
        const { shared, raw, stop } = workerData
        const expected = Buffer.from(raw)
        const into = Buffer.alloc(65536)
        let wrong = 0
        while (Atomics.load(stop, 0) === 0) {
          const offset = Math.floor(Math.random() * (expected.length - into.length))
          const answer = readSharedSync(shared, offset, into.length, into, 0)
          if (answer !== into.length || Buffer.compare(into, expected.subarray(offset, offset + into.length)) !== 0) wrong++
          Atomics.add(stop, 1, 1)
        }
        parentPort.postMessage(wrong)
      })`
    const module = new URL('../../peer/shared-resource.ts', import.meta.url).href
    const workers = [0, 1].map(() => new Worker(source, { eval: true, execArgv: [], workerData: { module, shared: resource.shared(), raw: layer.raw, stop } }))
    try {
      const results = workers.map((worker) => new Promise<number>((resolve, reject) => worker.once('message', resolve).once('error', reject)))
      for (let round = 0; round < 15; round++) {
        await resource.prove()
        const before = Atomics.load(stop, 1)
        while (Atomics.load(stop, 1) < before + 20) await new Promise((resolve) => setImmediate(resolve))
        expect(resource.dropRaw()).toBe(layer.raw.length)
      }
      Atomics.store(stop, 0, 1)
      expect(await Promise.all(results)).toEqual([0, 0])
    } finally {
      Atomics.store(stop, 0, 1)
      await Promise.all(workers.map((worker) => worker.terminate()))
    }
  })
})
