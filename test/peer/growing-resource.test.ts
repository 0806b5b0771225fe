import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import * as fs from 'node:fs'
import * as path from 'node:path'
import { blockHash } from '../../image/block-table.ts'
import type { BlockStore } from '../../peer/block-store.ts'
import type { GrowingResource } from '../../peer/growing-resource.ts'
import { fill, makeDirectory, openStore, same, sampleLayer } from './sample-layer.ts'

describe('a resource that is being made here', () => {
  let directory: string
  let store: BlockStore
  const layer = sampleLayer(Array.from({ length: 40 }, (_, block) => 100 + block * 997))
  const append = async (growing: GrowingResource, from = 0, to = layer.packed.length): Promise<void> => {
    for (let block = from; block < to; block++) await growing.append(layer.packed[block], layer.table.rawOffsets[block + 1] - layer.table.rawOffsets[block], 1, blockHash(layer.table, block))
  }
  const files = (): string[] => fs.readdirSync(path.join(directory, 'packs'))
  beforeEach(async () => {
    directory = makeDirectory()
    store = await openStore(directory)
  })
  afterEach(async () => {
    await store.close()
    fs.rmSync(directory, { recursive: true, force: true })
  })

  test('readers follow while it grows; sealed, it is a whole resource under its own name', async () => {
    const growing = await store.create('making:1')
    expect(store.growing('making:1')).toBe(growing)
    const follower = (async () => {
      const read: Buffer[] = []
      for (let block = 0; block < layer.packed.length; block++) {
        await growing.waitFor(block)
        read.push(await growing.readPacked(block))
      }
      return read
    })()
    await append(growing)
    await growing.waitFor(39)
    expect(growing.entry(39)).toMatchObject({ rawOffset: layer.table.rawOffsets[39], packedLength: layer.packed[39].length, codec: 1, hash: Uint8Array.from(blockHash(layer.table, 39)) })
    const resource = await growing.seal('layer:a', { diffId: layer.diffId, origin: { layerDigest: 'x' } })
    expect(same(await follower, layer.packed)).toBe(true)
    expect(store.get('layer:a')).toBe(resource)
    expect(store.growing('making:1')).toBeUndefined()
    expect(resource).toMatchObject({ whole: true, diffId: layer.diffId, origin: { layerDigest: 'x' } })
    expect(resource.table).toEqual(layer.table)
    expect(new Set(resource.state)).toEqual(new Set([2]))
    expect(store.usage().packedBytes).toBe(resource.storedBytes)
    expect(same(await growing.readPacked(3), layer.packed[3])).toBe(true)
    await expect(growing.waitFor(40)).rejects.toMatchObject({ code: 'NOT_FOUND' })
    await expect(growing.append(layer.packed[0], 100, 1, blockHash(layer.table, 0))).rejects.toMatchObject({ code: 'CONFLICT' })
    await resource.prove()
    await store.close()
    store = await openStore(directory)
    expect(same(await store.get('layer:a')!.readRaw(0, layer.raw.length), layer.raw)).toBe(true)
  })

  test('given up, nothing is left and waiters are told', async () => {
    const growing = await store.create('making:1')
    await expect(store.create('making:1')).rejects.toMatchObject({ code: 'CONFLICT' })
    await append(growing, 0, 10)
    const waiting = growing.waitFor(20).catch((error: unknown) => error)
    const abort = new AbortController()
    const aborted = growing.waitFor(20, abort.signal).catch((error: unknown) => error)
    abort.abort()
    expect(await aborted).toMatchObject({ code: 'ABORTED' })
    await growing.discard()
    expect(await waiting).toMatchObject({ code: 'UNAVAILABLE' })
    await expect(growing.waitFor(20)).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    await expect(growing.readPacked(0)).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    await growing.discard()
    expect(files()).toEqual([])
    expect(store.usage().packedBytes).toBe(0)
    await (await store.create('making:1')).discard()
  })

  test('what the store has of the same resource already is filled up, and stays the one', async () => {
    const known = await store.add('layer:a', layer.table, { diffId: layer.diffId })
    await fill(known, layer, [1, 5])
    const growing = await store.create('making:1')
    await append(growing)
    expect(await growing.seal('layer:a')).toBe(known)
    expect(known.whole).toBe(true)
    expect(store.usage().packedBytes).toBe(known.storedBytes)
    expect(same(await known.readRaw(0, layer.raw.length), layer.raw)).toBe(true)
    expect(files()).toHaveLength(2)
  })

  test('two makers of the same layer at once end with one resource', async () => {
    const makers = await Promise.all([store.create('making:1'), store.create('making:2')])
    const sealed = await Promise.all(makers.map(async (growing) => {
      await append(growing)
      return growing.seal('layer:a', { diffId: layer.diffId })
    }))
    expect(sealed[0]).toBe(sealed[1])
    expect(sealed[0].whole).toBe(true)
    expect(store.usage().packedBytes).toBe(sealed[0].storedBytes)
    expect(files()).toHaveLength(2)
  })

  test('a maker that runs out of room hears of it, and what it wrote goes', async () => {
    await store.close()
    store = await openStore(directory, { capBytes: layer.packed[0].length + 5000 })
    const growing = await store.create('making:1')
    const failed = (async () => {
      await append(growing)
      return growing.seal('layer:a')
    })()
    await expect(failed).rejects.toMatchObject({ code: 'NO_SPACE' })
    await growing.discard()
    expect(files()).toEqual([])
    expect(store.usage().packedBytes).toBe(0)
  })

  test('a block no table can hold is refused', async () => {
    const growing = await store.create('making:1')
    const hash = new Uint8Array(32)
    await expect(growing.append(new Uint8Array(0), 5, 1, hash)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    await expect(growing.append(new Uint8Array(5), 1e9, 1, hash)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    await expect(growing.append(new Uint8Array(5), 5, 1, new Uint8Array(31))).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    await growing.append(new Uint8Array(5), 5, 7, hash)
    await expect(growing.seal('layer:a')).rejects.toMatchObject({ code: 'INVALID_DATA' })
    expect(files()).toEqual([])
  })

  test('an empty stream is a resource of no blocks', async () => {
    const empty = await (await store.create('making:1')).seal('blob:empty', { diffId: sampleLayer([]).diffId })
    expect(empty.whole).toBe(true)
    expect(await empty.readRaw(0, 0)).toEqual(Buffer.alloc(0))
    await empty.prove()
    await store.close()
    store = await openStore(directory)
    expect(store.get('blob:empty')).toMatchObject({ whole: true, proved: true })
  })

  test('what a crash leaves of it is cleared away', async () => {
    fs.writeFileSync(path.join(directory, 'packs', 'f'.repeat(32)), 'half a pack')
    fs.writeFileSync(path.join(directory, 'objects', `${'f'.repeat(64)}.abc`), 'half an object')
    await store.close()
    store = await openStore(directory)
    expect(files()).toEqual([])
    expect(fs.readdirSync(path.join(directory, 'objects'))).toEqual([])
  })
})
