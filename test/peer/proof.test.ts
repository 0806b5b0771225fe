import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import * as fs from 'node:fs'
import * as path from 'node:path'
import { CODEC_RAW, buildBlockTable } from '../../image/block-table.ts'
import { sha256 } from '../../peer/block-codec.ts'
import type { BlockStore } from '../../peer/block-store.ts'
import { damage, fill, makeDirectory, openStore, PACK, packFile, same, sampleLayer } from './sample-layer.ts'

describe('the proof of a whole resource', () => {
  let directory: string
  let store: BlockStore
  const layer = sampleLayer([5000, 70_000, 1, 300_000, 4096])
  const reopen = async (): Promise<void> => {
    store = await openStore(directory)
  }
  beforeEach(async () => {
    directory = makeDirectory()
    await reopen()
  })
  afterEach(async () => {
    await store.close()
    fs.rmSync(directory, { recursive: true, force: true })
  })
  const rawFiles = (): string[] => fs.readdirSync(path.join(directory, 'packs')).filter((name) => name.includes('.raw'))

  test('writes the raw file, which serves at once after a restart', async () => {
    const resource = await store.add('layer:a', layer.table, { diffId: layer.diffId })
    await fill(resource, layer)
    let proved = 0
    resource.on('proved', () => proved++)
    await Promise.all([resource.prove(), resource.prove()])
    await resource.prove()
    expect(proved).toBe(1)
    expect([...resource.state]).toEqual([3, 3, 3, 3, 3])
    expect(same(fs.readFileSync(packFile(directory, /\.raw$/)), layer.raw)).toBe(true)
    expect(store.usage().rawBytes).toBe(layer.raw.length)
    await store.close()
    await reopen()
    const again = store.get('layer:a')!
    expect(again).toMatchObject({ proved: true, whole: true })
    expect([...again.state]).toEqual([3, 3, 3, 3, 3])
    expect(store.usage().rawBytes).toBe(layer.raw.length)
    expect(same(await again.readRaw(0, layer.raw.length), layer.raw)).toBe(true)
    expect(again.isPackVerified(3)).toBe(false)
    expect(same(await again.readPacked(3), layer.packed[3])).toBe(true)
    expect(again.isPackVerified(3)).toBe(true)
    // Of the pack, only what was looked at may serve when the raw file goes.
    again.dropRaw()
    expect([...again.state]).toEqual([1, 1, 1, 2, 1])
    expect(rawFiles()).toEqual([])
  })

  test('a wrong diffID quarantines the resource for good', async () => {
    const resource = await store.add('layer:a', layer.table, { diffId: `sha256:${'1'.repeat(64)}` })
    await fill(resource, layer)
    const told = new Promise((resolve) => store.once('quarantined', (id, reason) => resolve([id, reason])))
    await expect(resource.prove()).rejects.toMatchObject({ code: 'DIGEST_MISMATCH' })
    expect(await told).toEqual(['layer:a', expect.stringContaining(layer.diffId)])
    expect(resource).toMatchObject({ quarantined: true, proved: false })
    expect(rawFiles()).toEqual([])
    expect(store.usage().rawBytes).toBe(0)
    await expect(resource.prove()).rejects.toMatchObject({ code: 'DIGEST_MISMATCH' })
    await store.close()
    await reopen()
    expect(store.get('layer:a')!.quarantined).toBe(true)
  })

  test('a table whose blocks do not unpack to what it says is a lie, too', async () => {
    const lying = buildBlockTable(layer.packed.map((packed, block) => ({ rawLength: 4096 * (block + 1), packedLength: packed.length, codec: 1, hash: sha256(packed) })))
    const resource = await store.add('layer:a', lying, { diffId: layer.diffId })
    await fill(resource, layer)
    await expect(resource.readRaw(0, 10)).rejects.toMatchObject({ code: 'INVALID_DATA' })
    await expect(resource.prove()).rejects.toMatchObject({ code: 'DIGEST_MISMATCH' })
    expect(resource.quarantined).toBe(true)
  })

  test('blocks that are damaged on disk are dropped, not held against the resource', async () => {
    const resource = await store.add('layer:a', layer.table, { diffId: layer.diffId })
    await fill(resource, layer)
    damage(packFile(directory, PACK), layer.table.packedOffsets[1])
    damage(packFile(directory, PACK), layer.table.packedOffsets[4])
    await expect(resource.prove()).rejects.toMatchObject({ code: 'NOT_FOUND', details: { blocks: [1, 4] } })
    expect(resource).toMatchObject({ quarantined: false, whole: false, storedBlocks: 3 })
    await expect(resource.prove()).rejects.toMatchObject({ code: 'CONFLICT' })
    await fill(resource, layer, [1, 4])
    await resource.prove()
    expect(resource.proved).toBe(true)
  })

  test('without room for a raw file the proof still counts', async () => {
    await store.close()
    store = await openStore(directory, { capBytes: layer.packed.reduce((sum, { length }) => sum + length, 0) + 10_000 })
    const resource = await store.add('layer:a', layer.table, { diffId: layer.diffId })
    await fill(resource, layer)
    await resource.prove()
    expect(resource.proved).toBe(true)
    expect([...resource.state]).toEqual([2, 2, 2, 2, 2])
    expect(rawFiles()).toEqual([])
  })

  test('a plain pack is its own raw file', async () => {
    const blob = sampleLayer([4096, 4096, 10], { codec: CODEC_RAW })
    const resource = await store.add('blob:a', blob.table, { diffId: blob.diffId })
    await fill(resource, blob)
    await resource.prove()
    expect([...resource.state]).toEqual([3, 3, 3])
    expect(store.usage().rawBytes).toBe(0)
    expect(same(await resource.readRaw(4000, 4202), blob.raw.subarray(4000))).toBe(true)
  })

  test('a raw file that no proof vouches for is deleted, one of the wrong size not used', async () => {
    const resource = await store.add('layer:a', layer.table, { diffId: layer.diffId })
    await fill(resource, layer)
    fs.writeFileSync(`${packFile(directory, PACK)}.raw`, layer.raw)
    await store.close()
    await reopen()
    expect(rawFiles()).toEqual([])
    await store.get('layer:a')!.prove()
    await store.close()
    fs.appendFileSync(packFile(directory, /\.raw$/), 'x')
    await reopen()
    expect([...store.get('layer:a')!.state]).toEqual([1, 1, 1, 1, 1])
    expect(rawFiles()).toEqual([])
    expect(store.usage().rawBytes).toBe(0)
    await store.get('layer:a')!.prove()
    expect([...store.get('layer:a')!.state]).toEqual([3, 3, 3, 3, 3])
  })

  test('a store that closes gives proofs up and leaves nothing half-written', async () => {
    const resource = await store.add('layer:a', layer.table, { diffId: layer.diffId })
    await fill(resource, layer)
    const proof = resource.prove().catch((error: unknown) => error)
    await store.close()
    expect([undefined, 'ABORTED']).toContain(((await proof) as { code?: string } | undefined)?.code)
    await reopen()
    expect(same(await store.get('layer:a')!.readRaw(0, layer.raw.length), layer.raw)).toBe(true)
    expect(rawFiles().length).toBe(store.get('layer:a')!.proved ? 1 : 0)
  })
})
