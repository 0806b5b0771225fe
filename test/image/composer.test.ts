import { describe, expect, test } from '@jest/globals'
import * as fc from 'fast-check'
import { composeImage } from '../../image/composer.ts'
import type { FileEntry, LayerIndex } from '../../image/layer-index.ts'
import type { ImageTree } from '../../image/tree.ts'
import { hasCode } from '../../oci/errors.ts'
import { randomLayers } from '../e2e/random-layers.ts'
import { buildTar, indexTar, type TarEntry } from './tar-builder.ts'

const layers = (...entries: TarEntry[][]): LayerIndex[] => entries.map((layer) => indexTar(buildTar(layer)))

/** Path -> inode of all that is in a tree. */
function paths(tree: ImageTree) {
  const found = new Map<string, ImageTree['inodes'][number]>()
  const todo: [string, number][] = [['', 0]]
  for (let next = todo.pop(); next; next = todo.pop()) {
    const [path, position] = next
    const inode = tree.inodes[position]
    found.set(path, inode)
    for (const [name, child] of inode.entries ?? []) todo.push([path === '' ? name : `${path}/${name}`, child])
  }
  return found
}

/** What every tree must be, whatever it was made from. */
function expectSound(tree: ImageTree) {
  const reached = new Set([0])
  for (const [position, inode] of tree.inodes.entries()) {
    expect(inode.entries !== undefined).toBe(inode.type === 'dir')
    expect(inode.size === 0 || inode.type !== 'file' ? -1 : inode.layer).toBe(inode.layer)
    for (const [i, [name, child]] of (inode.entries ?? []).entries()) {
      if (i > 0) expect(inode.entries![i - 1][0] < name).toBe(true)
      expect(name.startsWith('.wh.')).toBe(false)
      reached.add(child)
      if (tree.inodes[child].type === 'dir') expect(tree.inodes[child].parent).toBe(position)
    }
  }
  expect(reached.size).toBe(tree.inodes.length)
}

describe('composing an image', () => {
  test('shows upper files over lower ones and hides what is deleted', () => {
    const tree = composeImage(layers([{ name: 'a/1', data: 'x' }, { name: 'a/2', data: 'y' }, { name: 'b' }], [{ name: 'a/.wh.1' }, { name: 'a/2', data: 'longer' }, { name: 'c' }]))
    const found = paths(tree)
    expect([...found.keys()].sort()).toEqual(['', 'a', 'a/2', 'b', 'c'])
    expect(found.get('a/2')).toMatchObject({ size: 6, layer: 1 })
  })

  test('points into the stream of the layer that has the data', () => {
    const tar = buildTar([{ name: 'dir/file', data: 'the data' }])
    const file = paths(composeImage([indexTar(tar)])).get('dir/file')!
    const [{ streamOffset, length }] = file.extents
    expect(tar.toString('latin1', streamOffset, streamOffset + length)).toBe('the data')
  })

  test('is sound and repeatable for random layers, or says that it must be unpacked', () => {
    fc.assert(
      fc.property(randomLayers(4), (entries) => {
        const indexes = layers(...entries)
        let tree: ImageTree
        try {
          tree = composeImage(indexes)
        } catch (error) {
          if (!hasCode(error, 'UNSUPPORTED')) throw error
          return
        }
        expectSound(tree)
        expect(paths(composeImage(indexes))).toEqual(paths(tree))
      }),
      { numRuns: 300 },
    )
  })

  test('takes two hundred thousand files in one directory', () => {
    const [index] = layers([])
    const files = Array.from({ length: 200_000 }, (_, i): FileEntry => ({ path: `d/${i}`, type: 'file', mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanos: 0, size: 0, offset: 0, link: '', major: 0, minor: 0, xattrs: [] }))
    expect(composeImage([{ ...index, files }]).inodes).toHaveLength(200_002)
  })

  test('goes thousands of directories deep', () => {
    const deep = Array.from({ length: 2000 }, () => 'd').join('/')
    const [index] = layers([])
    const entry: FileEntry = { path: deep, type: 'dir', mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanos: 0, size: 0, offset: 0, link: '', major: 0, minor: 0, xattrs: [] }
    expect(composeImage([{ ...index, files: [entry] }, index, { ...index, files: [{ ...entry, path: `${deep}/e` }] }]).inodes).toHaveLength(2002)
  })

  test('gives up on links that lead on and on', () => {
    const far: TarEntry = { name: 'l', type: 'symlink', link: 'x/'.repeat(2000) }
    expect(() => composeImage(layers([far, { name: 'l/y' }]))).toThrow(expect.objectContaining({ code: 'UNSUPPORTED' }))
  })

  const file: FileEntry = { path: 'f', type: 'file', mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanos: 0, size: 100, offset: 512, link: '', major: 0, minor: 0, xattrs: [] }
  test.each<[string, string, Partial<FileEntry>]>([
    ['data past the end of the layer', 'INVALID_DATA', { offset: 1 << 20 }],
    ['data before its start', 'INVALID_DATA', { offset: -512 }],
    ['overlapping extents', 'INVALID_DATA', { size: 2048, extents: [{ fileOffset: 0, offset: 0, length: 1024 }, { fileOffset: 512, offset: 0, length: 512 }] }],
    ['an extent past the end of the file', 'INVALID_DATA', { extents: [{ fileOffset: 0, offset: 0, length: 512 }] }],
    ['an extent that starts inside a block', 'UNSUPPORTED', { size: 1024, extents: [{ fileOffset: 100, offset: 0, length: 512 }] }],
    ['an extent that ends inside a block', 'UNSUPPORTED', { size: 1024, extents: [{ fileOffset: 0, offset: 0, length: 100 }] }],
    ['data that starts inside a block', 'UNSUPPORTED', { offset: 100 }],
    ['a name of 256 bytes', 'UNSUPPORTED', { path: 'n'.repeat(256) }],
    ['a path of 5000 bytes', 'UNSUPPORTED', { path: 'n/'.repeat(2500).concat('f') }],
    ['a name with a zero byte', 'UNSUPPORTED', { path: 'a\0b' }],
    ['a symlink to nowhere at all', 'UNSUPPORTED', { type: 'symlink', link: '' }],
    ['a device number out of range', 'UNSUPPORTED', { type: 'char', major: 4096 }],
  ])('refuses %s', (_, code, change) => {
    const [index] = layers([{ name: 'x', data: 'y'.repeat(1000) }])
    expect(() => composeImage([{ ...index, files: [{ ...file, ...change }] }])).toThrow(expect.objectContaining({ code }))
  })
})
