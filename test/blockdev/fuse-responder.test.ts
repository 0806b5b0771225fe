// The request parser and the maps behind it: whatever comes in, one bounded reply or none; disks, trees and node ids add up.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import * as fc from 'fast-check'
import fs from 'node:fs'
import { answerInit } from '../../blockdev/fuse-init.ts'
import { TreeView } from '../../blockdev/fuse-filesystem.ts'
import { IN_HEADER, MAX_READ, OP, OUT_HEADER, REQUEST_BUFFER } from '../../blockdev/fuse-protocol.ts'
import { FuseResponder } from '../../blockdev/fuse-responder.ts'
import { parseMountinfo } from '../../blockdev/mount-table.ts'
import { keyOf, nodeId, nodeKey, positionOf, PublishedTable } from '../../blockdev/published.ts'
import { drainTouches, newTouchLog, noteTouch } from '../../blockdev/touch-log.ts'
import { buildTreeTable } from '../../blockdev/tree-table.ts'
import { checkDisk, diskStretches } from '../../blockdev/virtual-disk.ts'
import type { Stretch } from '../../blockdev/virtual-disk.ts'
import { someBytes, temporaryDirectory, testLayer } from './layer-fixture.ts'
import type { TestLayer } from './layer-fixture.ts'
import { fileBytes, treeOver } from './tree-fixture.ts'

let directory: string
let layers: TestLayer[]

beforeAll(() => {
  directory = temporaryDirectory()
  layers = [testLayer(directory, someBytes(2_000_384), { here: true }), testLayer(directory, someBytes(2_500_096))]
})
afterAll(() => {
  for (const layer of layers) layer.close()
  fs.rmSync(directory, { recursive: true })
})

function responder(): FuseResponder {
  const made = new FuseResponder(newTouchLog())
  for (const [slot, layer] of layers.entries()) made.publish({ room: 'layers', name: layer.name, resource: layer.resource, slot })
  made.publish({ room: 'images', name: 'image', tree: buildTreeTable(treeOver(layers[0], layers[1]), (diffId) => diffId.slice(7)) })
  made.restored = true
  return made
}

const bytesOf = (stretches: Stretch[], metadata: Buffer): Buffer => Buffer.concat(stretches.map((stretch) => {
  if (stretch.kind === 'zero') return Buffer.alloc(stretch.length)
  if (stretch.kind === 'file') return metadata.subarray(stretch.offset, stretch.offset + stretch.length)
  return layers.find((layer) => layer.name === stretch.layer)!.bytes.subarray(stretch.offset, stretch.offset + stretch.length)
}))

describe('a FUSE request', () => {
  test('of any bytes gets at most one reply, no longer than the kernel takes', () => {
    const made = responder()
    const request = Buffer.alloc(REQUEST_BUFFER)
    const nodes = [1n, 2n, 3n, 4n, 5n, ...[nodeKey('layers', layers[0].name), nodeKey('images', 'image')].flatMap((key) => [0, 1, 8, 9, 10, 11].map((position) => {
      const { high, low } = nodeId(key, position)
      return (BigInt(high) << 32n) | BigInt(low)
    }))]
    const asked = fc.record({
      opcode: fc.oneof(fc.constantFrom(...Object.values(OP)), fc.nat(4100)), node: fc.oneof(fc.constantFrom(...nodes), fc.bigInt(0n, 2n ** 64n - 1n)),
      body: fc.oneof(fc.uint8Array({ maxLength: 300 }), fc.constantFrom(Buffer.from('bin\0'), Buffer.from('.\0'), Buffer.from('..\0'), Buffer.alloc(40))),
    })
    fc.assert(fc.property(asked, ({ opcode, node, body }) => {
      request.fill(0, 0, 400)
      request.writeUInt32LE(opcode, 4)
      request.writeBigUInt64LE(77n, 8)
      request.writeBigUInt64LE(node, 16)
      request.set(body, IN_HEADER)
      const outcome = made.answer(request, IN_HEADER + body.length)
      if (outcome.kind !== 'reply' && outcome.kind !== 'failed') return
      expect(outcome.length).toBeGreaterThanOrEqual(OUT_HEADER)
      expect(outcome.length).toBeLessThanOrEqual(OUT_HEADER + MAX_READ)
      expect(made.out.readUInt32LE(0)).toBe(outcome.length)
      expect(made.out.readBigUInt64LE(8)).toBe(77n)
    }), { numRuns: 3000 })
    expect(made.answer(request, 3).kind).toBe('silent')
  })

  test('for missing blocks names them, and the bytes it needs', () => {
    const made = responder()
    const request = Buffer.alloc(100)
    const { high, low } = nodeId(nodeKey('images', 'image'), 9)
    request.writeUInt32LE(OP.READ, 4)
    request.writeUInt32LE(low, 16)
    request.writeUInt32LE(high, 20)
    request.writeUInt32LE(300_000, IN_HEADER + 8)
    request.writeUInt32LE(4096, IN_HEADER + 16)
    const outcome = made.answer(request, 80)
    expect(outcome).toMatchObject({ kind: 'needs', needs: [{ resourceId: layers[1].resource.id, ranges: [{ from: 1, to: 2 }] }], offset: 300_000, length: 4096 })
  })
})

describe('the handshake', () => {
  test('is refused for kernels that are too old, and for anything that is not INIT', () => {
    const init = Buffer.alloc(IN_HEADER + 64)
    init.writeUInt32LE(OP.INIT, 4)
    init.writeUInt32LE(7, IN_HEADER)
    init.writeUInt32LE(28, IN_HEADER + 4)
    expect(answerInit(init)).toMatchObject({ error: expect.stringContaining('7.28') })
    init.writeUInt32LE(40, IN_HEADER + 4)
    expect(answerInit(init)).toMatchObject({ negotiated: { minor: 40, resend: false, maxRead: 128 * 1024 } })
    expect(answerInit(init.subarray(0, 20))).toHaveProperty('error')
  })
})

describe('node ids', () => {
  test('lead back to their key and position, and never collide with the fixed directories', () => {
    fc.assert(fc.property(fc.string(), fc.nat(2 ** 24 - 1), (name, position) => {
      const key = nodeKey('layers', name)
      const { high, low } = nodeId(key, position)
      expect(keyOf(high, low)).toBe(key)
      expect(positionOf(low)).toBe(position)
      expect(high === 0 && low < 256).toBe(false)
    }))
  })

  test('names that are not names are refused', () => {
    const table = new PublishedTable()
    for (const name of ['', '.', '..', 'a/b', 'a\0', 'x'.repeat(129)]) expect(() => table.put({ room: 'layers', name, resource: layers[0].resource, slot: 0 })).toThrow(/a name has/)
  })
})

describe('a virtual disk', () => {
  test('reads the same by any cut', () => {
    const metadata = someBytes(1500)
    const [one, two] = layers
    const disk = checkDisk({ metadataFd: -1, metadataLength: 1500, length: 6_000_000, segments: [{ start: 3_000_000, length: two.bytes.length, layer: two.name }, { start: 2048, length: one.bytes.length, layer: one.name }] })
    const whole = Buffer.alloc(6_000_000)
    metadata.copy(whole)
    one.bytes.copy(whole, 2048)
    two.bytes.copy(whole, 3_000_000)
    const edges = [0, 1499, 1500, 2047, 2048, 2048 + one.bytes.length, 2_999_999, 3_000_000, 3_000_000 + two.bytes.length, 5_999_999, 6_000_000, 7_000_000]
    fc.assert(fc.property(fc.oneof(fc.constantFrom(...edges), fc.nat(6_100_000)), fc.nat(20_000), (offset, length) => {
      expect(bytesOf(diskStretches(disk, offset, length), metadata).equals(whole.subarray(offset, offset + length))).toBe(true)
    }))
  })
})

describe('a tree in shared memory', () => {
  test('finds every name, and reads every file by any cut', () => {
    const tree = treeOver(layers[0], layers[1])
    const view = new TreeView(buildTreeTable(tree, (diffId) => diffId.slice(7)), 5)
    for (const [position, inode] of tree.inodes.entries()) {
      for (const [name, child] of inode.entries ?? []) expect(view.child(position, Buffer.from(name, 'latin1'))).toBe(child)
      expect(view.child(position, Buffer.from('entry-9999'))).toBe(-1)
    }
    for (const position of [5, 7, 9]) {
      const whole = fileBytes(tree, layers, position)
      fc.assert(fc.property(fc.nat(whole.length + 10), fc.nat(5000), (offset, length) => {
        expect(bytesOf(view.stretches(position, offset, length), Buffer.alloc(0)).equals(whole.subarray(offset, offset + length))).toBe(true)
      }), { numRuns: 50 })
    }
  })
})

describe('the touch log', () => {
  test('keeps order, notes a block once, and loses only the oldest when nobody drains', () => {
    const log = newTouchLog()
    const touched = new Uint8Array(new SharedArrayBuffer(100_000))
    for (const block of [5, 3, 5, 4]) noteTouch(log, touched, 1, block)
    const seen: number[] = []
    let position = drainTouches(log, 0, (_, block) => seen.push(block))
    expect(seen).toEqual([5, 3, 4])
    for (let block = 10; block < 50_010; block++) noteTouch(log, touched, 2, block)
    seen.length = 0
    position = drainTouches(log, position, (slot, block) => { expect(slot).toBe(2); seen.push(block) })
    expect(seen.at(-1)).toBe(50_009)
    expect(seen.length).toBe(16_384)
    expect(drainTouches(log, position, () => { throw new Error('nothing new') })).toBe(position)
  })
})

describe('mountinfo', () => {
  test('gives names back as they are, and bears any text', () => {
    const [entry] = parseMountinfo('36 35 0:45 / /mnt/with\\040space ro,nosuid shared:1 - fuse skim\\134mer ro,user_id=0\n')
    expect(entry).toMatchObject({ device: '0:45', mountPoint: '/mnt/with space', type: 'fuse', source: 'skim\\mer' })
    fc.assert(fc.property(fc.string(), (text) => { parseMountinfo(text) }))
  })
})
