// Blocks follow files: the same cuts whatever the pieces, and the same blocks for the same large file anywhere.
import { describe, expect, test } from '@jest/globals'
import * as fc from 'fast-check'
import { createHash } from 'node:crypto'
import { BlockCutter, LARGE_FILE_LENGTH, LONGEST_BLOCK } from '../../image/block-cutter.ts'
import { TarReader } from '../../image/tar-reader.ts'
import { header, meta, octal, pad } from './odd-tar.ts'
import { buildTar } from './tar-builder.ts'

function cut(tar: Uint8Array, pieces: readonly number[] = [100_000]): Buffer[] {
  const blocks: Buffer[] = []
  let end = 0
  const cutter = new BlockCutter((length) => blocks.push(Buffer.from(tar.subarray(end, (end += length)))))
  const reader = new TarReader((_entry, offset, length) => cutter.entry(offset, length))
  for (let at = 0, i = 0; at < tar.length; i++) {
    const piece = tar.subarray(at, at + pieces[i % pieces.length])
    reader.push(piece)
    cutter.push(piece.length)
    at += piece.length
  }
  reader.end()
  cutter.end()
  return blocks
}
const lengths = (blocks: Buffer[]): number[] => blocks.map((block) => block.length)
const large = (length: number): Buffer => Buffer.from(createHash('sha512').update(String(length)).digest('hex').repeat(Math.ceil(length / 128))).subarray(0, length)

/** Of the blocks of one large file, without its header and the end of the archive. */
const inside = (length: number) => lengths(cut(buildTar([{ name: 'a', data: large(length) }]))).slice(1, -1)

describe('cutting', () => {
  test('a large file starts a block and ends one, its header is with what is before', () => {
    expect(lengths(cut(buildTar([{ name: 'a', data: 'x' }, { name: 'b', data: large(LARGE_FILE_LENGTH) }, { name: 'c', data: 'y' }])))).toEqual([3 * 512, LARGE_FILE_LENGTH, 2 * 512 + 1024])
  })
  test('a large file is cut every 256 KiB, the last two pieces being halves when the rest is small', () => {
    expect(inside(3 * LONGEST_BLOCK)).toEqual([LONGEST_BLOCK, LONGEST_BLOCK, LONGEST_BLOCK])
    expect(inside(2 * LONGEST_BLOCK + 1)).toEqual([LONGEST_BLOCK, 131_584, 131_072])
    expect(inside(LONGEST_BLOCK + LARGE_FILE_LENGTH)).toEqual([LONGEST_BLOCK, LARGE_FILE_LENGTH])
  })
  test('the same large file gives the same blocks in two layers', () => {
    const file = { name: 'big', data: large(900_001) }
    const one = new Set(cut(buildTar([file])).map((block) => createHash('sha256').update(block).digest('hex')))
    const two = cut(buildTar([{ name: 'other', data: large(33_333) }, { ...file, name: 'renamed', mode: 0o600 }, { name: 'more', data: large(7000) }])).map((block) => createHash('sha256').update(block).digest('hex'))
    expect(two.filter((hash) => one.has(hash))).toHaveLength(4)
  })
  test('small files are not torn apart', () => {
    const blocks = cut(buildTar(Array.from({ length: 40 }, (_, i) => ({ name: `f${i}`, data: large(60_000 + i) }))))
    expect(Math.max(...lengths(blocks))).toBeLessThanOrEqual(LONGEST_BLOCK)
    expect(blocks.slice(1).every((block) => block.toString('latin1', 257, 262) === 'ustar')).toBe(true)
  })
  test('headers without end are cut all the same', () => {
    const comment = meta('x', `1000012 comment=${'c'.repeat(999_995)}\n`)
    const tar = Buffer.concat([comment, comment, comment, header({ name: 'a', size: octal(3) }), pad('abc'), Buffer.alloc(2_000_000)])
    expect(Math.max(...lengths(cut(tar)))).toBe(LONGEST_BLOCK)
  })
  test('whatever the layer and the pieces: all bytes, in bounds, on 512, and always the same', () => {
    const file = fc.record({ length: fc.oneof(fc.integer({ min: 0, max: 3000 }), fc.integer({ min: 50_000, max: 700_000 })) })
    fc.assert(fc.property(fc.array(file, { maxLength: 12 }), fc.array(fc.integer({ min: 1, max: 400_000 }), { minLength: 1, maxLength: 8 }), (files, pieces) => {
      const tar = buildTar(files.map(({ length }, i) => ({ name: `f${i}`, data: large(length) })))
      const blocks = cut(tar)
      expect(Buffer.concat(blocks).equals(tar)).toBe(true)
      for (const length of lengths(blocks)) expect(length > 0 && length <= LONGEST_BLOCK && length % 512 === 0).toBe(true)
      expect(lengths(cut(tar, [...pieces, 9999]))).toEqual(lengths(blocks))
    }), { numRuns: 40 })
  })
})
