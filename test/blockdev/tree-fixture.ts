// A small image tree with one of everything, over two layers, and the listing that find(1) must make of it however it is mounted.
import { createHash } from 'node:crypto'
import type { ImageTree, TreeInode } from '../../image/tree.ts'
import type { TestLayer } from './layer-fixture.ts'

const inode = (given: Partial<TreeInode> & Pick<TreeInode, 'type'>): TreeInode => ({
  mode: 0o644, uid: 0, gid: 0, mtimeSeconds: 1_600_000_000, mtimeNanos: 0, nlink: 1, size: 0, layer: -1, extents: [], link: '', major: 0, minor: 0, xattrs: [],
  ...given,
})

/** Needs layers of at least 2 MB. Entries are sorted by name; positions are those of `inodes`. */
export function treeOver(bottom: TestLayer, top: TestLayer): ImageTree {
  const many = Array.from({ length: 700 }, (_, index) => [`entry-${String(index).padStart(4, '0')}`, 5] as const)
  const inodes: TreeInode[] = [
    inode({
      type: 'dir', mode: 0o755, nlink: 4, parent: 0,
      entries: [['bin', 1], ['empty', 2], ['fifo', 3], ['link', 4], ['other-hard', 5], ['null', 6], ['sparse', 7], ['many', 8]].sort((a, b) => (a[0] < b[0] ? -1 : 1)) as [string, number][],
    }),
    inode({ type: 'dir', mode: 0o1777, uid: 7, gid: 70_000, mtimeNanos: 123_456_789, nlink: 2, parent: 0, entries: [['big', 9], ['hard', 5], ['su', 10]] }),
    inode({ type: 'file', mode: 0o600 }),
    inode({ type: 'fifo', mode: 0o622 }),
    inode({ type: 'symlink', mode: 0o777, link: 'bin/big', size: 7 }),
    inode({ type: 'file', mode: 0o444, size: 1000, layer: 0, nlink: 702, mtimeSeconds: -86_400, extents: [{ fileOffset: 0, streamOffset: 512, length: 1000 }], xattrs: [['user.colour', Buffer.from('blue')], ['user.empty', Buffer.alloc(0)]] }),
    inode({ type: 'char', mode: 0o666, major: 1, minor: 3 }),
    inode({
      type: 'file', size: 10_240, layer: 1,
      extents: [{ fileOffset: 1024, streamOffset: 4096, length: 2048 }, { fileOffset: 8192, streamOffset: 1024, length: 1024 }],
    }),
    inode({ type: 'dir', mode: 0o700, nlink: 2, parent: 0, entries: many }),
    inode({ type: 'file', size: 1_500_001, layer: 1, mode: 0o640, uid: 1000, gid: 1000, extents: [{ fileOffset: 0, streamOffset: 10_240, length: 1_500_001 }] }),
    inode({ type: 'file', size: 77, layer: 0, mode: 0o4755, extents: [{ fileOffset: 0, streamOffset: 300_032, length: 77 }] }),
  ]
  return { layers: [bottom, top].map((layer) => ({ diffId: `sha256:${layer.name}`, rawLength: layer.bytes.length })), inodes }
}

const LETTERS: Record<TreeInode['type'], string> = { file: 'f', dir: 'd', symlink: 'l', char: 'c', block: 'b', fifo: 'p' }
export const FIND_FORMAT = '%P|%y|%m|%U|%G|%T@|%n|%l\\n'

/** What `find -printf FIND_FORMAT` says of the tree, sorted. Sizes and contents are compared by hash. */
export function expectedListing(tree: ImageTree): string[] {
  const lines: string[] = []
  const walk = (position: number, at: string): void => {
    const one = tree.inodes[position]
    // find prints negative times with the nanoseconds counted forward from the second below.
    lines.push(`${at}|${LETTERS[one.type]}|${one.mode.toString(8)}|${one.uid}|${one.gid}|${one.mtimeSeconds}.${String(one.mtimeNanos).padStart(9, '0')}0|${one.nlink}|${one.link}`)
    for (const [name, child] of one.entries ?? []) walk(child, at === '' ? name : `${at}/${name}`)
  }
  walk(0, '')
  return lines.sort()
}

export function fileBytes(tree: ImageTree, layers: readonly TestLayer[], position: number): Buffer {
  const one = tree.inodes[position]
  const bytes = Buffer.alloc(one.size)
  for (const extent of one.extents) layers[one.layer].bytes.copy(bytes, extent.fileOffset, extent.streamOffset, extent.streamOffset + extent.length)
  return bytes
}

export const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')
