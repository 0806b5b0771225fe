// Holding an image: the start's blocks first, the rest when it is quiet, then the proof; a layer that lies is quarantined.
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import * as fc from 'fast-check'
import type { Trace } from '../../peer/control.ts'
import { ownsPiece, peerSeed, shufflePieces } from '../../peer/stripes.ts'
import { ReadAhead } from '../../peer/read-ahead.ts'
import { TokenBucket } from '../../peer/token-bucket.ts'
import { TraceRecorder, mergeTraces, traceRuns } from '../../peer/trace.ts'
import { Lab, makeContent, put, until } from './lab.ts'
import type { Node, TestSupernode } from './lab.ts'

describe('holding an image', () => {
  let lab: Lab
  let supernode: TestSupernode
  beforeEach(async () => {
    lab = new Lab()
    supernode = await lab.supernode()
  })
  afterEach(() => lab.stop())
  const joined = async (options: Parameters<Lab['node']>[1] = {}): Promise<Node> => {
    const node = await lab.node('node', { supernodes: [supernode.address], ...options })
    await until('greeted', () => node.peer.supernodes.inOrder('').length === 1)
    return node
  }

  test('brings the trace at once, in order, and the rest once readers are quiet; then all layers are proved', async () => {
    const layers = [makeContent(60), makeContent(40)]
    for (const layer of layers) await put(supernode.node, layer)
    const node = await joined({ prefetch: { startMs: 400, quietMs: 400 } })
    const resources = await Promise.all(layers.map(layer => node.store.add(layer.id, layer.table, { diffId: layer.diffId })))
    const trace: Trace = { resources: layers.map(({ id }) => id), blocks: [[1, 7], [0, 50], [0, 3], [1, 1]] }
    const hold = node.peer.prefetcher.hold(resources, { image: 'test', trace })
    const proved = new Promise<void>(resolve => { hold.once('proved', resolve) })
    await until('the trace came', () => [[0, 50], [0, 3], [1, 7], [1, 1]].every(([layer, block]) => resources[layer].state[block] >= 2))
    expect(resources[0].storedBlocks + resources[1].storedBlocks).toBe(4)
    await proved
    expect(hold.progress).toMatchObject({ whole: true, proved: true, bytes: hold.progress.total })
    expect(resources.every(resource => !resource.pinned)).toBe(true)
  })

  test('goes on after failures until it succeeds', async () => {
    const layer = makeContent(10)
    const node = await joined({ fetch: { backgroundTimeout: 150, originAfter: 20 } })
    const resource = await node.store.add(layer.id, layer.table, { diffId: layer.diffId })
    const hold = node.peer.prefetcher.hold([resource], { image: 'test', now: true })
    const proved = new Promise<void>(resolve => { hold.once('proved', resolve) })
    // Nobody has it yet: the first tries fail.
    await new Promise(resolve => { setTimeout(resolve, 400) })
    expect(resource.storedBlocks).toBe(0)
    await put(supernode.node, layer)
    await proved
  })

  test('a layer that is not what the config promised is quarantined, and the supernode is told', async () => {
    const layer = makeContent(10)
    await put(supernode.node, layer)
    const node = await joined()
    const resource = await node.store.add(layer.id, layer.table, { diffId: `sha256:${'1'.repeat(64)}` })
    const hold = node.peer.prefetcher.hold([resource], { image: 'test', now: true })
    const failed = await new Promise<Error>(resolve => { hold.once('failed', resolve) })
    expect(failed).toMatchObject({ code: 'DIGEST_MISMATCH' })
    expect(resource.quarantined).toBe(true)
    await until('the supernode knows', () => supernode.quarantines.includes(layer.id))
  })

  test('stops when it is released', async () => {
    const layer = makeContent(200)
    const slow = await lab.supernode({ exchange: { uploadBytesPerSecond: 1_000_000 } })
    await put(slow.node, layer)
    const node = await joined({ supernodes: [slow.address] })
    const resource = await node.store.add(layer.id, layer.table, { diffId: layer.diffId })
    const hold = node.peer.prefetcher.hold([resource], { image: 'test', now: true })
    await until('it began', () => resource.storedBlocks > 0)
    hold.release()
    await until('it lets go', () => !resource.pinned)
    expect(resource.whole).toBe(false)
  })
})

describe('traces', () => {
  test('record each block once, in the order of the start, and end once', () => {
    const traces: Trace[] = []
    const recorder = new TraceRecorder({ seconds: 1000 }, trace => traces.push(trace))
    recorder.read('layer:a', 5, 8)
    recorder.read('layer:b', 0)
    recorder.read('layer:a', 6, 10)
    recorder.finish()
    recorder.read('layer:a', 99)
    recorder.finish()
    expect(traces).toEqual([{ resources: ['layer:a', 'layer:b'], blocks: [[0, 5], [0, 6], [0, 7], [1, 0], [0, 8], [0, 9]] }])
    expect(traceRuns(traces[0])).toEqual([{ resource: 'layer:a', blocks: [5, 6, 7] }, { resource: 'layer:b', blocks: [0] }, { resource: 'layer:a', blocks: [8, 9] }])
  })

  test('merge into their union by mean position, and what most starts read is kept when there is too much', () => {
    const a: Trace = { resources: ['x', 'y'], blocks: [[0, 1], [0, 2], [1, 9]] }
    const b: Trace = { resources: ['y', 'x'], blocks: [[1, 2], [1, 1], [1, 3]] }
    const merged = mergeTraces([a, b])
    expect(merged.blocks.map(([resource, block]) => `${merged.resources[resource]}${block}`).sort()).toEqual(['x1', 'x2', 'x3', 'y9'])
    expect(mergeTraces([a, b], 2).blocks.length).toBe(2)
    expect(mergeTraces([a])).toEqual(a)
    expect(mergeTraces([])).toEqual({ resources: [], blocks: [] })
  })
})

describe('sharing the work', () => {
  test('every piece belongs to exactly one of the peers that want it, and evenly', () => {
    const seeds = ['a', 'b', 'c', 'd', 'e', 'f'].map(peerSeed)
    const shares = seeds.map(() => 0)
    for (let block = 0; block < 4000; block++) {
      const owners = seeds.filter((seed, index) => ownsPiece(block, 4, seed, seeds.filter((_, other) => other !== index)))
      expect(owners.length).toBe(1)
      shares[seeds.indexOf(owners[0])]++
    }
    for (const share of shares) expect(share).toBeGreaterThan(4000 / 6 / 1.5)
    expect(ownsPiece(1, 4, seeds[0], [])).toBe(true)
  })

  test('a shuffle keeps all blocks, and the blocks of a piece together', () => {
    fc.assert(fc.property(fc.uniqueArray(fc.nat(1000)), list => {
      const blocks = list.sort((a, b) => a - b)
      expect(shufflePieces(blocks, 4).sort((a, b) => a - b)).toEqual(blocks)
    }))
  })

  test('reading ahead begins with the second miss in order, grows, and stops at the end', () => {
    const { table } = makeContent(200, 10_000)
    const ahead = new ReadAhead()
    expect(ahead.until(table, 10, 11)).toBe(11)
    const first = ahead.until(table, 11, 12)
    expect(first).toBeGreaterThan(12)
    expect(ahead.until(table, 150, 151)).toBe(151) // another reader elsewhere does not disturb
    const second = ahead.until(table, first, first + 1)
    expect(second - first).toBeGreaterThan(first - 12)
    expect(ahead.until(table, 40, 41)).toBe(41)
    expect(ahead.until(table, 151, 152)).toBeLessThanOrEqual(200)
  })

  test('a token bucket lets the burst through and then the rate', () => {
    let now = 0
    const bucket = new TokenBucket(1000, { burst: 500, clock: () => now })
    expect(bucket.take(500)).toBe(0)
    expect(bucket.take(1000)).toBe(1000)
    now = 1000
    expect(bucket.wait()).toBe(0)
    now = 10_000
    expect(bucket.take(600)).toBe(100)
    expect(new TokenBucket(Infinity).take(1e12)).toBe(0)
  })
})
