import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import * as fc from 'fast-check'
import { composeImage } from '../../image/composer.ts'
import { crc32c } from '../../image/crc32c.ts'
import { writeErofs } from '../../image/erofs-writer.ts'
import type { DataExtent, ImageTree, TreeInode } from '../../image/tree.ts'
import { readErofs } from './erofs-reader.ts'
import { buildTar, indexTar } from './tar-builder.ts'

const EMPTY: TreeInode = { type: 'file', mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanos: 0, nlink: 1, size: 0, layer: -1, extents: [], link: '', major: 0, minor: 0, xattrs: [] }
const LAYER = { diffId: `sha256:${'5a'.repeat(32)}`, rawLength: 2 ** 40 }

/** A tree of one directory with these inodes in it; the names make no difference. */
function flatTree(inodes: readonly Partial<TreeInode>[], names = inodes.map((_, index) => `f${String(index).padStart(7, '0')}`)): ImageTree {
  const entries = names.map((name, index) => [name, index + 1] as const).sort((a, b) => (a[0] < b[0] ? -1 : 1))
  const root: TreeInode = { ...EMPTY, type: 'dir', mode: 0o755, nlink: 2, entries, parent: 0 }
  const children = inodes.map((inode) => ({ ...EMPTY, ...inode, ...(inode.type === 'dir' ? { entries: inode.entries ?? [], parent: 0 } : {}) }))
  return { layers: [LAYER, { ...LAYER, rawLength: 1000 }], inodes: [root, ...children] }
}

/** A file's data as the reader reports it. */
function mergeRuns({ extents, layer }: TreeInode) {
  const runs: { fileOffset: number; device: number; deviceOffset: number; length: number }[] = []
  for (const { fileOffset, streamOffset, length } of extents) {
    const last = runs.at(-1)
    if (last && last.fileOffset + last.length === fileOffset && last.deviceOffset + last.length === streamOffset) last.length += length
    else runs.push({ fileOffset, device: layer + 1, deviceOffset: streamOffset, length })
  }
  return runs
}

describe('an EROFS image', () => {
  let directory: string
  beforeAll(() => {
    directory = mkdtempSync(join(tmpdir(), 'skimmer-erofs-writer-'))
  })
  afterAll(() => rmSync(directory, { recursive: true, force: true }))

  function write(tree: ImageTree) {
    const path = join(directory, 'image')
    const written = writeErofs(tree, { path })
    const image = readFileSync(path)
    expect(image.length).toBe(written.length)
    return { written, image, read: readErofs(image) }
  }

  /** Writes the tree, reads it back and compares inode by inode. */
  function expectSame(tree: ImageTree) {
    const { read } = write(tree)
    expect(read.inodes).toBe(tree.inodes.length)
    const nids = new Map<number, number>()
    const todo: [nid: number, position: number, parent: number][] = [[read.root, 0, read.root]]
    for (let next = todo.pop(); next; next = todo.pop()) {
      const [nid, position, parent] = next
      if (nids.has(position)) {
        expect(nid).toBe(nids.get(position))
        continue
      }
      nids.set(position, nid)
      const expected = tree.inodes[position]
      const { entries, size, xattrs, data, nid: _, ...facts } = read.inode(nid)
      const { type, mode, uid, gid, mtimeSeconds, mtimeNanos, nlink, link, major, minor } = expected
      expect(facts).toEqual({ type, mode, uid, gid, mtimeSeconds, mtimeNanos, nlink, link, major, minor })
      expect(xattrs).toEqual(expected.xattrs.map(([name, value]) => [name, Buffer.from(value).toString('hex')]))
      if (type !== 'dir') {
        expect(size).toBe(expected.size)
        expect(data).toEqual(mergeRuns(expected))
        continue
      }
      const names = [...expected.entries!.map(([name]) => name), '.', '..'].sort()
      expect(entries!.map(([name]) => name)).toEqual(names)
      const byName = new Map(entries)
      expect([byName.get('.'), byName.get('..')]).toEqual([nid, parent])
      for (const [name, child] of expected.entries!) todo.push([byName.get(name)!, child, nid])
    }
  }

  const bytes = fc.uint8Array({ maxLength: 300 })
  const xattrs = fc.uniqueArray(fc.tuple(fc.constantFrom('user.a', 'user.b', 'security.capability', 'security.x', 'trusted.t', 'system.posix_acl_access', 'system.posix_acl_default', `user.${'n'.repeat(250)}`), fc.oneof(bytes, fc.constant(new Uint8Array(40)))), { selector: ([name]) => name, maxLength: 4 })
  const ids = fc.oneof(fc.constantFrom(0, 65535, 65536), fc.nat(0xffffffff))
  const facts = {
    mode: fc.nat(0o7777),
    uid: ids,
    gid: ids,
    mtimeSeconds: fc.oneof(fc.constantFrom(0, 1_700_000_000), fc.integer({ min: -(2 ** 40), max: 2 ** 40 })),
    mtimeNanos: fc.oneof(fc.constant(0), fc.nat(999_999_999)),
    nlink: fc.oneof(fc.constant(1), fc.integer({ min: 1, max: 0xffffffff })),
    xattrs: xattrs.map((pairs) => pairs.sort((a, b) => (a[0] < b[0] ? -1 : 1))),
  }
  const pieces = fc.array(fc.record({ hole: fc.nat(9), blocks: fc.integer({ min: 1, max: 40 }), at: fc.nat(2 ** 30) }), { maxLength: 5 })
  const sparse = fc.tuple(pieces, fc.nat(511), fc.nat(3000), fc.boolean()).map(([pieces, cut, more, whole]) => {
    const extents: DataExtent[] = []
    let end = 0
    for (const { hole, blocks, at } of pieces) {
      extents.push({ fileOffset: end + hole * 512, streamOffset: at * 512, length: blocks * 512 })
      end += (hole + blocks) * 512
    }
    const last = extents.at(-1)
    if (whole && last) extents[extents.length - 1] = { ...last, length: last.length - cut }
    return { type: 'file' as const, layer: extents.length > 0 ? 0 : -1, extents, size: whole && last ? end - cut : end + more }
  })
  const whole = fc.tuple(fc.oneof(fc.nat(5000), fc.integer({ min: 1, max: 2 ** 40 })), fc.nat(2 ** 30)).map(([size, at]) => ({ type: 'file' as const, size, layer: size > 0 ? 0 : -1, extents: size > 0 ? [{ fileOffset: 0, streamOffset: at * 512, length: size }] : [] }))
  const inode = fc.tuple(
    fc.record(facts),
    fc.oneof(
      whole,
      sparse,
      fc.record({ type: fc.constant('dir' as const) }),
      fc.tuple(fc.integer({ min: 1, max: 1500 }), fc.constantFrom('a', '\xff', '/')).map(([size, char]) => ({ type: 'symlink' as const, size, link: char.repeat(size), mode: 0o777 })),
      fc.record({ type: fc.constantFrom('char' as const, 'block' as const), major: fc.nat(0xfff), minor: fc.nat(0xfffff) }),
      fc.record({ type: fc.constant('fifo' as const) }),
    ),
  ).map(([facts, kind]) => ({ ...facts, ...kind }))
  const names = fc.uniqueArray(
    fc.uint8Array({ minLength: 1, maxLength: 255 }).map((name) => Buffer.from(name).toString('latin1').replaceAll(/[\0/]/g, '!')).filter((name) => name !== '.' && name !== '..'),
    { maxLength: 60 },
  )

  test('says of any tree exactly what the tree says', () => {
    fc.assert(
      fc.property(names, fc.array(inode, { minLength: 60, maxLength: 60 }), (names, inodes) => expectSame(flatTree(inodes.slice(0, names.length), names))),
      { numRuns: 60 },
    )
  })

  test('keeps numbers at the edges of its compact and extended inodes', () => {
    expectSame(flatTree([{ nlink: 65535 }, { nlink: 65536 }, { uid: 65535 }, { gid: 65536 }, { mtimeSeconds: -1, mtimeNanos: 999_999_999 }, { size: 2 ** 32 - 1, layer: 0, extents: [{ fileOffset: 0, streamOffset: 512, length: 2 ** 32 - 1 }] }, { size: 2 ** 32, layer: 1, extents: [{ fileOffset: 0, streamOffset: 512, length: 2 ** 32 }] }, { size: 1.5 * 2 ** 40, layer: 0, extents: [{ fileOffset: 0, streamOffset: 0, length: 1.5 * 2 ** 40 }] }]))
  })

  test('holds directories below directories, and files with several names', () => {
    const layers = [buildTar([{ name: 'a/b/c/d/file', data: 'x' }, { name: 'a/link', type: 'hardlink', link: 'a/b/c/d/file' }, ...Array.from({ length: 300 }, (_, i) => ({ name: `a/b/${'n'.repeat(i % 200)}${i}` }))])]
    expectSame(composeImage(layers.map(indexTar)))
  })

  test('holds an image without layers', () => expectSame(composeImage([])))

  test('keeps its root within reach of the superblock however large it is, and in few bytes', () => {
    const { read, image } = write(flatTree(Array.from({ length: 100_000 }, () => ({}))))
    expect(read.inode(read.root).entries).toHaveLength(100_002)
    expect(image.length).toBeLessThan(100_000 * 60)
  })

  test('places layers behind itself, at whole pages, and names them', () => {
    const { written, read } = write(flatTree([]))
    expect(written.layers).toEqual([
      { ...LAYER, uniaddr: written.length },
      { ...LAYER, rawLength: 1000, uniaddr: written.length + LAYER.rawLength },
    ])
    expect(read.devices).toEqual(written.layers.map(({ rawLength, uniaddr }) => ({ tag: '5a'.repeat(32), blocks: Math.ceil(rawLength / 512), uniaddr })))
  })

  test('is the same for the same tree, and has another uuid for another', () => {
    const tree = flatTree([{ xattrs: [['user.a', Buffer.from('1')]] }, { uid: 5 }])
    const [first, second, other] = [write(tree), write(tree), write(flatTree([{ uid: 6 }]))]
    expect(first.image.equals(second.image)).toBe(true)
    expect(first.read.uuid).not.toBe(other.read.uuid)
  })

  test('shares attributes that many files have', () => {
    const value = Buffer.alloc(200, 'v')
    const [same, different] = [value, undefined].map((shared) => {
      const files = Array.from({ length: 200 }, (_, i) => ({ xattrs: [['user.a', shared ?? Buffer.concat([value, Buffer.from([i])])] as const] }))
      return write(flatTree(files)).image.length
    })
    expect(same).toBeLessThan(different / 2)
  })

  test.each<[string, Partial<TreeInode>]>([
    ['an attribute of a namespace that EROFS does not know', { xattrs: [['system.other', Buffer.from('1')]] }],
    ['an attribute that is too long', { xattrs: [['user.a', Buffer.alloc(65536)]] }],
    ['more attributes than an inode can have', { xattrs: Array.from({ length: 10 }, (_, i) => [`user.${i}`, Buffer.alloc(60000, i)] as const) }],
    ['a sparse file of too many pieces', { size: 2 ** 40, layer: 0, extents: [{ fileOffset: 512, streamOffset: 0, length: 512 }] }],
    ['data beyond what 32 bits of blocks reach', { size: 512, layer: 0, extents: [{ fileOffset: 0, streamOffset: 2 ** 41, length: 512 }] }],
  ])('refuses %s, and leaves nothing behind', (_, inode) => {
    const path = join(directory, 'refused')
    expect(() => writeErofs(flatTree([inode]), { path })).toThrow(expect.objectContaining({ code: 'UNSUPPORTED' }))
    expect(readdirSync(directory).filter((name) => name.startsWith('refused'))).toEqual([])
  })

  test('refuses layers that do not fit on one disk', () => {
    const tree = { ...flatTree([]), layers: [{ ...LAYER, rawLength: 2 ** 41 }] }
    expect(() => writeErofs(tree, { path: join(directory, 'refused') })).toThrow(expect.objectContaining({ code: 'UNSUPPORTED' }))
  })
})

describe('crc32c', () => {
  test('knows the check value of the algorithm', () => {
    expect(~crc32c(0xffffffff, Buffer.from('123456789')) >>> 0).toBe(0xe3069283)
  })
})
