// A composed image mounted by file, by loop device and as our FUSE filesystem: the same tree each time, and nothing left afterwards.
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { pino } from 'pino'
import { FuseChannel } from '../../blockdev/fuse-channel.ts'
import { mountFuse } from '../../blockdev/fuse-mount.ts'
import type { FuseMount } from '../../blockdev/fuse-mount.ts'
import { ImageMounts } from '../../blockdev/image-mounts.ts'
import type { MountableImage, MountMode } from '../../blockdev/image-mounts.ts'
import { loopsUnder } from '../../blockdev/loop-device.ts'
import { mountsUnder } from '../../blockdev/mount-table.ts'
import { runChild } from '../../blockdev/mount.ts'
import { writeErofs } from '../../image/erofs-writer.ts'
import { run, someBytes, temporaryDirectory, testLayer, whyNoMounts } from './layer-fixture.ts'
import type { TestLayer } from './layer-fixture.ts'
import { expectedListing, fileBytes, FIND_FORMAT, sha256, treeOver } from './tree-fixture.ts'

// By what the kernel is, not by our own probe: a probe that is broken must fail a test, not skip it.
const [major, minor] = os.release().split('.').map(Number)
const erofs = fs.readFileSync('/proc/filesystems', 'latin1').includes('erofs') ? '' : 'this kernel has no EROFS'
const works: Record<MountMode, string> = {
  file: erofs || (major > 6 || (major === 6 && minor >= 12) ? '' : 'file-backed EROFS needs Linux 6.12'),
  loop: erofs || (fs.existsSync('/dev/loop-control') ? '' : 'needs /dev/loop-control'),
  fuse: '',
  'fuse-native': process.arch === 'x64' ? '' : 'fuse-native has a build for x64 only',
}
const suite = whyNoMounts === '' ? describe : describe.skip
const IMAGE = 'ab'.repeat(32)
const logger = pino({ level: 'silent' })

suite(`mounting images ${whyNoMounts}`, () => {
  let directory: string
  let mount: FuseMount
  let channel: FuseChannel
  let layers: TestLayer[]
  let image: MountableImage
  let opened: ImageMounts[]

  beforeEach(async () => {
    directory = temporaryDirectory()
    opened = []
    mount = mountFuse(path.join(directory, 'fs'))
    layers = [testLayer(directory, someBytes(2_000_384)), testLayer(directory, someBytes(2_500_096))]
    const source = {
      read: async (id: string, ranges: readonly { from: number; to: number }[]) => {
        await new Promise((resolve) => setImmediate(resolve))
        for (const { from, to } of ranges) layers.find((layer) => layer.resource.id === id)?.present(from, to)
      },
    }
    channel = new FuseChannel({ source, logger }, mount)
    await channel.start()
    for (const layer of layers) channel.publishLayer(layer.name, layer.resource)
    const tree = treeOver(layers[0], layers[1])
    const metadataPath = path.join(directory, 'image.erofs')
    const written = writeErofs(tree, { path: metadataPath })
    image = { imageId: IMAGE, metadataPath, layers: written.layers, tree: () => Promise.resolve(tree) }
    const last = written.layers[1]
    channel.publishDisk(IMAGE, {
      metadataPath, length: Math.ceil((last.uniaddr + last.rawLength) / 4096) * 4096,
      segments: written.layers.map(({ uniaddr, rawLength, diffId }) => ({ start: uniaddr, length: rawLength, layer: diffId.slice(7) })),
    })
    channel.publishTree(IMAGE, tree)
    channel.restored()
  })

  afterEach(async () => {
    for (const mounts of opened) await mounts.takeDownAll()
    expect(await loopsUnder(path.join(directory, 'fs', 'disks'), 5000)).toEqual([])
    const gone = new Promise<void>((resolve) => channel.once('gone', resolve))
    await run('umount', mount.mountPoint)
    await gone
    await channel.stop()
    expect(mountsUnder(directory)).toEqual([])
    fs.closeSync(mount.fd)
    for (const layer of layers) layer.close()
    fs.rmSync(directory, { recursive: true })
  })

  async function open(mode: MountMode | 'auto', connection = mount.negotiated.connection): Promise<ImageMounts> {
    const mounts = await ImageMounts.open({ logger }, { directory: path.join(directory, 'images'), fuseMountPoint: mount.mountPoint, connection, mode })
    opened.push(mounts)
    return mounts
  }

  for (const mode of ['file', 'loop', 'fuse', 'fuse-native'] as const) {
    const here = works[mode] === '' ? test : test.skip
    here(`by ${mode}: every name, mode, owner, time, link and byte is the image's ${works[mode]}`, async () => {
      const mounts = await open(mode)
      const root = await mounts.acquire(image, 'container-1')
      const tree = treeOver(layers[0], layers[1])
      const listing = await run('find', root, '-printf', FIND_FORMAT)
      // fuse-native knows milliseconds only, from 1970 on.
      const seen = listing.stdout.toString().trimEnd().split('\n').sort()
      if (mode === 'fuse-native') expect(seen.map(toMilliseconds)).toEqual(expectedListing(tree).map(toMilliseconds))
      else expect(seen).toEqual(expectedListing(tree))
      const hashes = await run('sha256sum', path.join(root, 'bin/big'), path.join(root, 'sparse'), path.join(root, 'other-hard'), path.join(root, 'empty'), path.join(root, 'bin/su'))
      expect(hashes.stdout.toString().split('\n').slice(0, -1).map((line) => line.slice(0, 64))).toEqual([9, 7, 5, 2, 10].map((position) => sha256(fileBytes(tree, layers, position))))
      // libfuse counts inodes by itself: hard links have the right link count there, but numbers of their own.
      const inodes = mode === 'fuse-native' ? { stdout: '1' } : await run('stat', '-c', '%i', path.join(root, 'other-hard'), path.join(root, 'bin/hard'))
      expect(new Set(inodes.stdout.toString().trim().split('\n')).size).toBe(1)
      expect((await run('stat', '-c', '%t:%T', path.join(root, 'null'))).stdout.toString().trim()).toBe('1:3')
      expect(await xattr(path.join(root, 'other-hard'), 'user.colour')).toBe('blue')
      expect(await xattr(path.join(root, 'other-hard'), 'user.empty')).toBe('')
      expect(await xattr(path.join(root, 'empty'), 'user.colour')).toBe('none')
      expect((await run('touch', path.join(root, 'new'))).stderr).toMatch(/Read-only|not permitted|not implemented/)
      await mounts.release(IMAGE, 'container-1')
    })
  }

  test('works as the lower directory of an overlay, read by a user without rights', async () => {
    const mounts = await open('fuse')
    const root = await mounts.acquire(image, 'one')
    const [upper, work, merged] = ['upper', 'work', 'merged'].map((name) => path.join(directory, name))
    for (const made of [upper, work, merged]) fs.mkdirSync(made)
    await runChild('mount', ['-t', 'overlay', 'overlay', '-o', `lowerdir=${root},upperdir=${upper},workdir=${work}`, merged], 5000)
    try {
      fs.chmodSync(directory, 0o755)
      expect((await asNobody(`cat ${merged}/bin/hard | wc -c`)).stdout.toString().trim()).toBe('1000')
      expect((await asNobody(`cat ${merged}/bin/big`)).stderr).toContain('Permission denied')
      expect((await run('sh', '-c', `rm ${merged}/sparse && echo new > ${merged}/bin/hard && cat ${merged}/bin/hard`)).stdout.toString()).toBe('new\n')
    } finally {
      await run('umount', merged)
    }
  })

  test('two users share one mount, and the last one takes it down', async () => {
    const mounts = await open('auto')
    const [first, second] = await Promise.all([mounts.acquire(image, 'one'), mounts.acquire(image, 'two')])
    expect(second).toBe(first)
    expect(mounts.users(IMAGE).sort()).toEqual(['one', 'two'])
    await mounts.release(IMAGE, 'one')
    await mounts.release(IMAGE, 'one')
    expect((await run('ls', `${first}/bin`)).stdout.toString()).toBe('big\nhard\nsu\n')
    await mounts.release(IMAGE, 'two')
    expect(mounts.inUse()).toEqual([])
    expect(mountsUnder(path.join(directory, 'images'))).toEqual([])
  })

  const fileTest = works.file === '' ? test : test.skip
  fileTest(`a restart adopts what is mounted; another connection's mounts come down ${works.file}`, async () => {
    const before = await open('file')
    const root = await before.acquire(image, 'one')
    const after = await open('file')
    expect(after.inUse()).toEqual([IMAGE])
    expect(after.users(IMAGE)).toEqual(['one'])
    expect(await after.acquire(image, 'one')).toBe(root)
    expect(mountsUnder(root).length).toBe(1)
    const other = await open('file', 'another connection')
    expect(other.inUse()).toEqual([])
    expect(mountsUnder(path.join(directory, 'images'))).toEqual([])
  })

  fileTest(`an image with as many layers as an image may have is mounted file-backed ${works.file}`, async () => {
    const mounts = await open('file')
    const made = Array.from({ length: 127 }, () => testLayer(directory, someBytes(1024), { here: true }))
    for (const layer of made) channel.publishLayer(layer.name, layer.resource)
    const one = treeOver(layers[0], layers[1])
    const tree = { layers: made.map((layer) => ({ diffId: `sha256:${layer.name}`, rawLength: 1024 })), inodes: one.inodes.map((inode) => (inode.layer < 0 ? inode : { ...inode, layer: 126, size: 512, extents: [{ fileOffset: 0, streamOffset: 512, length: 512 }] })) }
    const metadataPath = path.join(directory, 'many.erofs')
    const written = writeErofs(tree, { path: metadataPath })
    const root = await mounts.acquire({ imageId: 'cd'.repeat(32), metadataPath, layers: written.layers }, 'one')
    expect((await run('sha256sum', path.join(root, 'bin/big'))).stdout.toString().slice(0, 64)).toBe(sha256(made[126].bytes.subarray(512)))
    await mounts.takeDownAll()
    for (const layer of made) layer.close()
  })

  test('an image that is still read is detached, not torn from under its reader', async () => {
    const mounts = await open('auto')
    const root = await mounts.acquire(image, 'one')
    const reading = run('sh', '-c', `exec 3<${root}/bin/big; echo open > ${directory}/open; while [ ! -e ${directory}/go ]; do sleep 0.02; done; sha256sum <&3`)
    while (!fs.existsSync(path.join(directory, 'open'))) await new Promise((resolve) => setTimeout(resolve, 5))
    await mounts.release(IMAGE, 'one')
    expect(mountsUnder(path.join(directory, 'images'))).toEqual([])
    fs.writeFileSync(path.join(directory, 'go'), '')
    expect((await reading).stdout.toString().slice(0, 64)).toBe(sha256(fileBytes(treeOver(layers[0], layers[1]), layers, 9)))
  })

  test('a metadata file that is no EROFS is refused with the kernel\'s words, and leaves nothing', async () => {
    const mounts = await open('auto')
    fs.writeFileSync(path.join(directory, 'bad'), Buffer.alloc(8192))
    if (mounts.mode !== 'file') return
    await expect(mounts.acquire({ ...image, metadataPath: path.join(directory, 'bad') }, 'one')).rejects.toMatchObject({ code: 'UNSUPPORTED', message: expect.stringMatching(/superblock|Invalid/) })
    await expect(mounts.acquire({ ...image, imageId: '../x' }, 'one')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    expect(mounts.inUse()).toEqual([])
  })
})

const toMilliseconds = (line: string): string => line.replace(/(\.\d{3})\d+\|/, '$1|').replace('|-86400.000|', '|0.000|')
const asNobody = (command: string) => run('setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', 'sh', '-c', command)

/** lgetxattr(2) in a child; 'none' when there is none of that name. */
async function xattr(file: string, name: string): Promise<string> {
  const number = process.arch === 'x64' ? 192 : 9
  const script = 'my $value = "\\0" x 256; my $n = syscall($ARGV[0]+0, $ARGV[1], $ARGV[2], $value, 256); print $n < 0 ? "none" : substr($value, 0, $n)'
  return (await run('perl', '-e', script, String(number), file, name)).stdout.toString()
}
