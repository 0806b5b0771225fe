// The connection between peers as it is bent for bulk: what is sent arrives, buffers are used again only when nobody needs them, and few words are lost on windows.
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { createHash, randomBytes } from 'node:crypto'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import type { Connection, Libp2p, Stream } from '@libp2p/interface'
import { tcp } from '@libp2p/tcp'
import * as fc from 'fast-check'
import { createLibp2p } from 'libp2p'
import { createHost } from '../../peer/host.ts'
import { borrowBuffer, giveBack } from '../../peer/lent-buffers.ts'
import { sendAll } from '../../peer/frames.ts'
import { readAll } from '../../peer/short-cuts.ts'
import { spendBytes, whenSpent } from '../../peer/spent-buffers.ts'
import { until } from './lab.ts'

const PROTOCOL = '/test/bulk/1'
const MESSAGE = 65_535

interface Inside { streamId: number; recvWindow: number; sendFrame: (header: { type: number; flag?: number; streamID?: number; length?: number }, data?: unknown) => boolean }

describe('a connection', () => {
  let hosts: Libp2p[]
  let connection: Connection
  let streams: Stream[]
  beforeEach(async () => {
    streams = []
    hosts = await Promise.all([1, 2].map(() => createHost({ listen: ['/ip4/127.0.0.1/tcp/0'] })))
    await hosts[1].handle(PROTOCOL, (stream) => { streams.push(stream) })
    connection = await hosts[0].dial(hosts[1].getMultiaddrs())
  })
  afterEach(async () => { await Promise.all(hosts.map(host => host.stop())) })

  async function pair(): Promise<{ from: Stream; to: Stream }> {
    const from = await connection.newStream(PROTOCOL)
    await until('the other side has it', () => streams.length > 0)
    return { from, to: streams.shift()! }
  }

  function collect(stream: Stream): { hash: () => string; bytes: number; largest: number } {
    const hash = createHash('sha256')
    const seen = { hash: () => hash.copy().digest('hex'), bytes: 0, largest: 0 }
    stream.addEventListener('message', ({ data }) => {
      for (const chunk of data instanceof Uint8Array ? [data] : data) hash.update(chunk)
      seen.bytes += data.byteLength
      seen.largest = Math.max(seen.largest, data.byteLength)
    })
    return seen
  }

  function hashed(stream: Stream): { hash: () => string; bytes: number; sent: number } {
    const hash = createHash('sha256')
    const seen = { hash: () => hash.copy().digest('hex'), bytes: 0, sent: 0 }
    readAll(stream, data => {
      for (const chunk of data instanceof Uint8Array ? [data] : data) hash.update(chunk)
      seen.bytes += data.byteLength
    })
    return seen
  }

  test('whatever is sent arrives, both ways at once, around the lengths where messages end', async () => {
    const lengths = fc.oneof(fc.integer({ min: 1, max: 3_000 }), fc.integer({ min: MESSAGE - 60, max: MESSAGE + 60 }), fc.integer({ min: 1_100, max: 1_300 }), fc.integer({ min: 100_000, max: 600_000 }))
    await fc.assert(fc.asyncProperty(fc.array(lengths, { minLength: 1, maxLength: 12 }), fc.array(lengths, { maxLength: 12 }), async (there, back) => {
      const { from, to } = await pair()
      await Promise.all([[from, to, there], [to, from, back]].map(async ([sender, receiver, sizes]) => {
        const seen = collect(receiver as Stream)
        const hash = createHash('sha256')
        let sent = 0
        for (const size of sizes as number[]) {
          const bytes = randomBytes(size)
          hash.update(bytes)
          sent += size
          await sendAll(sender as Stream, bytes)
        }
        await until(`${sent} bytes are there`, () => seen.bytes === sent)
        expect(seen.hash()).toBe(hash.digest('hex'))
      }))
      from.abort(new Error('done'))
    }), { numRuns: 12 })
  })

  test('a peer whose libp2p is as it comes talks to one like ours, both ways', async () => {
    const plain = await createLibp2p({ addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] }, transports: [tcp()], connectionEncrypters: [noise()], streamMuxers: [yamux()] })
    hosts.push(plain)
    const came: Stream[] = []
    await plain.handle(PROTOCOL, (stream) => { came.push(stream) })
    for (const [dialler, answerer, arrived] of [[hosts[0], plain, came], [plain, hosts[1], streams]] as const) {
      const from = await dialler.dialProtocol(answerer.getMultiaddrs(), PROTOCOL)
      await until('the other side has it', () => arrived.length > 0)
      const to = arrived.shift()!
      await Promise.all(([[from, to], [to, from]] as const).map(async ([sender, receiver]) => {
        const seen = hashed(receiver)
        const all = randomBytes(3_000_000)
        for (const end of [1, 70_000, 70_001, 200_000, 3_000_000]) await sendAll(sender, all.subarray(seen.sent, seen.sent = end))
        await until('all is there', () => seen.bytes === all.length)
        expect(seen.hash()).toBe(createHash('sha256').update(all).digest('hex'))
      }))
    }
  })

  test('a lent buffer that was sent is given back, and used again, without a byte of the others changing', async () => {
    const both = await Promise.all([pair(), pair()])
    const used = new Set<ArrayBufferLike>()
    let back = 0
    const total = 60
    await Promise.all(both.map(async ({ from, to }) => {
      const seen = collect(to)
      const hash = createHash('sha256')
      for (let turn = 0; turn < total; turn++) {
        const buffer = borrowBuffer(300_000)
        used.add(buffer.buffer)
        randomBytes(300_000).copy(buffer)
        hash.update(buffer)
        whenSpent(buffer, () => {
          back++
          giveBack(buffer)
        })
        await sendAll(from, buffer)
      }
      await until('all is there', () => seen.bytes === total * 300_000)
      expect(seen.hash()).toBe(hash.digest('hex'))
    }))
    expect(back).toBe(2 * total)
    expect(used.size).toBeLessThan(total)
  })

  test('a frame is one message, and a reader that keeps up says little about its window', async () => {
    const { from, to } = await pair()
    const seen = collect(to)
    const inside = to as unknown as Inside
    const words: number[] = []
    const send = inside.sendFrame
    inside.sendFrame = (header, data) => {
      words.push(header.type)
      return send(header, data)
    }
    const bytes = 16 * 1024 * 1024
    for (let at = 0; at < bytes; at += 1024 * 1024) await sendAll(from, randomBytes(1024 * 1024))
    await until('all is there', () => seen.bytes === bytes)
    expect(seen.largest).toBe(MESSAGE - 16 - 12)
    expect(inside.recvWindow).toBeGreaterThanOrEqual(1024 * 1024)
    expect(words.length).toBeGreaterThan(2)
    expect(words.length).toBeLessThan(50) // of 256 frames
  })

  test('a reader that pauses is sent no more than its window, and gets the rest when it goes on', async () => {
    const { from, to } = await pair()
    to.pause()
    const all = randomBytes(2 * 1024 * 1024)
    from.send(all)
    await until('the window is full', () => to.readBufferLength === 256 * 1024)
    await new Promise(resolve => { setTimeout(resolve, 100) })
    expect(to.readBufferLength).toBe(256 * 1024)
    const seen = collect(to)
    to.resume()
    await until('the rest is there', () => seen.bytes === all.length)
    expect(seen.hash()).toBe(createHash('sha256').update(all).digest('hex'))
  })

  test('a reader of all gets it in order, by whichever way it comes: while it pauses, goes on, and hears what waited', async () => {
    const { from, to } = await pair()
    const all = randomBytes(3 * 1024 * 1024)
    from.send(all.subarray(0, 100_000)) // before anybody reads
    await until('it waits', () => to.readBufferLength === 100_000)
    const seen = hashed(to)
    const pausing = setInterval(() => {
      if (to.status !== 'open') return
      to.pause()
      setTimeout(() => to.resume(), 3)
    }, 6)
    for (let at = 100_000; at < all.length; at += 50_001) await sendAll(from, all.subarray(at, at + 50_001))
    await until('all is there', () => seen.bytes === all.length)
    clearInterval(pausing)
    expect(seen.hash()).toBe(createHash('sha256').update(all).digest('hex'))
  })

  test('what a reader of all has taken is gone at once: socket reads, messages, frames', async () => {
    const { from, to } = await pair()
    const spent: Uint8Array[] = []
    let bytes = 0
    readAll(to, data => {
      for (const chunk of data instanceof Uint8Array ? [data] : data) {
        if (chunk.length > 60_000) spent.push(chunk)
        bytes += chunk.length
        spendBytes(chunk, chunk.length)
      }
    })
    const total = 4 * 1024 * 1024
    for (let at = 0; at < total; at += 256 * 1024) await sendAll(from, randomBytes(256 * 1024))
    await until('all is there', () => bytes === total)
    // A message that spans two of the muxer's frames may go the library's way.
    expect(spent.filter(chunk => chunk.length === 0).length).toBeGreaterThan(40)
  })

  test('a frame larger than any window ends the connection before it fills the memory', async () => {
    const { from, to } = await pair()
    const inside = from as unknown as Inside
    let sent = 0
    for (; to.status === 'open' && sent < 64; sent++) {
      if (from.status !== 'open') break
      try {
        inside.sendFrame({ type: 0, flag: 0, streamID: inside.streamId, length: 4_000_000_000 }, randomBytes(1024 * 1024))
      } catch {
        break // it is over
      }
      await new Promise(resolve => { setTimeout(resolve, 5) })
    }
    expect(sent).toBeGreaterThanOrEqual(8)
    expect(sent).toBeLessThan(40)
    await until('it is over', () => to.status !== 'open' && hosts[1].getConnections().length === 0)
  })

  test('a connection that ends while much waits to be sent takes nothing along', async () => {
    const { from, to } = await pair()
    to.pause()
    let back = 0
    for (let turn = 0; turn < 8; turn++) {
      const buffer = borrowBuffer(400_000)
      whenSpent(buffer, () => {
        back++
        giveBack(buffer)
      })
      from.send(buffer)
    }
    await until('the window is full', () => to.readBufferLength === 256 * 1024)
    await hosts[1].stop()
    await until('it is gone', () => from.status !== 'open')
    expect(back).toBeLessThan(8)
    // What was not given back is nobody's to lend.
    const fresh = borrowBuffer(400_000).fill(7)
    expect(fresh.every(byte => byte === 7)).toBe(true)
  })
})
