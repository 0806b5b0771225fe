// Malformed, oversized and made-up messages: the stream ends, the sender is banned, nothing is stored, the process lives.
import { afterAll, beforeAll, beforeEach, describe, expect, test } from '@jest/globals'
import type { Libp2p, Stream } from '@libp2p/interface'
import { multiaddr } from '@multiformats/multiaddr'
import * as fc from 'fast-check'
import { CONTROL_MAX_FRAME, CONTROL_PROTOCOL } from '../../peer/control.ts'
import {
  EXCHANGE_PROTOCOL, FRAME_BLOCK, FRAME_DONE, FRAME_HAVE, FRAME_INTEREST, FRAME_REQUEST, HAVE_BITMAP, HAVE_MORE, HAVE_WHOLE, MAX_RANGES,
  frame, haveBody, packBitmap, readFrame, readHave, readRequest, requestBody, toRanges,
} from '../../peer/exchange-wire.ts'
import { FrameCutter, jsonFrame } from '../../peer/frames.ts'
import { createHost } from '../../peer/host.ts'
import type { Resource } from '../../peer/resource.ts'
import { Lab, makeContent, put, until } from './lab.ts'
import type { Content, Node, TestSupernode } from './lab.ts'

describe('frames', () => {
  test('come out as they went in, however the stream is cut', () => {
    fc.assert(fc.property(fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 20 }), fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 1, maxLength: 30 }), (bodies, cuts) => {
      const stream = Buffer.concat(bodies.map(body => { const head = Buffer.alloc(4); head.writeUInt32BE(body.length); return Buffer.concat([head, body]) }))
      const out: Buffer[] = []
      const cutter = new FrameCutter(300, body => { out.push(Buffer.from(body)) })
      for (let at = 0, index = 0; at < stream.length; index++) {
        const cut = cuts[index % cuts.length]
        cutter.push(stream.subarray(at, at + cut))
        at += cut
      }
      expect(out.map(String)).toEqual(bodies.map(body => String(Buffer.from(body))))
      expect(cutter.pending).toBe(0)
    }))
  })

  test('longer than allowed are refused before a byte of them is kept', () => {
    const cutter = new FrameCutter(1000, () => { throw new Error('no frame was sent') })
    expect(() => cutter.push(Buffer.from([0xff, 0xff, 0xff, 0xff]))).toThrow(expect.objectContaining({ code: 'LIMIT_EXCEEDED' }))
  })

  test('a request says the same on both ends; random bytes are refused or are a sane request', () => {
    const blocks = fc.uniqueArray(fc.integer({ min: 0, max: 100_000 }), { minLength: 1, maxLength: 500 }).map(list => list.sort((a, b) => a - b))
    fc.assert(fc.property(blocks, fc.integer({ min: 0, max: 1 }), (list, priority) => {
      const read = readRequest(requestBody('layer:sha256:x', toRanges(list), priority))
      expect(read.ranges.flatMap(({ from, to }) => Array.from({ length: to - from }, (_, index) => from + index))).toEqual(list)
      expect(read).toMatchObject({ resource: 'layer:sha256:x', priority })
    }))
    fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), bytes => {
      let read: ReturnType<typeof readRequest> | undefined
      try {
        read = readRequest(Buffer.from(bytes))
      } catch (error) {
        expect(error).toMatchObject({ code: 'INVALID_DATA' })
        return
      }
      expect(read.ranges.length).toBeLessThanOrEqual(MAX_RANGES)
      let last = 0
      for (const { from, to } of read.ranges) {
        expect(from).toBeGreaterThanOrEqual(last)
        expect(to).toBeGreaterThan(from)
        last = to
      }
    }))
    fc.assert(fc.property(fc.uint8Array({ maxLength: 60 }), bytes => {
      try {
        const { kind, payload } = readHave(Buffer.from(bytes))
        expect(kind === HAVE_MORE ? payload.length % 4 : 0).toBe(0)
      } catch (error) {
        expect(error).toMatchObject({ code: 'INVALID_DATA' })
      }
    }))
  })

  test('a bitmap has a bit for each block that is here', () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 100, max: 3 }), state => {
      const bitmap = packBitmap(state)
      expect([...state].map(value => value !== 0)).toEqual(Array.from(state, (_, block) => (bitmap[block >>> 3] & (1 << (block & 7))) !== 0))
    }))
    expect(() => readFrame(Buffer.from([1, 2]))).toThrow(expect.objectContaining({ code: 'INVALID_DATA' }))
  })
})

describe('a hostile remote', () => {
  const lab = new Lab()
  const content: Content = makeContent(16, 5_000)
  let supernode: TestSupernode
  let seed: Node
  let enemy: Libp2p
  beforeAll(async () => {
    supernode = await lab.supernode()
    seed = await lab.node('seed', { supernodes: [supernode.address], pool: { banMs: 1 } })
    await put(seed, content)
    await until('greeted', () => supernode.admitted.has(seed.peer.id))
  })
  beforeEach(async () => {
    enemy = await createHost({ listen: ['/ip4/127.0.0.1/tcp/0'] })
    lab.onStop(async () => { await enemy.stop() })
  })
  afterAll(() => lab.stop())

  const open = async (protocol: string, node: Node): Promise<Stream> => await enemy.dialProtocol(node.peer.addresses.map(address => multiaddr(address)), protocol)
  const ask = async (bytes: Uint8Array): Promise<string> => {
    const stream = await open(CONTROL_PROTOCOL, supernode.node)
    return await new Promise<string>(resolve => {
      const cutter = new FrameCutter(CONTROL_MAX_FRAME, body => resolve(String(body)))
      stream.addEventListener('message', event => cutter.push(event.data))
      stream.addEventListener('close', () => resolve('closed'))
      stream.send(bytes)
    })
  }
  const seedServes = async (): Promise<void> => {
    const node = await lab.node('reader')
    node.peer.grants.book.add(supernode.grant(node.peer.id, [content.id]))
    node.peer.pool.learn(seed.peer.id, seed.peer.addresses)
    const resource = await node.store.add(content.id, content.table)
    const opened = node.peer.fetcher.open(resource)
    await node.peer.pool.connect(seed.peer.id)
    await node.peer.fetcher.ensure(resource, [{ from: 0, to: 16 }], { priority: 'demand' })
    opened()
    expect(resource.whole).toBe(true)
    await node.stop()
  }

  test('that asks in nonsense is cut off, and the others are served', async () => {
    await fc.assert(fc.asyncProperty(fc.uint8Array({ minLength: 1, maxLength: 400 }), fc.boolean(), async (bytes, framed) => {
      let stream: Stream
      try {
        stream = await open(EXCHANGE_PROTOCOL, seed)
        stream.send(framed ? frame(bytes[0], 7, bytes.subarray(1)) : bytes)
        stream.abort(new Error('done'))
      } catch {
        // It hung up on us already: as it should.
      }
    }), { numRuns: 60 })
    await seedServes()
  })

  test.each([
    ['a frame of four gigabytes', Buffer.from([0xff, 0xff, 0xff, 0xff])],
    ['an unknown frame type', frame(99, 1)],
    ['ranges out of order', frame(FRAME_REQUEST, 1, requestBody(content.id, [{ from: 5, to: 6 }, { from: 1, to: 2 }], 0))],
    ['the same request twice', Buffer.concat([1, 1].map(number => frame(FRAME_REQUEST, number, requestBody(content.id, [{ from: 0, to: 16 }], 1))))],
    ['a flood of interests', Buffer.concat(Array.from({ length: 8300 }, (_, index) => frame(FRAME_INTEREST, 0, Buffer.from(`\u0001layer:${index}`, 'latin1'))))],
  ])('that sends %s loses its stream', async (what, bytes) => {
    const id = enemy.peerId.toString()
    const stream = await open(EXCHANGE_PROTOCOL, seed)
    const closed = new Promise<string>(resolve => { stream.addEventListener('close', () => resolve('closed')) })
    if (what !== 'an unknown frame type') seed.peer.exchange.options.admit = remote => remote === id
    stream.send(bytes)
    expect(await closed).toBe('closed')
    seed.peer.exchange.options.admit = undefined
    await seedServes()
  })

  const lies: [string, (resource: string) => Buffer][] = [
    ['a block that was not asked for', () => frame(FRAME_BLOCK, 1, Buffer.concat([Buffer.from([0, 0, 0, 9]), content.blocks[9]]))],
    ['a block of the wrong length', () => frame(FRAME_BLOCK, 1, Buffer.concat([Buffer.from([0, 0, 0, 1]), Buffer.alloc(10)]))],
    ['an end before the blocks', () => frame(FRAME_DONE, 1)],
    ['a block beyond the last', resource => frame(FRAME_HAVE, 0, haveBody(resource, HAVE_MORE, Buffer.from([0, 0, 1, 0])))],
    ['a bitmap of another length', resource => frame(FRAME_HAVE, 0, haveBody(resource, HAVE_BITMAP, Buffer.alloc(100)))],
    ['a frame of a gigabyte', () => Buffer.from([0x40, 0, 0, 0])],
    ['what nobody asked for, without end', () => Buffer.concat(Array.from({ length: 300 }, () => frame(FRAME_BLOCK, 77, Buffer.alloc(5_000))))],
    ['random bytes', () => Buffer.from([0, 0, 0, 40, ...Array.from({ length: 300 }, (_, index) => (index * 7919) & 0xff)])],
  ]
  test.each(lies)('that serves %s is banned, and the reader gets the block elsewhere', async (_, lie) => {
    await enemy.handle(EXCHANGE_PROTOCOL, stream => {
      let said = false
      stream.addEventListener('message', event => {
        const bytes = Buffer.from(event.data.subarray())
        if (bytes.includes(content.id) && !said) {
          said = true
          stream.send(frame(FRAME_HAVE, 0, haveBody(content.id, HAVE_WHOLE)))
        }
        if (bytes.subarray(-8).equals(Buffer.from([0, 0, 0, 1, 0, 0, 0, 2]))) stream.send(lie(content.id))
      })
    })
    const node = await lab.node('reader', { fetch: { demandTimeout: 10_000 } })
    const id = enemy.peerId.toString()
    node.peer.grants.book.add(supernode.grant(node.peer.id, [content.id]))
    const resource: Resource = await node.store.add(content.id, content.table)
    node.peer.fetcher.open(resource)
    node.peer.pool.learn(id, enemy.getMultiaddrs().map(String))
    await node.peer.pool.connect(id)
    await until('it boasts', () => node.peer.pool.get(id)?.holdings(content.id)?.whole === true)
    const wait = node.peer.fetcher.ensure(resource, [{ from: 1, to: 2 }], { priority: 'demand' })
    await until('it is banned', () => node.peer.pool.isBanned(id))
    expect(resource.storedBlocks).toBe(0)
    node.peer.pool.learn(seed.peer.id, seed.peer.addresses)
    await node.peer.pool.connect(seed.peer.id)
    await wait
    expect((await resource.readPacked(1)).equals(content.blocks[1])).toBe(true)
    await node.stop()
  })

  test('that talks nonsense to the control protocol is cut off or told what is wrong', async () => {
    expect(await ask(Buffer.from([0xff, 0xff, 0xff, 0xff]))).toBe('closed')
    expect(await ask(jsonFrame({ op: 'constructor' }, 1000))).toContain('INVALID_ARGUMENT')
    expect(await ask(jsonFrame(null, 1000))).toContain('INVALID_ARGUMENT')
    expect(await ask(Buffer.from([0, 0, 0, 2, 0x7b, 0x7b]))).toContain('INVALID_DATA')
    expect(await ask(jsonFrame({ op: 'parents', resource: '../../etc/passwd', count: 3 }, 1000))).toContain('resource')
    expect(await ask(jsonFrame({ op: 'parents', resource: content.id, count: 1e9 }, 1000))).toContain('count')
  })
})
