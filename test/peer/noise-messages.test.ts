import { describe, expect, test } from '@jest/globals'
import { randomBytes } from 'node:crypto'
import * as fc from 'fast-check'
import { MessageCutter } from '../../peer/noise-messages.ts'

const framed = (bytes: Uint8Array): Buffer => {
  const length = Buffer.alloc(2)
  length.writeUInt16BE(bytes.length)
  return Buffer.concat([length, bytes])
}

describe('messages cut from what a socket read', () => {
  const length = fc.oneof(fc.integer({ min: 16, max: 300 }), fc.integer({ min: 16, max: 65_535 }), fc.constantFrom(0, 16, 17, 255, 256, 65_534, 65_535))

  test('whatever the reads are, the same messages come, each in one piece, and no read is needed after it', () => {
    fc.assert(fc.property(fc.array(length, { maxLength: 8 }), fc.array(fc.oneof(fc.integer({ min: 1, max: 4 }), fc.integer({ min: 1, max: 100_000 })), { minLength: 1, maxLength: 30 }), (lengths, reads) => {
      const messages = lengths.map(bytes => randomBytes(bytes))
      const all = Buffer.concat(messages.map(framed))
      const seen: string[] = []
      const cutter = new MessageCutter(message => seen.push(Buffer.from(message).toString('base64')))
      for (let at = 0, turn = 0; at < all.length; turn++) {
        const read = Buffer.from(all.subarray(at, at + reads[turn % reads.length]))
        cutter.push(read)
        at += read.length
        read.fill(0xee)
      }
      expect(seen).toEqual(messages.filter(message => message.length > 0).map(message => message.toString('base64')))
    }))
  })

  test('connections that share what waits do not see each other', () => {
    const messages = Array.from({ length: 40 }, (_, index) => Buffer.alloc(1000, index))
    const seen: Buffer[] = []
    const cutters = messages.map((_, index) => new MessageCutter(message => { seen[index] = Buffer.from(message) }))
    for (const [from, to] of [[0, 1], [1, 500], [500, 501], [501, 1002]]) cutters.forEach((cutter, index) => cutter.push(framed(messages[index]).subarray(from, to)))
    expect(seen).toEqual(messages)
  })

  test('a message without room for its tag is refused', () => {
    fc.assert(fc.property(fc.integer({ min: 1, max: 15 }), fc.integer({ min: 1, max: 17 }), (bytes, cut) => {
      const cutter = new MessageCutter(() => { throw new Error('it came') })
      const all = framed(randomBytes(bytes))
      expect(() => {
        cutter.push(all.subarray(0, cut))
        cutter.push(all.subarray(cut))
      }).toThrow(/too short to be encrypted/)
    }))
  })
})
