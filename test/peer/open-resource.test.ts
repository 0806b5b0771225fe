// Resources whose blocks' hashes are learnt while their bytes come: files and blobs.
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { createHash, randomBytes } from 'node:crypto'
import * as fs from 'node:fs'
import * as fc from 'fast-check'
import { blockHash, buildBlockTable, CODEC_RAW, fixedBlockTable, HASH_LENGTH } from '../../image/block-table.ts'
import type { BlockTable } from '../../image/block-table.ts'
import { sha256 } from '../../peer/block-codec.ts'
import type { BlockStore } from '../../peer/block-store.ts'
import { blockBytesFor } from '../../peer/file-blocks.ts'
import type { Resource } from '../../peer/resource.ts'
import { StreamFill } from '../../peer/stream-fill.ts'
import { makeDirectory, openStore, same } from './sample-layer.ts'

const BLOCK = 1000

interface Sample { bytes: Buffer; blocks: Buffer[]; hashes: Buffer; digest: string }
function sample(length: number, blockBytes = BLOCK): Sample {
  const bytes = randomBytes(length)
  const blocks = Array.from({ length: Math.ceil(length / blockBytes) }, (_, block) => bytes.subarray(block * blockBytes, (block + 1) * blockBytes))
  return { bytes, blocks, hashes: Buffer.concat(blocks.map(block => sha256(block))), digest: `sha256:${createHash('sha256').update(bytes).digest('hex')}` }
}
const hashesOf = ({ hashes }: Sample, from: number, to: number): Buffer => hashes.subarray(from * HASH_LENGTH, to * HASH_LENGTH)
/** A table that knows only these hashes. */
function partly(file: Sample, known: readonly number[]): BlockTable {
  const table = fixedBlockTable(file.bytes.length, BLOCK)
  for (const block of known) table.hashes.set(hashesOf(file, block, block + 1), block * HASH_LENGTH)
  return table
}

describe('an open resource', () => {
  const file = sample(10 * BLOCK - 1)
  const stores: BlockStore[] = []
  const directories: string[] = []
  let store: BlockStore
  let directory: string
  const open = async (at: string): Promise<BlockStore> => {
    const opened = await openStore(at)
    stores.push(opened)
    return opened
  }
  /** As a crash leaves it: the store's files as they are at this moment, opened anew. */
  const afterCrash = async (): Promise<BlockStore> => {
    const copy = makeDirectory()
    directories.push(copy)
    fs.cpSync(directory, copy, { recursive: true })
    return await open(copy)
  }
  const addOpen = (to = store, of = file): Promise<Resource> => to.add('file:abc', fixedBlockTable(of.bytes.length, BLOCK), { open: true })

  beforeEach(async () => {
    directory = makeDirectory()
    directories.push(directory)
    store = await open(directory)
  })
  afterEach(async () => {
    await Promise.all(stores.splice(0).map(each => each.close()))
    for (const each of directories.splice(0)) fs.rmSync(each, { recursive: true, force: true })
  })

  test('takes blocks whose hash is known, and no others', async () => {
    const resource = await addOpen()
    expect(resource).toMatchObject({ open: true, whole: false })
    expect(resource.table.count).toBe(10)
    expect(resource.knows(3)).toBe(false)
    await expect(resource.putBlock(3, file.blocks[3])).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('not known yet') })
    expect(() => resource.holdBlock(3, file.blocks[3])).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
    expect(() => resource.verify(3, file.blocks[3])).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
    resource.learn(3, hashesOf(file, 3, 5))
    expect([resource.knows(2), resource.knows(3), resource.knows(4), resource.knows(5)]).toEqual([false, true, true, false])
    expect([resource.knownUntil(0), resource.knownUntil(3)]).toEqual([0, 5])
    await resource.putBlock(3, file.blocks[3])
    await expect(resource.putBlock(4, file.blocks[3])).rejects.toMatchObject({ code: 'DIGEST_MISMATCH' })
    expect(same(await resource.readRaw(3 * BLOCK + 5, 50), file.bytes.subarray(3 * BLOCK + 5, 3 * BLOCK + 55))).toBe(true)
    await expect(resource.readRaw(0, 10)).rejects.toMatchObject({ code: 'NOT_FOUND' })
    expect(resource.storedBlocks).toBe(1)
  })

  test('tells what is learnt, and when all is known', async () => {
    const resource = await addOpen()
    const heard: unknown[] = []
    resource.on('learnt', (from, to) => heard.push([from, to]))
    resource.on('complete', () => heard.push('complete'))
    resource.on('whole', () => heard.push('whole'))
    resource.learn(2, hashesOf(file, 2, 4))
    resource.learn(2, hashesOf(file, 2, 4))
    resource.learn(0, hashesOf(file, 0, 6))
    for (let block = 0; block < 6; block++) await resource.putBlock(block, file.blocks[block])
    resource.learn(5, hashesOf(file, 5, 10))
    resource.learn(0, file.hashes)
    for (let block = 6; block < 10; block++) await resource.putBlock(block, file.blocks[block])
    expect(heard).toEqual([[2, 4], [0, 2], [4, 6], [6, 10], 'complete', 'whole'])
    expect(resource).toMatchObject({ open: false, whole: true })
    expect(resource.knownUntil(0)).toBe(10)
  })

  test('refuses hashes that do not fit, and takes none of them', async () => {
    const resource = await addOpen()
    resource.learn(4, hashesOf(file, 4, 5))
    const wrong = Buffer.concat([hashesOf(file, 3, 4), randomBytes(32), hashesOf(file, 5, 6)])
    const refused: [number, Uint8Array][] = [[3, wrong], [9, hashesOf(file, 0, 2)], [-1, hashesOf(file, 0, 1)], [0.5, hashesOf(file, 0, 1)], [0, randomBytes(31)], [1, new Uint8Array(32)], [10, randomBytes(32)]]
    for (const [from, hashes] of refused) expect(() => resource.learn(from, hashes)).toThrow(expect.objectContaining({ code: 'INVALID_DATA' }))
    expect(resource.knows(3)).toBe(false)
    expect(resource.knows(5)).toBe(false)
    resource.learn(0, new Uint8Array(0))
    await store.remove('file:abc')
    expect(() => resource.learn(0, hashesOf(file, 0, 1))).toThrow(expect.objectContaining({ code: 'NOT_FOUND' }))
  })

  test('no bytes are a resource of no blocks: whole at once', async () => {
    expect(await store.add('file:empty', fixedBlockTable(0, BLOCK), { open: true })).toMatchObject({ open: false, whole: true })
  })

  test('added again it is the same one, and knows what both knew', async () => {
    const resource = await store.add('file:abc', partly(file, [1, 2]), { open: true })
    expect(await store.add('file:abc', partly(file, [2, 7]), { open: true })).toBe(resource)
    expect([1, 2, 7].every(block => resource.knows(block))).toBe(true)
    const other = partly(file, [5])
    other.hashes.set(randomBytes(32), 7 * HASH_LENGTH)
    await expect(store.add('file:abc', other, { open: true })).rejects.toMatchObject({ code: 'CONFLICT' })
    expect(resource.knows(5)).toBe(false)
    await expect(store.add('file:abc', fixedBlockTable(file.bytes.length, 500), { open: true })).rejects.toMatchObject({ code: 'CONFLICT' })
    await expect(store.add('file:abc', fixedBlockTable(file.bytes.length - 1, BLOCK), { open: true })).rejects.toMatchObject({ code: 'CONFLICT' })
    // A table that knows all closes it; afterwards an open one only has to agree.
    const full = buildBlockTable(file.blocks.map(block => ({ rawLength: block.length, packedLength: block.length, codec: CODEC_RAW, hash: sha256(block) })))
    expect(await store.add('file:abc', full)).toBe(resource)
    expect(resource.open).toBe(false)
    expect(await addOpen()).toBe(resource)
    await expect(store.add('file:abc', other, { open: true })).rejects.toMatchObject({ code: 'CONFLICT' })
    await expect(store.add('file:abc', fixedBlockTable(file.bytes.length, BLOCK))).rejects.toMatchObject({ code: 'CONFLICT' })
  })

  test('blocks of another version that are the same are copied once their hash is known', async () => {
    const first = await addOpen()
    first.learn(0, hashesOf(file, 0, 5))
    for (let block = 0; block < 5; block++) await first.putBlock(block, file.blocks[block])
    const second = await store.add('file:def', fixedBlockTable(file.bytes.length, BLOCK), { open: true })
    const all = [...file.blocks.keys()]
    expect(store.findCopies(second, all)).toEqual([])
    second.learn(3, hashesOf(file, 3, 10))
    expect(store.findCopies(second, all).map(({ block, source, from }) => [block, source.id, from])).toEqual([[3, 'file:abc', 3], [4, 'file:abc', 4]])
    expect(await store.copyBlocks(second, all)).toEqual([3, 4])
    // What is learnt later is found too, and what is removed no more.
    first.learn(5, hashesOf(file, 5, 10))
    await first.putBlock(9, file.blocks[9])
    expect(store.findCopies(second, [9])).toHaveLength(1)
    await store.remove('file:abc')
    expect(store.findCopies(second, all)).toEqual([])
  })

  test('a restart keeps the hashes and the blocks; a crash drops blocks whose hash was not saved yet', async () => {
    const resource = await addOpen()
    resource.pin('download', { lasting: true }) // saves record and table
    resource.learn(0, hashesOf(file, 0, 6))
    for (let block = 0; block < 6; block++) await resource.putBlock(block, file.blocks[block])
    const crashed = (await afterCrash()).get('file:abc')!
    expect(crashed.open).toBe(true)
    for (let block = 0; block < 10; block++) expect(crashed.state[block] !== 0 && !crashed.knows(block)).toBe(false)
    crashed.learn(0, file.hashes)
    for (let block = 0; block < 10; block++) await crashed.putBlock(block, file.blocks[block])
    expect(same(await crashed.readRaw(0, file.bytes.length), file.bytes)).toBe(true)
    expect(crashed.pins).toEqual(['download'])
    await store.close()
    const again = (await open(directory)).get('file:abc')!
    expect(again).toMatchObject({ open: true, storedBlocks: 6, pins: ['download'] })
    expect(again.knownUntil(0)).toBe(6)
    expect(same(await again.readRaw(0, 6 * BLOCK), file.bytes.subarray(0, 6 * BLOCK))).toBe(true)
  })

  test('the last hash is saved at once: what is whole is whole after a crash', async () => {
    const resource = await addOpen()
    resource.learn(0, file.hashes)
    for (let block = 0; block < 10; block++) await resource.putBlock(block, file.blocks[block])
    // A pin is saved behind the table, so it is a sign that the table is.
    resource.pin('sign', { lasting: true })
    await resource.readRaw(0, 1)
    for (;;) {
      const crashed = (await afterCrash()).get('file:abc')!
      if (!crashed.pins.includes('sign')) continue
      expect(crashed).toMatchObject({ open: false, whole: true })
      expect(same(await crashed.readRaw(0, file.bytes.length), file.bytes)).toBe(true)
      break
    }
  })

  test('a blob is proved by its digest; one that is another is quarantined', async () => {
    const id = `blob:${file.digest}`
    const blob = await store.add(id, fixedBlockTable(file.bytes.length, BLOCK), { open: true, diffId: file.digest })
    await expect(blob.prove()).rejects.toMatchObject({ code: 'CONFLICT' })
    const fill = new StreamFill(blob)
    await fill.write(file.bytes)
    await fill.finish()
    await blob.prove({ raw: false })
    expect(blob.proved).toBe(true)
    await store.close()
    store = await open(directory)
    expect(store.get(id)).toMatchObject({ proved: true, open: false, whole: true })
    const lie = sample(3 * BLOCK)
    const false_ = await store.add(`blob:${lie.digest}`, fixedBlockTable(lie.bytes.length, BLOCK), { open: true, diffId: lie.digest })
    const other = new StreamFill(false_)
    await other.write(file.bytes.subarray(0, lie.bytes.length))
    await other.finish()
    await expect(false_.prove({ raw: false })).rejects.toMatchObject({ code: 'DIGEST_MISMATCH' })
    expect(false_.quarantined).toBe(true)
  })

  test('whatever is learnt in whatever order and however often, with restarts between: the table is the same, and nothing wrong is ever known', async () => {
    const step = fc.oneof(
      fc.record({ do: fc.constant('learn' as const), from: fc.nat(9), count: fc.nat(4) }),
      fc.record({ do: fc.constant('merge' as const), known: fc.uniqueArray(fc.nat(9), { maxLength: 4 }) }),
      fc.record({ do: fc.constant('lie' as const), block: fc.nat(9) }),
      fc.record({ do: fc.constant('put' as const), block: fc.nat(9) }),
      fc.record({ do: fc.constant('restart' as const) }),
      fc.record({ do: fc.constant('crash' as const) }),
    )
    await fc.assert(fc.asyncProperty(fc.array(step, { maxLength: 20 }), async steps => {
      const at = makeDirectory()
      let current = await openStore(at)
      let place = at
      const places = [at]
      try {
        let resource = await addOpen(current)
        for (const action of steps) {
          if (action.do === 'learn') resource.learn(action.from, hashesOf(file, action.from, Math.min(10, action.from + action.count)))
          else if (action.do === 'merge') await current.add('file:abc', partly(file, action.known), { open: true })
          else if (action.do === 'lie' && resource.knows(action.block)) expect(() => resource.learn(action.block, randomBytes(32))).toThrow(expect.objectContaining({ code: 'INVALID_DATA' }))
          else if (action.do === 'put' && resource.knows(action.block)) await resource.putBlock(action.block, file.blocks[action.block])
          else if (action.do === 'restart' || action.do === 'crash') {
            const known = [...file.blocks.keys()].filter(block => resource.knows(block))
            if (action.do === 'crash') {
              place = makeDirectory()
              fs.cpSync(places.at(-1)!, place, { recursive: true })
              places.push(place)
            }
            await current.close()
            current = await openStore(place)
            resource = current.get('file:abc')!
            if (action.do === 'restart') expect(known.every(block => resource.knows(block))).toBe(true)
          }
          for (let block = 0; block < 10; block++) {
            if (resource.knows(block)) expect(Buffer.from(blockHash(resource.table, block)).equals(hashesOf(file, block, block + 1))).toBe(true)
            else expect(resource.state[block]).toBe(0)
          }
        }
        resource.learn(0, file.hashes)
        expect(resource.open).toBe(false)
        expect(Buffer.from(resource.table.hashes).equals(file.hashes)).toBe(true)
        for (let block = 0; block < 10; block++) await resource.putBlock(block, file.blocks[block])
        expect(same(await resource.readRaw(0, file.bytes.length), file.bytes)).toBe(true)
        expect(current.usage().packedBytes).toBe(file.bytes.length)
      } finally {
        await current.close()
        for (const each of places) fs.rmSync(each, { recursive: true, force: true })
      }
    }), { numRuns: 25 })
  })
})

describe('a file in blocks', () => {
  test('is cut into equal blocks, the last one shorter', () => {
    const table = fixedBlockTable(2500, 1000)
    expect(table.count).toBe(3)
    expect([...table.rawOffsets]).toEqual([0, 1000, 2000, 2500])
    expect([...table.packedOffsets]).toEqual([...table.rawOffsets])
    expect(fixedBlockTable(2000, 1000).count).toBe(2)
    for (const [length, blockBytes] of [[-1, 10], [1.5, 10], [10, 0], [NaN, 10], [10, Infinity]]) expect(() => fixedBlockTable(length, blockBytes)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
    expect(() => fixedBlockTable(Number.MAX_SAFE_INTEGER, 1)).toThrow(expect.objectContaining({ code: 'LIMIT_EXCEEDED' }))
  })

  test('has blocks as large as its length asks for, or as was wanted', () => {
    const GIB = 2 ** 30
    expect([undefined, 0, GIB, GIB + 1, 4 * GIB, 4 * GIB + 1].map(length => blockBytesFor(length) / 1024)).toEqual([512, 512, 512, 2048, 2048, 4096])
    expect([16 * GIB, 16 * GIB + 1, 64 * GIB].map(length => blockBytesFor(length, 1) / 1024)).toEqual([64, 128, 256])
    expect([1, 65_536, 65_537, 1_000_000, 4 * 2 ** 20, 2 ** 30].map(wanted => blockBytesFor(undefined, wanted) / 1024)).toEqual([64, 64, 128, 1024, 4096, 4096])
  })
})
