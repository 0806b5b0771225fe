// What the supernode keeps: updates that do not lose each other, damaged values that count as missing, traces that stay bounded, a cache that ages.
import { join } from 'node:path'
import { MemoryLevel } from 'memory-level'
import { afterEach, describe, expect, test } from '@jest/globals'
import { z } from 'zod'
import { buildBlockTable } from '../../image/block-table.ts'
import { digestOf } from '../../oci/digest.ts'
import { BlockStore } from '../../peer/block-store.ts'
import { CacheKeeper } from '../../supernode/cache-keeper.ts'
import { EmbeddedState } from '../../supernode/shared-state.ts'
import { TraceBook } from '../../supernode/trace-book.ts'
import { Cleanup, silent, temporaryDirectory } from './lab.ts'

const cleanup = new Cleanup()
afterEach(() => cleanup.run())

function state() {
  const db = new MemoryLevel<string, string>()
  return { db, state: new EmbeddedState({ open: name => db.sublevel(name), logger: silent }) }
}

describe('state', () => {
  test('updates of one value at the same time all count', async () => {
    const space = state().state.space('numbers', z.object({ n: z.number() }))
    await Promise.all(Array.from({ length: 50 }, () => space.update('x', value => ({ n: (value?.n ?? 0) + 1 }))))
    expect(await space.get('x')).toEqual({ n: 50 })
    await expect(space.update('x', () => { throw new Error('no') })).rejects.toThrow('no')
    expect(await space.update('x', () => undefined)).toEqual({ n: 50 })
  })

  test('a damaged value counts as missing', async () => {
    const { db, state: shared } = state()
    await db.sublevel('numbers').put('broken', '{"n":')
    await db.sublevel('numbers').put('old', '{"m":1}')
    await db.sublevel('numbers').put('good', '{"n":1}')
    const space = shared.space('numbers', z.object({ n: z.number() }))
    expect([await space.get('broken'), await space.get('old'), await space.get('good')]).toEqual([undefined, undefined, { n: 1 }])
    const all = []
    for await (const entry of space.entries()) all.push(entry)
    expect(all).toEqual([['good', { n: 1 }]])
  })
})

describe('traces', () => {
  const RESOURCE = `layer:${digestOf('x')}`
  test('keep the order of a start, forget what few starts read, and stay bounded', async () => {
    const book = new TraceBook({ state: state().state }, { maxBlocks: 100, maxTraces: 10 })
    for (let run = 0; run < 20; run++) await book.put('image', { resources: [RESOURCE], blocks: [[0, 7], [0, 1], [0, 1000 + run]] })
    const trace = (await book.get('image'))!
    expect(trace.blocks).toEqual([[0, 7], [0, 1]])
    await book.put('big', { resources: [RESOURCE], blocks: Array.from({ length: 500 }, (_, block) => [0, block]) })
    expect((await book.get('big'))!.blocks).toHaveLength(100)
    for (let image = 0; image < 30; image++) await book.put(`image-${image}`, { resources: [RESOURCE], blocks: [[0, 1]] })
    const kept = await Promise.all(Array.from({ length: 30 }, (_, image) => book.get(`image-${image}`)))
    expect(kept.filter(Boolean).length).toBeLessThanOrEqual(10)
    expect(kept[29]).toBeDefined()
  })
})

describe('the cache', () => {
  test('drops what nobody read for long, never what is pinned', async () => {
    const time = { now: 1_000_000 }
    const store = await BlockStore.open({ directory: join(await temporaryDirectory(cleanup), 'store'), capBytes: 1e9, logger: silent, now: () => time.now })
    cleanup.add(() => store.close())
    const add = async (text: string) => {
      const bytes = Buffer.from(text)
      const resource = await store.add(`layer:${digestOf(text)}`, buildBlockTable([{ rawLength: bytes.length, packedLength: bytes.length, codec: 0, hash: Buffer.from(digestOf(bytes).slice(7), 'hex') }]))
      await resource.putBlock(0, bytes)
      return resource
    }
    const [old, pinned, read] = [await add('old'), await add('pinned'), await add('read')]
    pinned.pin('a test')
    time.now += 5_000
    await read.readRaw(0, 4)
    time.now += 6_000
    const keeper = new CacheKeeper({ store, logger: silent, clock: () => time.now }, { ttlMs: 10_000 })
    expect(await keeper.sweep()).toEqual([old.id])
    expect(store.list().map(({ id }) => id).sort()).toEqual([pinned.id, read.id].sort())
    expect(await new CacheKeeper({ store, logger: silent, clock: () => Infinity }, { ttlMs: 0 }).sweep()).toEqual([])
  })
})
