// Buffers that wait to be sent: who made one hears of its last byte, once, and not before.
import { describe, expect, test } from '@jest/globals'
import * as fc from 'fast-check'
import { release, spend, whenSpent } from '../../peer/spent-buffers.ts'

describe('spent buffers', () => {
  test('however it is cut and in whatever order its parts go, the last one ends it, and only once', () => {
    fc.assert(fc.property(fc.integer({ min: 1, max: 500 }), fc.array(fc.nat(500)), fc.boolean(), (length, cuts, together) => {
      const buffer = Buffer.alloc(length)
      const edges = [...new Set([0, ...cuts.filter(cut => cut < length), length])].sort((a, b) => a - b)
      const parts = edges.slice(1).map((end, index) => buffer.subarray(edges[index], end)).toReversed()
      let done = 0
      whenSpent(buffer, spent => {
        expect(spent).toBe(buffer.buffer)
        done++
      })
      if (together) spend(parts)
      else {
        for (const part of parts.slice(1)) spend(part)
        expect(done).toBe(0)
        spend(parts[0])
      }
      expect(done).toBe(1)
      spend(buffer)
      expect(done).toBe(1)
    }))
  })

  test('one that is used again is counted anew', () => {
    const buffer = Buffer.alloc(10)
    let done = 0
    for (let use = 1; use <= 3; use++) {
      whenSpent(buffer.subarray(0, 4), () => { done++ })
      spend(buffer.subarray(0, 3))
      expect(done).toBe(use - 1)
      spend(buffer.subarray(3, 4))
      expect(done).toBe(use)
    }
  })

  test('what is let go of holds no memory any more', () => {
    const buffer = Buffer.allocUnsafeSlow(1000)
    whenSpent(buffer, release)
    spend(buffer)
    expect([buffer.length, buffer.buffer.byteLength]).toEqual([0, 0])
  })
})
