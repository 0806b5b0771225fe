import { createHash } from 'node:crypto'
import { closeSync, copyFileSync, ftruncateSync, openSync, readFileSync, readSync, statSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { composeImage } from '../../image/composer.ts'
import { writeErofs } from '../../image/erofs-writer.ts'
import type { ImageTree, TreeInode } from '../../image/tree.ts'
import { buildTar, indexTar } from '../image/tar-builder.ts'
import { ErofsMounts, whyNoErofs } from './erofs-mount.ts'
import { treeDifferences, walkTrees } from './tree-walk.ts'
import { ZOO } from './zoo.ts'

const suite = whyNoErofs === '' ? describe : describe.skip
const FILE: TreeInode = { type: 'file', mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 5, mtimeNanos: 0, nlink: 1, size: 0, layer: -1, extents: [], link: '', major: 0, minor: 0, xattrs: [] }
const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')

/** A tree of a root with these inodes in it, over one layer. */
function treeOf(inodes: Record<string, Partial<TreeInode>>, rawLength: number): ImageTree {
  const names = Object.keys(inodes).sort()
  const root: TreeInode = { ...FILE, type: 'dir', mode: 0o755, nlink: 2, parent: 0, entries: names.map((name, index) => [name, index + 1]) }
  return { layers: [{ diffId: `sha256:${'0'.repeat(64)}`, rawLength }], inodes: [root, ...names.map((name) => ({ ...FILE, ...inodes[name] }))] }
}

suite(`a mounted EROFS image${whyNoErofs === '' ? '' : ` (skipped: ${whyNoErofs})`}`, () => {
  let mounts: ErofsMounts
  beforeEach(() => {
    mounts = new ErofsMounts()
  })
  afterEach(() => mounts.close())

  test('shows the same with a device a layer and as one flat disk', async () => {
    const layers = ['types replaced by upper layers', 'attributes shared by many files', 'files of awkward sizes'].flatMap((what) => ZOO.find((image) => image.what === what)!.layers).map(buildTar)
    const image = join(mounts.directory, 'image')
    const disk = join(mounts.directory, 'disk')
    const { layers: placed } = writeErofs(composeImage(layers.map(indexTar)), { path: image })
    copyFileSync(image, disk)
    const fd = openSync(disk, 'r+')
    for (const [index, bytes] of layers.entries()) writeSync(fd, bytes, 0, bytes.length, placed[index].uniaddr)
    closeSync(fd)
    const [byDevices, flat] = await walkTrees([await mounts.mountLayers(layers), await mounts.mount(disk, [])])
    expect(Object.keys(flat).length).toBeGreaterThan(50)
    expect(treeDifferences(flat, byDevices, 0)).toEqual([])
  })

  test('knows sizes over 4 GiB, many links and times before 1970', async () => {
    const length = 5 * 2 ** 30
    const device = join(mounts.directory, 'device')
    const fd = openSync(device, 'w')
    ftruncateSync(fd, length)
    writeSync(fd, Buffer.from('the end'), 0, 7, length - 7)
    closeSync(fd)
    const image = join(mounts.directory, 'image')
    writeErofs(treeOf({ large: { size: length, layer: 0, extents: [{ fileOffset: 0, streamOffset: 0, length }] }, linked: { nlink: 70_000 }, old: { mtimeSeconds: -86_400, mtimeNanos: 250_000_000 } }, length), { path: image })
    const root = await mounts.mount(image, [device])
    expect(statSync(join(root, 'large')).size).toBe(length)
    const end = Buffer.alloc(7)
    const large = openSync(join(root, 'large'), 'r')
    readSync(large, end, 0, 7, length - 7)
    closeSync(large)
    expect(end.toString()).toBe('the end')
    expect(statSync(join(root, 'linked')).nlink).toBe(70_000)
    expect(statSync(join(root, 'old'), { bigint: true }).mtimeNs).toBe(-86_399_750_000_000n)
  })

  test('reads sparse files with their holes', async () => {
    const device = join(mounts.directory, 'device')
    const bytes = Buffer.alloc(64 * 512, 'data')
    writeFileSync(device, bytes)
    const extents = [
      { fileOffset: 512, streamOffset: 1024, length: 512 },
      { fileOffset: 4096, streamOffset: 512, length: 8192 },
      { fileOffset: 65_536, streamOffset: 0, length: 100 },
    ]
    const image = join(mounts.directory, 'image')
    writeErofs(treeOf({ sparse: { size: 65_636, layer: 0, extents }, hole: { size: 1_000_000 } }, bytes.length), { path: image })
    const root = await mounts.mount(image, [device])
    const expected = Buffer.alloc(65_636)
    for (const { fileOffset, streamOffset, length } of extents) bytes.copy(expected, fileOffset, streamOffset, streamOffset + length)
    expect(sha256(readFileSync(join(root, 'sparse')))).toBe(sha256(expected))
    expect(sha256(readFileSync(join(root, 'hole')))).toBe(sha256(Buffer.alloc(1_000_000)))
  })

  test('keeps links that lead outside as mere text', async () => {
    const root = await mounts.mountLayers([buildTar([{ name: 'out', type: 'symlink', link: '../../../../etc/passwd' }, { name: '../../../climbs', data: 'x' }])])
    const [tree] = await walkTrees([root])
    expect(Object.keys(tree).sort()).toEqual(['', 'climbs', 'out'])
    expect(tree.out.link).toBe('../../../../etc/passwd')
  })
})
