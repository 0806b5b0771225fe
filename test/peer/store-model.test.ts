import { describe, expect, test } from '@jest/globals'
import * as fs from 'node:fs'
import * as fc from 'fast-check'
import { CODEC_RAW } from '../../image/block-table.ts'
import type { BlockTable } from '../../image/block-table.ts'
import { CopyIndex } from '../../peer/copy-index.ts'
import { readSharedSync } from '../../peer/shared-resource.ts'
import { makeDirectory, openStore, same, sampleLayer } from './sample-layer.ts'

const layers = [
  sampleLayer([3000, 10_000, 700, 20_000], { seed: 1 }), sampleLayer([8000, 8000, 8000], { seed: 2, codec: CODEC_RAW }),
  sampleLayer([100, 50_000], { seed: 3 }), sampleLayer([3000, 10_000, 900], { seed: 1 }),
]
const layer = fc.nat(layers.length - 1)
const step = fc.oneof(
  { weight: 6, arbitrary: fc.record({ what: fc.constant('put' as const), layer, block: fc.nat(3), wrong: fc.boolean() }) },
  { weight: 3, arbitrary: fc.record({ what: fc.constant('fill' as const), layer }) },
  { weight: 6, arbitrary: fc.record({ what: fc.constant('read' as const), layer, offset: fc.nat(60_000), length: fc.nat(60_000) }) },
  { weight: 3, arbitrary: fc.record({ what: fc.constant('prove' as const), layer }) },
  { weight: 2, arbitrary: fc.record({ what: fc.constant('pin' as const), layer }) },
  { weight: 2, arbitrary: fc.record({ what: fc.constant('unpin' as const), layer }) },
  { weight: 2, arbitrary: fc.record({ what: fc.constant('remove' as const), layer }) },
  { weight: 1, arbitrary: fc.record({ what: fc.constant('evict' as const) }) },
  { weight: 2, arbitrary: fc.record({ what: fc.constant('restart' as const) }) },
)

/** A table of which only the hashes matter: few different first bytes, the worst a table of hashes can be given. */
function tableOf(values: number[]): BlockTable {
  const nothing = new SharedArrayBuffer(0)
  const hashes = new Uint8Array(new SharedArrayBuffer(values.length * 32))
  for (const [block, value] of values.entries()) {
    hashes[block * 32] = value & 1
    hashes[block * 32 + 31] = value
  }
  return { count: values.length, rawOffsets: new Float64Array(nothing), packedOffsets: new Float64Array(nothing), codecs: new Uint8Array(nothing), hashes }
}

describe('the block store, whatever is done to it in whatever order', () => {
  test('never gives a wrong byte, never passes its cap, never loses what is pinned, and its account is right', async () => {
    await fc.assert(fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 40 }), fc.constantFrom(30_000, 70_000, 1e9), async (steps, capBytes) => {
      const directory = makeDirectory()
      let store = await openStore(directory, { capBytes })
      /** What must be there: the blocks of pinned resources. */
      const model = layers.map(() => ({ pinned: false, blocks: new Set<number>() }))
      try {
        for (const action of steps) {
          if (action.what === 'restart') {
            await store.close()
            store = await openStore(directory, { capBytes })
          } else if (action.what === 'evict') await store.evict()
          else {
            const { table, packed, raw, diffId } = layers[action.layer]
            const id = `layer:${action.layer}`
            const known = model[action.layer]
            const resource = await store.add(id, table, { diffId })
            const put = async (block: number): Promise<void> => {
              const stored = await resource.putBlock(block, packed[block]).then(() => true, (error: { code: string }) => error.code)
              expect([true, 'NO_SPACE']).toContain(stored)
              if (stored === true) known.blocks.add(block)
            }
            if (action.what === 'put' && action.block < table.count) {
              if (!action.wrong) await put(action.block)
              else await expect(resource.putBlock(action.block, Buffer.concat([packed[action.block].subarray(1), Buffer.from([1])]))).rejects.toMatchObject({ code: 'DIGEST_MISMATCH' })
            } else if (action.what === 'fill') for (let block = 0; block < table.count; block++) await put(block)
            else if (action.what === 'pin') {
              if (!known.pinned) known.blocks = new Set([...known.blocks].filter((block) => resource.state[block] !== 0))
              known.pinned = true
              resource.pin('container', { lasting: true })
            } else if (action.what === 'unpin') {
              known.pinned = false
              resource.unpin('container')
            } else if (action.what === 'remove') {
              const removed = await store.remove(id).then(() => true, (error: { code: string }) => error.code)
              expect(removed).toBe(known.pinned ? 'CONFLICT' : true)
              if (removed === true) known.blocks.clear()
            } else if (action.what === 'prove') {
              const whole = resource.whole
              expect(await resource.prove().then(() => true, (error: { code: string }) => error.code)).toBe(whole ? true : 'CONFLICT')
            } else if (action.what === 'read') {
              for (let block = 0; block < table.count; block++) await resource.check(block)
              const into = Buffer.alloc(action.length)
              const got = readSharedSync(resource.shared(), action.offset, action.length, into, 0)
              if (typeof got === 'number') expect(same(into.subarray(0, got), raw.subarray(action.offset, action.offset + action.length))).toBe(true)
              else for (const { from, to } of got) for (let block = from; block < to; block++) expect(resource.state[block]).toBe(0)
            }
          }
          // What is being evicted in the background leaves the list first and the account when its files are gone.
          const listed = (): number => store.list().reduce((sum, { storedBytes }) => sum + storedBytes, 0)
          for (let tries = 0; tries < 500 && store.usage().packedBytes !== listed(); tries++) await new Promise((resolve) => setTimeout(resolve, 10))
          const { packedBytes, rawBytes } = store.usage()
          expect(packedBytes + rawBytes).toBeLessThanOrEqual(capBytes)
          expect(packedBytes).toBe(listed())
          expect(rawBytes).toBe(store.list().reduce((sum, resource) => sum + resource.rawBytes, 0))
          for (const [index, { pinned, blocks }] of model.entries()) if (pinned) for (const block of blocks) expect(store.get(`layer:${index}`)!.state[block]).toBeGreaterThan(0)
        }
      } finally {
        await store.close()
        fs.rmSync(directory, { recursive: true, force: true })
      }
    }), { numRuns: 60 })
  })

  test('finds a block by its hash wherever it is listed, as a plain search would', () => {
    fc.assert(fc.property(fc.array(fc.oneof(fc.array(fc.nat(40), { maxLength: 900 }), fc.nat(10)), { maxLength: 12 }), (actions) => {
      const index = new CopyIndex()
      const live = new Map<number, number[]>()
      for (const [number, action] of actions.entries()) {
        if (typeof action === 'number') {
          index.delete(action)
          live.delete(action)
        } else {
          // Open tables tell some of their hashes later.
          const known = number % 2 === 0 ? action.length : action.length >> 1
          index.add(number + 100, tableOf(action), block => block < known)
          index.learnt(number + 100, known, action.length)
          live.set(number + 100, action)
          if (number % 3 === 0) {
            index.delete(number + 100)
            live.delete(number + 100)
          }
        }
      }
      for (let value = 0; value <= 40; value++) {
        const found = new Map<number, number>()
        index.find(tableOf([value]), 0, (number, block) => {
          expect(found.has(number)).toBe(false)
          found.set(number, block)
          return false
        })
        expect([...found].sort(([one], [other]) => one - other)).toEqual([...live].filter(([, values]) => values.includes(value)).map(([number, values]) => [number, values.indexOf(value)]))
      }
    }), { numRuns: 40 })
  })
})
