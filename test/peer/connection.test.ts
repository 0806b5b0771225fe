// The connection between peers as it is bent for bulk: what is sent arrives, buffers are used again only when nobody needs them, and few words are lost on windows.
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { createHash, randomBytes } from 'node:crypto'
import type { Connection, Libp2p, Stream } from '@libp2p/interface'
import * as fc from 'fast-check'
import { createHost } from '../../peer/host.ts'
import { borrowBuffer, giveBack } from '../../peer/lent-buffers.ts'
import { sendAll } from '../../peer/frames.ts'
import { whenSpent } from '../../peer/spent-buffers.ts'
import { until } from './lab.ts'

const PROTOCOL = '/test/bulk/1'
const MESSAGE = 65_535

interface Inside { recvWindow: number; sendFrame: (header: { type: number }, data?: unknown) => boolean }

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
