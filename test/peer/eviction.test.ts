import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { spawnSync } from 'node:child_process'
import * as fs from 'node:fs'
import * as path from 'node:path'
import type { BlockStore } from '../../peer/block-store.ts'
import type { Resource } from '../../peer/resource.ts'
import { readSharedSync } from '../../peer/shared-resource.ts'
import { fill, makeDirectory, openStore, same, sampleLayer } from './sample-layer.ts'
import type { SampleLayer } from './sample-layer.ts'

/** Ten blocks of 10 kB that do not compress: sizes are easy to follow. */
const incompressible = (seed: number): SampleLayer => sampleLayer(Array.from({ length: 10 }, () => 10_000), { seed, codec: 0 })

const compressible = (seed: number): SampleLayer => sampleLayer([60_000, 60_000], { seed })

describe('when space is short', () => {
  let directory: string
  let store: BlockStore
  let clock = 1000
  const open = async (capBytes: number): Promise<void> => {
    store = await openStore(directory, { capBytes, now: () => clock++ })
  }
  const make = async (name: string, seed: number): Promise<Resource> => {
    const layer = incompressible(seed)
    const resource = await store.add(name, layer.table, { diffId: layer.diffId })
    await fill(resource, layer)
    return resource
  }
  const names = (): string[] => store.list().map(({ id }) => id).sort()
  beforeEach(() => {
    directory = makeDirectory()
  })
  afterEach(async () => {
    await store.close()
    fs.rmSync(directory, { recursive: true, force: true })
  })

  test('the least recently used resource goes first, never a pinned one', async () => {
    await open(350_000)
    await make('layer:1', 1)
    const second = await make('layer:2', 2)
    const third = await make('layer:3', 3)
    store.get('layer:1')!.pin('container')
    await second.readPacked(0)
    await make('layer:4', 4)
    expect(names()).toEqual(['layer:1', 'layer:2', 'layer:4'])
    expect(third.storedBytes).toBe(0)
    expect(store.usage().packedBytes).toBe(300_000)
    await expect(third.readPacked(0)).rejects.toMatchObject({ code: 'NOT_FOUND' })
    expect(fs.readdirSync(path.join(directory, 'packs'))).toHaveLength(6)
  })

  test('a read by a thread is a use', async () => {
    await open(250_000)
    const first = await make('layer:1', 1)
    await make('layer:2', 2)
    clock = Date.now()
    expect(readSharedSync(first.shared(), 0, 100, Buffer.alloc(100), 0)).toBe(100)
    await make('layer:3', 3)
    expect(names()).toEqual(['layer:1', 'layer:3'])
  })

  test('who was used last is known after a restart', async () => {
    await open(250_000)
    await make('layer:1', 1)
    await make('layer:2', 2)
    await store.get('layer:1')!.readPacked(0)
    await store.close()
    await open(250_000)
    await make('layer:3', 3)
    expect(names()).toEqual(['layer:1', 'layer:3'])
  })

  test('with only pinned ones left, background work is refused before on-demand work is, and memory serves the rest', async () => {
    await open(200_000)
    const layers = [incompressible(1), incompressible(2)]
    const [one, two] = await Promise.all(layers.map(async (layer, index) => {
      const resource = await store.add(`layer:${index}`, layer.table, {})
      resource.pin('container')
      return resource
    }))
    await fill(one, layers[0])
    for (let block = 0; block < 9; block++) await two.putBlock(block, layers[1].packed[block], { priority: 'background' })
    await expect(two.putBlock(9, layers[1].packed[9], { priority: 'background' })).rejects.toMatchObject({ code: 'NO_SPACE' })
    await two.putBlock(9, layers[1].packed[9], { priority: 'demand' })
    const third = await store.add('layer:3', incompressible(3).table, {})
    await expect(third.putBlock(0, incompressible(3).packed[0])).rejects.toMatchObject({ code: 'NO_SPACE' })
    third.holdBlock(0, incompressible(3).packed[0])
    const into = Buffer.alloc(10_000)
    expect(readSharedSync(third.shared(), 0, 10_000, into, 0)).toBe(10_000)
    expect(into.equals(incompressible(3).raw.subarray(0, 10_000))).toBe(true)
    // A container ends: there is room at once.
    one.unpin('container')
    await third.putBlock(0, incompressible(3).packed[0])
    expect(names()).toEqual(['layer:1', 'layer:3'])
  })

  test('raw files go first, those of pinned resources after unpinned packs; reads go on from the pack', async () => {
    const packed = compressible(1).packed.reduce((sum, { length }) => sum + length, 0)
    await open(Math.ceil(3 * (packed + 120_000) * 1.07)) // all of it is just below the high watermark
    const [pinned, idle, other] = await Promise.all([1, 2, 3].map(async (seed) => {
      const layer = compressible(seed)
      const resource = await store.add(`layer:${seed}`, layer.table, { diffId: layer.diffId })
      await fill(resource, layer)
      return resource
    }))
    pinned.pin('container')
    for (const resource of [pinned, idle, other]) await resource.prove()
    expect(store.usage().rawBytes).toBe(360_000)
    await other.readPacked(0)
    const filler = async (name: string, seed: number): Promise<void> => {
      const layer = incompressible(seed)
      const resource = await store.add(name, layer.table, {})
      resource.pin('test')
      await fill(resource, layer)
      await store.evict()
    }
    await filler('layer:4', 4)
    expect([idle.rawBytes, pinned.rawBytes]).toEqual([0, 120_000])
    await filler('layer:5', 5)
    await filler('layer:6', 6)
    expect(other.rawBytes).toBe(0)
    for (let seed = 7; seed < 12 && pinned.rawBytes > 0; seed++) await filler(`layer:${seed}`, seed)
    expect(pinned.rawBytes).toBe(0)
    expect([store.get('layer:1'), store.get('layer:2'), store.get('layer:3')]).toEqual([pinned, undefined, undefined])
    expect(same(await pinned.readRaw(0, 120_000), compressible(1).raw)).toBe(true)
  })

  test('objects that describe nothing here go, the others stay', async () => {
    await open(150_000)
    const layer = incompressible(1)
    const index = await store.putObject(Buffer.alloc(20_000, 1))
    const stale = await store.putObject(Buffer.alloc(20_000, 2))
    const resource = await store.add(`layer:${index}`, layer.table, {})
    resource.pin('container')
    await fill(resource, layer)
    await store.evict()
    await store.putObject(Buffer.alloc(20_000, 3))
    expect([store.hasObject(index), store.hasObject(stale)]).toEqual([true, false])
    await expect(store.putObject(Buffer.alloc(60_000, 4))).rejects.toMatchObject({ code: 'NO_SPACE' })
  })

  test('a smaller cap after a restart is kept to', async () => {
    await open(1e9)
    for (const seed of [1, 2, 3, 4]) await make(`layer:${seed}`, seed)
    await store.close()
    await open(250_000)
    await store.evict()
    expect(names()).toEqual(['layer:3', 'layer:4'])
  })

  const tmpfs = process.getuid?.() === 0 ? test : test.skip // mounting a small tmpfs needs root
  tmpfs.each([{ what: 'leaves free what it should', minFreeBytes: 2_000_000 }, { what: 'fills the disk to the brim', minFreeBytes: 0 }])('a disk that is really full refuses blocks, and keeps what it has through a restart: $what', async ({ minFreeBytes }) => {
    const small = path.join(directory, 'small')
    fs.mkdirSync(small)
    const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=13m', 'tmpfs', small])
    expect(mounted.status).toBe(0)
    try {
      store = await openStore(small, { minFreeBytes })
      const layer = sampleLayer(Array.from({ length: 60 }, () => 100_000), { codec: 0 })
      const resource = await store.add('layer:a', layer.table, { diffId: layer.diffId })
      resource.pin('container', { lasting: true })
      const results = await Promise.all(layer.packed.map((packed, block) => resource.putBlock(block, packed).then(() => true, (error: { code: string }) => error.code)))
      expect(new Set(results)).toEqual(new Set([true, 'NO_SPACE']))
      for (const [block, result] of results.entries()) {
        expect(resource.state[block]).toBe(result === true ? 2 : 0)
        if (result === true) expect(same(await resource.readPacked(block), layer.packed[block])).toBe(true)
      }
      expect(store.usage().packedBytes).toBe(resource.storedBytes)
      expect(await store.putObject(Buffer.alloc(3_000_000)).catch((error: unknown) => error)).toMatchObject({ code: 'NO_SPACE' })
      await store.close()
      // Somebody else takes what is left.
      const hog = spawnSync('dd', ['if=/dev/zero', `of=${small}/hog`, 'bs=4096'])
      expect(hog.stderr.toString()).toContain('No space left')
      store = await openStore(small, { minFreeBytes })
      for (const [block, result] of results.entries()) expect(await store.get('layer:a')!.check(block)).toBe(result === true)
    } finally {
      await store.close()
      spawnSync('umount', [small])
    }
  })
})
