import { afterEach, beforeEach, describe, expect, jest, test } from '@jest/globals'
import * as fs from 'node:fs'
import * as path from 'node:path'
import { Level } from 'level'
import { Registry } from 'prom-client'
import { buildBlockTable } from '../../image/block-table.ts'
import { BlockStore } from '../../peer/block-store.ts'
import { damage, fill, makeDirectory, openStore, PACK, packFile, same, sampleLayer, silent } from './sample-layer.ts'

describe('the block store', () => {
  let directory: string
  let store: BlockStore
  const layer = sampleLayer([5000, 70_000, 1, 300_000, 4096])
  const restart = async (): Promise<void> => {
    await store.close()
    store = await openStore(directory)
  }
  beforeEach(async () => {
    directory = makeDirectory()
    store = await openStore(directory)
  })
  afterEach(async () => {
    await store.close()
    fs.rmSync(directory, { recursive: true, force: true })
  })

  test('gives back what was put, packed and unpacked, and says when it is whole', async () => {
    const resource = await store.add('layer:a', layer.table, { diffId: layer.diffId, origin: { layerDigest: 'sha256:x' } })
    const seen: (number | string)[] = []
    resource.on('block', (block) => seen.push(block)).on('whole', () => seen.push('whole'))
    for (const block of [3, 0, 1, 4]) await resource.putBlock(block, layer.packed[block])
    expect(resource.whole).toBe(false)
    await resource.putBlock(2, layer.packed[2])
    expect(seen).toEqual([3, 0, 1, 4, 2, 'whole'])
    expect([...resource.state]).toEqual([2, 2, 2, 2, 2])
    expect(resource.storedBytes).toBe(layer.packed.reduce((sum, { length }) => sum + length, 0))
    expect(store.usage().packedBytes).toBe(resource.storedBytes)
    for (const [block, packed] of layer.packed.entries()) expect(await resource.readPacked(block)).toEqual(packed)
    expect(same(await resource.readRaw(0, layer.raw.length), layer.raw)).toBe(true)
    expect(same(await resource.readRaw(4990, 70_020), layer.raw.subarray(4990, 75_010))).toBe(true)
    expect(await resource.readRaw(layer.raw.length, 0)).toEqual(Buffer.alloc(0))
    await expect(resource.readRaw(layer.raw.length, 1)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  })

  test('stores nothing that does not hash to what the table promises', async () => {
    const resource = await store.add('layer:a', layer.table, {})
    const wrong = Buffer.from(layer.packed[1])
    wrong[100] ^= 1
    await expect(resource.putBlock(1, wrong)).rejects.toMatchObject({ code: 'DIGEST_MISMATCH' })
    await expect(resource.putBlock(1, layer.packed[0])).rejects.toMatchObject({ code: 'DIGEST_MISMATCH' })
    await expect(resource.putBlock(5, layer.packed[0])).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    expect(() => resource.holdBlock(1, wrong)).toThrow(expect.objectContaining({ code: 'DIGEST_MISMATCH' }))
    await expect(resource.readPacked(1)).rejects.toMatchObject({ code: 'NOT_FOUND' })
    await expect(resource.readRaw(6000, 10)).rejects.toMatchObject({ code: 'NOT_FOUND', details: { block: 1 } })
    expect(store.usage().packedBytes).toBe(0)
  })

  test('the same block from ten senders at once is stored and announced once', async () => {
    const resource = await store.add('layer:a', layer.table, {})
    let announced = 0
    resource.on('block', () => announced++)
    await Promise.all(Array.from({ length: 10 }, () => resource.putBlock(1, layer.packed[1])))
    await resource.putBlock(1, layer.packed[1])
    expect(announced).toBe(1)
    expect(store.usage().packedBytes).toBe(layer.packed[1].length)
  })

  test('after a restart, what was stored is there, unverified until used', async () => {
    const resource = await store.add('layer:a', layer.table, { diffId: layer.diffId, origin: { url: 'u' } })
    await fill(resource, layer, [1, 3])
    await restart()
    const again = store.get('layer:a')!
    expect([...again.state]).toEqual([0, 1, 0, 1, 0])
    expect(again).toMatchObject({ diffId: layer.diffId, origin: { url: 'u' }, whole: false, proved: false, storedBlocks: 2 })
    expect(store.usage().packedBytes).toBe(again.storedBytes)
    expect(same(await again.readPacked(1), layer.packed[1])).toBe(true)
    expect(await again.check(3)).toBe(true)
    expect(await again.check(0)).toBe(false)
    expect([...again.state]).toEqual([0, 2, 0, 2, 0])
  })

  test('a block that is damaged on disk is found at its first use and is absent from then on, also after a restart', async () => {
    await fill(await store.add('layer:a', layer.table, {}), layer)
    await store.close()
    damage(packFile(directory, PACK), layer.table.packedOffsets[3] + 1000)
    damage(packFile(directory, PACK), layer.table.packedOffsets[1] + 10)
    store = await openStore(directory)
    const resource = store.get('layer:a')!
    const lost: number[] = []
    resource.on('lost', (block) => lost.push(block))
    expect(resource.whole).toBe(true)
    await expect(resource.readPacked(3)).rejects.toMatchObject({ code: 'NOT_FOUND' })
    expect(await resource.check(1)).toBe(false)
    expect(lost).toEqual([3, 1])
    expect(resource.whole).toBe(false)
    expect(store.usage().packedBytes).toBe(layer.packed[0].length + layer.packed[2].length + layer.packed[4].length)
    await restart()
    expect([...store.get('layer:a')!.state]).toEqual([1, 0, 1, 0, 1])
    await fill(store.get('layer:a')!, layer, [1, 3])
    expect(same(await store.get('layer:a')!.readRaw(0, layer.raw.length), layer.raw)).toBe(true)
  })

  test('a block that is damaged on disk after it was verified is found a minute later', async () => {
    const resource = await store.add('layer:a', layer.table, {})
    await fill(resource, layer)
    expect(same(await resource.readPacked(3), layer.packed[3])).toBe(true)
    damage(packFile(directory, PACK), layer.table.packedOffsets[3] + 1000)
    const later = performance.now() + 61_000
    const clock = jest.spyOn(performance, 'now').mockImplementation(() => later)
    try {
      await expect(resource.readPacked(3)).rejects.toMatchObject({ code: 'NOT_FOUND' })
      expect(same(await resource.readPacked(2), layer.packed[2])).toBe(true)
    } finally {
      clock.mockRestore()
    }
    expect([...resource.state]).toEqual([2, 2, 2, 0, 2])
  })

  test('a pack that was cut short loses the blocks behind the cut', async () => {
    await fill(await store.add('layer:a', layer.table, {}), layer)
    await store.close()
    fs.truncateSync(packFile(directory, PACK), layer.table.packedOffsets[3] + 5)
    store = await openStore(directory)
    expect([...store.get('layer:a')!.state]).toEqual([1, 1, 1, 0, 0])
  })

  test('a second store in the same directory is refused and changes nothing', async () => {
    await fill(await store.add('layer:a', layer.table, {}), layer)
    await expect(openStore(directory)).rejects.toMatchObject({ code: 'CONFLICT' })
    expect(same(await store.get('layer:a')!.readPacked(0), layer.packed[0])).toBe(true)
  })

  test('adding twice is once; another table under the same name is a conflict; a table that lies is refused', async () => {
    const [one, two] = await Promise.all([store.add('layer:a', layer.table, {}), store.add('layer:a', layer.table, {})])
    expect(one).toBe(two)
    await expect(store.add('layer:a', sampleLayer([9]).table, {})).rejects.toMatchObject({ code: 'CONFLICT' })
    const hash = new Uint8Array(32)
    const lies = [
      [{ rawLength: 10, packedLength: 5, codec: 0, hash }], [{ rawLength: 10, packedLength: 5, codec: 9, hash }], [{ rawLength: 0, packedLength: 5, codec: 1, hash }],
      [{ rawLength: -4, packedLength: 5, codec: 1, hash }], [{ rawLength: NaN, packedLength: 5, codec: 1, hash }], [{ rawLength: 1e12, packedLength: 5, codec: 1, hash }],
      [{ rawLength: 10, packedLength: 1e9, codec: 1, hash }], [{ rawLength: 1.5, packedLength: 5, codec: 1, hash }],
    ]
    for (const [index, entries] of lies.entries()) await expect(store.add(`layer:lie${index}`, buildBlockTable(entries), {})).rejects.toMatchObject({ code: 'INVALID_DATA' })
    await expect(store.add('layer:../../x\n', layer.table, {})).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    expect(store.list()).toHaveLength(1)
  })

  test('a removed resource is gone with its files, can come again at once, and is not removed while pinned', async () => {
    const resource = await store.add('layer:a', layer.table, {})
    await fill(resource, layer)
    resource.pin('container-1', { lasting: true })
    await expect(store.remove('layer:a')).rejects.toMatchObject({ code: 'CONFLICT', message: expect.stringContaining('container-1') })
    await restart()
    await expect(store.remove('layer:a')).rejects.toMatchObject({ code: 'CONFLICT' })
    store.get('layer:a')!.unpin('container-1')
    const gone = store.get('layer:a')!
    const [, again] = await Promise.all([store.remove('layer:a'), store.add('layer:a', layer.table, {})])
    expect(again).not.toBe(gone)
    await expect(gone.putBlock(0, layer.packed[0])).rejects.toMatchObject({ code: 'NOT_FOUND' })
    expect(store.usage().packedBytes).toBe(0)
    await restart()
    expect([...store.get('layer:a')!.state]).toEqual([0, 0, 0, 0, 0])
    await store.remove('layer:a')
    expect(fs.readdirSync(path.join(directory, 'packs'))).toEqual([])
  })

  test('a block that another resource holds is copied instead of fetched', async () => {
    const first = await store.add('layer:a', layer.table, {})
    await fill(first, layer, [0, 1, 2])
    // The same blocks in another order, and one of its own.
    const own = sampleLayer([5000, 70_000, 1, 333], { seed: 7 })
    const order = [2, 3, 1]
    const other = await store.add('layer:b', buildBlockTable([...order.map((block) => ({ layer, block })), { layer: own, block: 3 }].map(({ layer, block }) => ({
      rawLength: layer.table.rawOffsets[block + 1] - layer.table.rawOffsets[block], packedLength: layer.packed[block].length, codec: 1, hash: layer.table.hashes.slice(block * 32, block * 32 + 32),
    }))), {})
    expect(store.findCopies(other, [0, 1, 2, 3])).toEqual([{ block: 0, source: first, from: 2 }, { block: 2, source: first, from: 1 }])
    expect(await store.copyBlocks(other, [0, 1, 2, 3])).toEqual([0, 2])
    expect([...other.state]).toEqual([2, 0, 2, 0])
    expect(same(await other.readPacked(2), layer.packed[1])).toBe(true)
    await store.remove('layer:a')
    expect(store.findCopies(first, [0, 1, 2]).map(({ source }) => source)).toEqual([other, other])
  })

  test('objects: found by digest, also after a restart, and never given back damaged', async () => {
    const bytes = Buffer.from('an index')
    const digest = await store.putObject(bytes)
    expect(await store.putObject(bytes)).toBe(digest)
    expect(await store.getObject(digest)).toEqual(bytes)
    expect(await store.getObject(`sha256:${'0'.repeat(64)}`)).toBeUndefined()
    expect(await store.getObject('../../etc/passwd')).toBeUndefined()
    await restart()
    expect(store.usage().objectBytes).toBe(bytes.length)
    expect(await store.getObject(digest)).toEqual(bytes)
    damage(path.join(directory, 'objects', digest.slice(7)), 3)
    expect(await store.getObject(digest)).toBeUndefined()
    expect(store.hasObject(digest)).toBe(false)
    expect(store.usage().objectBytes).toBe(0)
    expect(await store.putObject(bytes)).toBe(digest)
  })

  test('quarantine lasts: no block is given to anyone, also when the resource comes back', async () => {
    const resource = await store.add('layer:a', layer.table, {})
    await fill(resource, layer)
    let reason = ''
    resource.on('quarantined', (why) => (reason = why))
    await store.quarantine('layer:a', 'a peer proved it wrong')
    await store.quarantine('layer:never-seen', 'the same')
    expect(reason).toBe('a peer proved it wrong')
    await expect(resource.readPacked(0)).rejects.toMatchObject({ code: 'FORBIDDEN' })
    await restart()
    expect(store.get('layer:a')!.quarantined).toBe(true)
    expect((await store.add('layer:never-seen', layer.table, {})).quarantined).toBe(true)
    await store.endQuarantine('layer:a')
    expect(same(await store.get('layer:a')!.readPacked(0), layer.packed[0])).toBe(true)
  })

  test('other rooms keep their own things in its database', async () => {
    await store.sublevel('snapshots').put('k1', 'v1')
    await store.sublevel<{ n: number }>('traces', { valueEncoding: 'json' }).put('k1', { n: 1 })
    await restart()
    expect(await store.sublevel('snapshots').get('k1')).toBe('v1')
    expect(await store.sublevel<{ n: number }>('traces', { valueEncoding: 'json' }).get('k1')).toEqual({ n: 1 })
  })

  test('counts what it holds and verifies', async () => {
    const metrics = new Registry()
    const counted = await BlockStore.open({ directory: path.join(directory, 'counted'), capBytes: 1e8, logger: silent, metrics })
    await fill(await counted.add('layer:a', layer.table, {}), layer)
    const text = await metrics.metrics()
    expect(text).toContain(`skimmer_peer_store_used_bytes{kind="packed"} ${counted.usage().packedBytes}`)
    expect(text).toContain('skimmer_peer_store_verified_blocks_total 5')
    expect(text).toContain('skimmer_peer_store_cap_bytes 100000000')
    await counted.close()
  })

  test('a wrong or torn record costs its resource, not the store', async () => {
    const names = ['json', 'shape', 'table', 'torn', 'sound', 'use']
    for (const [seed, name] of names.entries()) await fill(await store.add(`layer:${name}`, sampleLayer([1000, 2000], { seed }).table, {}), sampleLayer([1000, 2000], { seed }))
    await store.close()
    const db = new Level<string, string>(path.join(directory, 'meta'))
    const records = db.sublevel<string, string>('resources', { valueEncoding: 'utf8' })
    const tables = db.sublevel<string, Buffer>('tables', { valueEncoding: 'buffer' })
    await records.put('layer:json', (await records.get('layer:json'))!.slice(0, 40))
    await records.put('layer:shape', JSON.stringify({ version: 1, file: '../../../etc/passwd' }))
    await tables.del('layer:table')
    await tables.put('layer:torn', (await tables.get('layer:torn'))!.subarray(0, 60))
    await db.sublevel('uses').put('layer:use', '{{{')
    await db.close()
    store = await openStore(directory)
    expect(store.list().map(({ id }) => id).sort()).toEqual(['layer:sound', 'layer:use'])
    expect(same(await store.get('layer:sound')!.readPacked(1), sampleLayer([1000, 2000], { seed: 4 }).packed[1])).toBe(true)
    // The files of the others are cleared away: two resources, each a pack and its notes.
    expect(fs.readdirSync(path.join(directory, 'packs'))).toHaveLength(4)
  })

  test('a damaged database is repaired or put aside: the store opens and works', async () => {
    await fill(await store.add('layer:a', layer.table, {}), layer)
    await store.close()
    const meta = path.join(directory, 'meta')
    for (const name of fs.readdirSync(meta)) if (/^(MANIFEST|CURRENT)/.test(name)) fs.writeFileSync(path.join(meta, name), 'nonsense')
    store = await openStore(directory)
    const resource = await store.add('layer:a', layer.table, {})
    await fill(resource, layer)
    expect(same(await resource.readRaw(0, layer.raw.length), layer.raw)).toBe(true)
  })
})
