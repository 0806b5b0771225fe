import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { spawn } from 'node:child_process'
import * as fs from 'node:fs'
import * as path from 'node:path'
import * as readline from 'node:readline'
import * as fc from 'fast-check'
import { fill, makeDirectory, openStore, PACK, packFile, same, sampleLayer } from './sample-layer.ts'
import type { SampleLayer } from './sample-layer.ts'

const BLOCKS = 300
const writer = path.join(import.meta.dirname, 'store-writer.ts')

/** What store-writer.ts writes. */
const layerOf = (seed: number): SampleLayer => sampleLayer(Array.from({ length: BLOCKS }, (_, block) => 1000 + (block * 7919) % 20_000), { seed })

/** Lets a process write until it has said `lines` lines, kills it, and answers what it said. */
async function writeUntilKilled(directory: string, seed: number, lines: number): Promise<string[]> {
  const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', writer, directory, String(seed), String(BLOCKS)], { stdio: ['ignore', 'pipe', 'inherit'] })
  const said: string[] = []
  for await (const line of readline.createInterface({ input: child.stdout })) {
    said.push(line)
    if (said.length === lines) child.kill('SIGKILL')
  }
  return said
}

describe('the block store after a crash', () => {
  let directory: string
  beforeEach(() => {
    directory = makeDirectory()
  })
  afterEach(() => fs.rmSync(directory, { recursive: true, force: true }))

  test('kill -9 in the middle of writing: every acknowledged block is there and right, every other one is right or absent', async () => {
    for (const [round, lines] of [1, 50, 299].entries()) {
      const said = await writeUntilKilled(directory, round, lines)
      expect(said.length).toBeGreaterThanOrEqual(lines)
      const store = await openStore(directory)
      try {
        const layer = layerOf(round)
        const resource = store.get(`layer:${round}`)!
        expect(resource.pins).toEqual(['container'])
        for (const line of said) if (line !== 'proved') expect(await resource.check(Number(line))).toBe(true)
        for (let block = 0; block < BLOCKS; block++) if (resource.state[block] > 0) expect(same(await resource.readPacked(block), layer.packed[block])).toBe(true)
        // Of what was being made, nothing is left: a pack, its notes and perhaps a raw file for each round.
        expect(fs.readdirSync(path.join(directory, 'packs')).filter((name) => PACK.test(name))).toHaveLength(round + 1)
        await fill(resource, layer)
        await resource.prove()
      } finally {
        await store.close()
      }
    }
  })

  test('kill -9 after the proof: it serves its raw file at once', async () => {
    const said = await writeUntilKilled(directory, 9, BLOCKS + 1)
    expect(said.at(-1)).toBe('proved')
    const store = await openStore(directory)
    expect([...new Set(store.get('layer:9')!.state)]).toEqual([3])
    expect(same(await store.get('layer:9')!.readRaw(0, layerOf(9).raw.length), layerOf(9).raw)).toBe(true)
    await store.close()
  })

  test('power loss: pages of pack and notes that never reached the disk cost their blocks, nothing else', async () => {
    const layer = sampleLayer(Array.from({ length: 12 }, (_, block) => 3000 + block * 500))
    const packedBytes = layer.table.packedOffsets[12]
    await fc.assert(fc.asyncProperty(
      fc.array(fc.record({ at: fc.nat(packedBytes - 1), length: fc.integer({ min: 1, max: 4096 }) }), { maxLength: 3 }),
      fc.array(fc.nat(11), { maxLength: 4 }), fc.option(fc.nat(packedBytes)), fc.boolean(),
      async (zeroed, unnoted, cut, notesLost) => {
        const place = fs.mkdtempSync(path.join(directory, 'run-'))
        const before = await openStore(place)
        await fill(await before.add('layer:a', layer.table, { diffId: layer.diffId }), layer)
        await before.close()
        const pack = packFile(place, PACK)
        const bytes = fs.readFileSync(pack)
        for (const { at, length } of zeroed) bytes.fill(0, at, Math.min(at + length, bytes.length))
        fs.writeFileSync(pack, cut === null ? bytes : bytes.subarray(0, cut))
        const notes = fs.readFileSync(`${pack}.state`)
        for (const block of unnoted) notes[block] = 0
        if (notesLost) fs.writeFileSync(`${pack}.state`, notes.subarray(0, 3))
        else fs.writeFileSync(`${pack}.state`, notes)
        const store = await openStore(place)
        try {
          const resource = store.get('layer:a')!
          for (let block = 0; block < 12; block++) {
            const [start, end] = [layer.table.packedOffsets[block], layer.table.packedOffsets[block + 1]]
            const intact = !notesLost && !unnoted.includes(block) && (cut === null || cut >= end) && same(bytes.subarray(start, end), layer.packed[block])
            expect(await resource.check(block)).toBe(intact)
          }
          await fill(resource, layer)
          await resource.prove()
          expect(store.usage()).toMatchObject({ packedBytes, rawBytes: layer.raw.length })
        } finally {
          await store.close()
          fs.rmSync(place, { recursive: true })
        }
      }), { numRuns: 15 })
  })
})
