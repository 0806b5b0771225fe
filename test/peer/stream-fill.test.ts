// A byte stream that becomes a resource's blocks.
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { randomBytes } from 'node:crypto'
import * as fs from 'node:fs'
import * as fc from 'fast-check'
import { blockHash, fixedBlockTable } from '../../image/block-table.ts'
import { sha256 } from '../../peer/block-codec.ts'
import type { BlockStore } from '../../peer/block-store.ts'
import { StreamFill } from '../../peer/stream-fill.ts'
import { makeDirectory, openStore, same } from './sample-layer.ts'

const BLOCK = 4096
const bytes = randomBytes(20 * BLOCK + 17)
const table = (): ReturnType<typeof fixedBlockTable> => fixedBlockTable(bytes.length, BLOCK)

async function pour(fill: StreamFill, from: number, to: number, sizes: readonly number[]): Promise<void> {
  // One buffer for all chunks: whoever keeps a chunk gets the next one's bytes.
  const chunk = Buffer.alloc(Math.max(1, ...sizes))
  for (let at = from, index = 0; at < to; index++) {
    const size = Math.min(to - at, sizes[index % sizes.length])
    bytes.copy(chunk, 0, at, at + size)
    at += size
    const room = fill.write(chunk.subarray(0, size))
    if (room !== undefined) await room
    expect(fill.position).toBe(at)
  }
}

describe('a stream that fills a resource', () => {
  let directory: string
  let store: BlockStore
  beforeEach(async () => {
    directory = makeDirectory()
    store = await openStore(directory)
  })
  afterEach(async () => {
    await store.close()
    fs.rmSync(directory, { recursive: true, force: true })
  })

  test('however it is cut into chunks, and wherever it is taken up again after a restart, the resource is the same', async () => {
    let run = 0
    await fc.assert(fc.asyncProperty(
      fc.array(fc.oneof(fc.integer({ min: 1, max: 50 }), fc.integer({ min: 1, max: 3 * BLOCK }), fc.constant(BLOCK)), { minLength: 1, maxLength: 30 }), fc.nat(bytes.length), fc.boolean(),
      async (sizes, stop, close) => {
        const id = `file:${run++}`
        let resource = await store.add(id, table(), { open: true })
        // The source ends early, somewhere.
        const first = new StreamFill(resource)
        await pour(first, 0, stop, sizes)
        if (stop % BLOCK === 0 || stop === bytes.length) await first.finish()
        else await expect(first.finish()).rejects.toMatchObject({ code: 'INVALID_DATA', message: expect.stringContaining('inside of block') })
        if (close) {
          await store.close()
          store = await openStore(directory)
          resource = store.get(id)!
        }
        const from = resource.knownUntil(0)
        expect(from).toBe(stop === bytes.length ? resource.table.count : Math.floor(stop / BLOCK))
        const second = new StreamFill(resource, { from })
        await pour(second, Math.min(bytes.length, from * BLOCK), bytes.length, sizes)
        await second.finish()
        expect(resource).toMatchObject({ whole: true, open: false })
        for (let block = 0; block < resource.table.count; block++) expect(sha256(bytes.subarray(block * BLOCK, (block + 1) * BLOCK)).equals(blockHash(resource.table, block))).toBe(true)
        expect(same(await resource.readRaw(0, bytes.length), bytes)).toBe(true)
        await store.remove(id)
      },
    ), { numRuns: 40 })
    expect(store.usage().packedBytes).toBe(0)
  })

  test('tells a hash before its block, and each block before the stream is finished', async () => {
    const resource = await store.add('file:a', table(), { open: true })
    const order: string[] = []
    resource.on('learnt', from => order.push(`learnt ${from}`))
    resource.on('block', block => order.push(`block ${block}`))
    const fill = new StreamFill(resource)
    await fill.write(bytes.subarray(0, 3 * BLOCK + 1))
    await expect(fill.finish()).rejects.toMatchObject({ code: 'INVALID_DATA' })
    for (const block of [0, 1, 2]) expect(order.indexOf(`learnt ${block}`)).toBeLessThan(order.indexOf(`block ${block}`))
    expect(order).toHaveLength(6)
  })

  test('what is known is compared: another byte means that the source has changed', async () => {
    const resource = await store.add('file:a', table(), { open: true })
    await new StreamFill(resource).write(bytes.subarray(0, 5 * BLOCK))
    const changed = Buffer.from(bytes)
    changed[4 * BLOCK + 7] ^= 1
    const again = new StreamFill(resource)
    await again.write(changed.subarray(0, 4 * BLOCK))
    await again.write(changed.subarray(4 * BLOCK, 6 * BLOCK))
    await expect(again.finish()).rejects.toMatchObject({ code: 'CONFLICT', message: expect.stringContaining('block 4') })
    await expect(again.write(changed.subarray(6 * BLOCK))).rejects.toMatchObject({ code: 'CONFLICT' })
    expect(resource.knows(4)).toBe(true)
    expect(same(await resource.readPacked(4), bytes.subarray(4 * BLOCK, 5 * BLOCK))).toBe(true)
  })

  test('a source that gives more than it announced is refused; what was good stays', async () => {
    const resource = await store.add('file:a', table(), { open: true })
    const fill = new StreamFill(resource)
    await fill.write(bytes)
    await expect(fill.write(Buffer.of(1))).rejects.toMatchObject({ code: 'INVALID_DATA', message: expect.stringContaining('more than') })
    await expect(fill.finish()).rejects.toMatchObject({ code: 'INVALID_DATA' })
    expect(resource.whole).toBe(true)
    expect(() => new StreamFill(resource, { from: 22 })).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
    const empty = new StreamFill(resource, { from: 21 })
    expect(empty.position).toBe(bytes.length)
    await empty.finish()
  })

  test('makes its caller wait when the disk is behind, and holds no more than its bound', async () => {
    const blockBytes = 1024 * 1024
    const resource = await store.add('file:a', fixedBlockTable(40 * blockBytes, blockBytes), { open: true })
    const fill = new StreamFill(resource)
    let waited = 0
    for (let block = 0; block < 40; block++) {
      const room = fill.write(Buffer.alloc(blockBytes, block + 1))
      if (room !== undefined) {
        waited++
        await room
      }
      expect(fill.position - resource.storedBytes).toBeLessThanOrEqual(9 * blockBytes)
    }
    await fill.finish()
    expect(waited).toBeGreaterThan(0)
    for (let block = 0; block < 40; block++) expect(same(await resource.readPacked(block), Buffer.alloc(blockBytes, block + 1))).toBe(true)
  })

  test('without room it ends; or it hands out what found none, and goes on', async () => {
    await store.close()
    store = await openStore(directory, { capBytes: 10 * BLOCK })
    const resource = await store.add('file:a', table(), { open: true })
    resource.pin('download')
    const stopped = new StreamFill(resource)
    await stopped.write(bytes)
    await expect(stopped.finish()).rejects.toMatchObject({ code: 'NO_SPACE' })
    const unsaved = new Map<number, Buffer>()
    const going = new StreamFill(resource, { onNoRoom: (block, own) => { unsaved.set(block, own) } })
    await pour(going, 0, bytes.length, [700])
    await going.finish()
    expect(resource.open).toBe(false)
    const all = await Promise.all(Array.from({ length: resource.table.count }, async (_, block) => unsaved.get(block) ?? await resource.readPacked(block)))
    expect(same(all, bytes)).toBe(true)
    expect(unsaved.size).toBeGreaterThan(5)
  })

  test('a resource that is removed meanwhile ends it', async () => {
    const resource = await store.add('file:a', table(), { open: true })
    const fill = new StreamFill(resource)
    await fill.write(bytes.subarray(0, BLOCK))
    await store.remove('file:a')
    await fill.write(bytes.subarray(BLOCK, 3 * BLOCK))
    await expect(fill.finish()).rejects.toMatchObject({ code: 'NOT_FOUND' })
    expect(store.usage().packedBytes).toBe(0)
  })
})
