// Containerd with our snapshotter the ordinary way: what works with its own overlay snapshotter works here, through restarts.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { LabContainerd } from '../../bench/lab/containerd.ts'
import { run } from '../../bench/lab/process.ts'
import { eventually, keptMounts, missingForContainers, startSnapshotter } from './machine.ts'
import type { TestSnapshotter } from './machine.ts'
import { listing } from './tree-listing.ts'
import { makeTinyImage } from './tiny-image.ts'
import type { TinyImage } from './tiny-image.ts'

const missing = missingForContainers('containerd', 'ctr', 'runc', 'ldd')
const describeHere = missing === '' ? describe : describe.skip

describeHere(`ordinary images in real containerd${missing && ` (${missing})`}`, () => {
  const directory = mkdtempSync(join(tmpdir(), 'sks-'))
  const root = join(directory, 'root')
  const socketPath = join(directory, 's.sock')
  const NAME = 'example.test/tiny:1'
  const ours = ['--snapshotter', 'skimmer']
  let image: TinyImage
  let containerd: LabContainerd
  let service: TestSnapshotter

  const ctr = async (...argv: string[]): Promise<string> => (await containerd.ctr(argv)).stdout
  const snapshots = async (): Promise<string[][]> => (await ctr('snapshots', ...ours, 'ls')).trim().split('\n').slice(1).map(line => line.trim().split(/\s+/))
  const committed = async (): Promise<string[]> => (await snapshots()).filter(row => row.at(-1) === 'Committed').map(row => row[0])
  const topChain = async (): Promise<string> => {
    const rows = await snapshots()
    const parents = new Set(rows.map(row => (row.length === 3 ? row[1] : '')))
    return rows.find(row => row.at(-1) === 'Committed' && !parents.has(row[0]))![0]
  }
  const onDisk = (): string[] => readdirSync(join(root, 's'))

  beforeAll(async () => {
    image = await makeTinyImage(directory, NAME)
    service = await startSnapshotter({ root, socketPath })
    containerd = await LabContainerd.start({ directory: join(directory, 'c'), snapshotter: { name: 'skimmer', socket: socketPath } })
    await ctr('images', 'import', ...ours, image.archive)
  })
  afterAll(async () => {
    await containerd?.stop()
    await service?.snapshotter.stop()
    rmSync(directory, { recursive: true, force: true })
  })

  test('a container runs on an imported image, writes, and leaves nothing behind', async () => {
    const before = onDisk().length
    const output = await ctr('run', '--rm', ...ours, NAME, 'c1', '/bin/sh', '-c', 'cat /etc/motd /data/added; echo new > /data/new; cat /data/new; ls /data /hidden; cat /etc/link | sha256sum')
    expect(output).toContain('second layer\nthird layer\nnew\n')
    expect(output).toMatch(/added\nkept\nnew\n\n\/hidden:\nabove\n/)
    await eventually(() => expect(onDisk()).toHaveLength(before))
  })

  test('the tree is the one that containerd\'s overlay snapshotter makes', async () => {
    await ctr('images', 'import', '--snapshotter', 'overlayfs', image.archive)
    const top = await topChain()
    const trees: string[] = []
    for (const snapshotter of ['skimmer', 'overlayfs']) {
      const target = join(directory, `view-${snapshotter}`)
      await run(['mkdir', target])
      await run(['sh', '-c', await keptMounts(containerd, snapshotter, 'view', 'look', top, target)])
      try {
        trees.push(await listing(target))
      } finally {
        await run(['umount', target])
        await ctr('snapshots', '--snapshotter', snapshotter, 'rm', 'look')
      }
    }
    expect(trees[0]).toBe(trees[1])
    expect(trees[0]).toContain('owned')
  })

  test('an active snapshot is committed, and containers stand on it', async () => {
    const top = await topChain()
    const target = join(directory, 'edit')
    await run(['mkdir', target])
    await run(['sh', '-c', await keptMounts(containerd, 'skimmer', 'prepare', 'edit', top, target)])
    await run(['sh', '-c', `echo mine > ${target}/mine; rm ${target}/etc/motd; umount ${target}`])
    await ctr('snapshots', ...ours, 'commit', 'mine', 'edit')
    expect(await committed()).toContain('mine')
    await run(['sh', '-c', await keptMounts(containerd, 'skimmer', 'view', 'look-mine', 'mine', target)])
    try {
      expect((await run(['sh', '-c', `cat ${target}/mine; ls ${target}/etc`])).stdout).toBe('mine\nlink\n')
    } finally {
      await run(['umount', target])
    }
    await expect(ctr('snapshots', ...ours, 'rm', 'mine')).rejects.toThrow(/failed precondition/)
    await ctr('snapshots', ...ours, 'rm', 'look-mine')
    await ctr('snapshots', ...ours, 'rm', 'mine')
  })

  test('usage is the disk\'s: committed layers and the upper directory of a running container', async () => {
    const usage = await ctr('snapshots', ...ours, 'usage', '-b', await topChain())
    expect(Number(usage.trim().split('\n')[1].split(/\s+/)[1])).toBeGreaterThan(0)
  })

  test('a container survives restarts of containerd and of the snapshotter, and can then be removed', async () => {
    await ctr('run', '--detach', ...ours, NAME, 'long', '/bin/sh', '-c', 'while :; do sleep 1; done')
    const before = (await snapshots()).map(row => row.join(' ')).sort()
    await containerd.restart({ kill: true })
    await service.snapshotter.stop()
    service = await startSnapshotter({ root, socketPath, db: service.db })
    expect((await snapshots()).map(row => row.join(' ')).sort()).toEqual(before)
    expect(await ctr('tasks', 'exec', '--exec-id', 'e1', 'long', '/bin/cat', '/data/added')).toBe('third layer\n')
    await ctr('tasks', 'kill', '--signal', 'SIGKILL', 'long')
    await ctr('tasks', 'rm', '--force', 'long')
    await ctr('containers', 'rm', 'long')
    expect(await snapshots()).toHaveLength(before.length - 1)
  })

  test('what a crash left between directory and metadata is swept at the next start', async () => {
    await service.snapshotter.stop()
    const before = onDisk().sort()
    await run(['mkdir', '-p', join(root, 's/4711/fs/deep'), join(root, 's/4711/work')])
    service = await startSnapshotter({ root, socketPath, db: service.db })
    await service.snapshotter.cleanup()
    // Trash is emptied in the background.
    await eventually(() => expect(onDisk().sort()).toEqual(before))
  })

  test('removing the image lets garbage collection free every snapshot and directory', async () => {
    await ctr('images', 'rm', '--sync', NAME)
    expect(await snapshots()).toEqual([])
    await eventually(() => expect(onDisk()).toEqual([]))
  })
})
