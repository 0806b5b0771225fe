import { describe, expect, test } from '@jest/globals'
import { blockAt, blockPackedLength, buildBlockTable, rawLength } from '../../image/block-table.ts'

describe('the block table', () => {
  const hash = new Uint8Array(32)
  const table = buildBlockTable([
    { rawLength: 10, packedLength: 5, codec: 1, hash },
    { rawLength: 1, packedLength: 1, codec: 0, hash },
    { rawLength: 20, packedLength: 7, codec: 1, hash },
  ])
  test('finds the block that holds an offset', () => {
    expect([0, 9, 10, 11, 30, 31, -1].map((offset) => blockAt(table, offset))).toEqual([0, 0, 1, 2, 2, -1, -1])
  })
  test('knows lengths', () => {
    expect(rawLength(table)).toBe(31)
    expect(blockPackedLength(table, 2)).toBe(7)
  })
})
