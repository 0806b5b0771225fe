// Images that start without being pulled: real containerd, a real registry, layers that are indexed and mounted as EROFS instead of unpacked.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { LabContainerd } from '../../bench/lab/containerd.ts'
import { run } from '../../bench/lab/process.ts'
import { tryErofs } from '../../blockdev/capabilities.ts'
import { SkimmerError } from '../../oci/errors.ts'
import { LocalLazyImages } from './local-lazy-images.ts'
import { eventually, keptMounts, missingForContainers, startSnapshotter } from './machine.ts'
import type { TestSnapshotter } from './machine.ts'
import { LoopbackRegistry } from './registry.ts'
import { makeTinyImage, packImage } from './tiny-image.ts'
import type { TinyImage } from './tiny-image.ts'
import { listing } from './tree-listing.ts'

const missing = missingForContainers('containerd', 'ctr', 'ctr-remote', 'runc', 'docker-registry', 'skopeo', 'ldd', 'perl') || (await tryErofs('file', tmpdir()))
const describeHere = missing === '' ? describe : describe.skip

describeHere(`lazy images in real containerd${missing && ` (${missing})`}`, () => {
  const directory = mkdtempSync(join(tmpdir(), 'skl-'))
  const root = join(directory, 'root')
  const socketPath = join(directory, 's.sock')
  const ours = ['--snapshotter', 'skimmer']
  let image: TinyImage
  let sibling: TinyImage
  let registry: LoopbackRegistry
  let containerd: LabContainerd
  let lazy: LocalLazyImages
  let service: TestSnapshotter
  let reference: string
  let siblingReference: string

  const ctr = async (...argv: string[]): Promise<string> => (await containerd.ctr(argv)).stdout
  const rpull = async (name: string): Promise<void> => void (await containerd.ctrRemote(['images', 'rpull', '--plain-http', ...ours, name]))
  const claims = async (): Promise<Record<string, number>> => {
    const metric = await service.metrics.getSingleMetric('skimmer_snapshotter_claims_total')!.get()
    return Object.fromEntries(metric.values.map(({ labels, value }) => [labels['result'], value]))
  }
  const localBlobs = async (): Promise<string> => ctr('content', 'ls', '-q')
  const removeImage = async (...names: string[]): Promise<void> => {
    for (const name of names) await ctr('images', 'rm', '--sync', name)
    await eventually(() => expect(service.snapshotter.list()).toEqual([]))
  }
  const restart = async (): Promise<void> => {
    await service.snapshotter.stop()
    await lazy.close()
    lazy = new LocalLazyImages({ directory: join(directory, 'lazy'), registry: registry.address, known: lazy })
    service = await startSnapshotter({ root, socketPath, lazy, db: service.db, unavailableWaitMs: 1200 })
  }

  beforeAll(async () => {
    registry = await LoopbackRegistry.start(join(directory, 'registry'))
    image = await makeTinyImage(join(directory, 'image'), 'tiny')
    reference = await registry.push(image.layout, 'tiny:1')
    // Shares two layers with the first image and has one of its own.
    const own = join(directory, 'sibling-layer')
    mkdirSync(own)
    writeFileSync(join(own, 'own'), 'sibling\n')
    sibling = await packImage(join(directory, 'sibling'), 'sibling', [join(directory, 'image/base'), join(directory, 'image/second'), own])
    siblingReference = await registry.push(sibling.layout, 'tiny:sibling')
    lazy = new LocalLazyImages({ directory: join(directory, 'lazy'), registry: registry.address })
    service = await startSnapshotter({ root, socketPath, lazy, unavailableWaitMs: 1200 })
    containerd = await LabContainerd.start({ directory: join(directory, 'c'), snapshotter: { name: 'skimmer', socket: socketPath } })
  })
  afterAll(async () => {
    await containerd?.stop()
    await service?.snapshotter.stop()
    await lazy?.close()
    await registry?.stop()
    rmSync(directory, { recursive: true, force: true })
  })

  test('a pull claims every layer and downloads none; containers run, write and share one mounted tree', async () => {
    await rpull(reference)
    const blobs = await localBlobs()
    for (const layer of image.layers) expect(blobs).not.toContain(layer.digest)
    expect(await claims()).toEqual({ claimed: 3 })
    expect(lazy.claims.map(each => each.layerDigest)).toEqual(image.layers.map(each => each.digest))
    expect(lazy.claims[0].reference).toBe(reference)
    expect(lazy.claims[0].layerDigests).toEqual(image.layers.map(each => each.digest))
    expect(lazy.claims[2].parentDiffIds).toEqual(image.diffIds.slice(0, 2))

    const first = await containerd.ctr(['run', '--rm', ...ours, reference, 'c1', '/bin/sh', '-c', 'cat /etc/motd /data/added; echo new > /data/new; ls /data /hidden; cat /data/kept | sha256sum'])
    expect(first.stdout).toMatch(/^second layer\nthird layer\n\/data:\nadded\nkept\nnew\n\n\/hidden:\nabove\n/)
    await ctr('run', '--detach', ...ours, reference, 'c2', '/bin/sh', '-c', 'while :; do sleep 1; done')
    await ctr('run', '--detach', ...ours, reference, 'c3', '/bin/sh', '-c', 'while :; do sleep 1; done')
    expect(lazy.mounted()).toHaveLength(1)
    expect(service.snapshotter.lazyUsers().size).toBeGreaterThanOrEqual(2)
  })

  test('the tree is the one that a full pull unpacks', async () => {
    await ctr('images', 'pull', '--plain-http', '--snapshotter', 'overlayfs', reference)
    const top = service.snapshotter.list().find(each => each.lazy?.diffId === image.diffIds[2])!.name
    const trees: string[] = []
    for (const snapshotter of ['skimmer', 'overlayfs']) {
      const target = join(directory, `view-${snapshotter}`)
      mkdirSync(target)
      await run(['sh', '-c', await keptMounts(containerd, snapshotter, 'view', 'look', top, target)])
      try {
        trees.push(await listing(target))
      } finally {
        await run(['umount', target])
        await ctr('snapshots', '--snapshotter', snapshotter, 'rm', 'look')
      }
    }
    expect(trees[0]).toBe(trees[1])
  })

  test('containers outlive a restart; mounts come back for what is started afterwards', async () => {
    await restart()
    expect(await ctr('tasks', 'exec', '--exec-id', 'e1', 'c2', '/bin/cat', '/data/added')).toBe('third layer\n')
    await eventually(() => expect(lazy.mounted()).toHaveLength(1))
    await containerd.restart({ kill: true })
    expect(await ctr('run', '--rm', ...ours, reference, 'c4', '/bin/cat', '/data/added')).toBe('third layer\n')
    for (const name of ['c2', 'c3']) {
      await ctr('tasks', 'rm', '--force', name)
      await ctr('containers', 'rm', name)
    }
    await eventually(() => expect(lazy.mounted()).toEqual([]))
    expect(service.snapshotter.lazyUsers()).toEqual(new Set())
  })

  test('a second image that shares layers claims only its own; another namespace needs no labels at all', async () => {
    const before = lazy.claims.length
    await rpull(siblingReference)
    expect(lazy.claims.slice(before).map(each => each.layerDigest)).toEqual([sibling.layers[2].digest])
    expect(await ctr('run', '--rm', ...ours, siblingReference, 'c5', '/bin/cat', '/own', '/etc/motd')).toBe('sibling\nsecond layer\n')
    await ctr('--namespace', 'other', 'images', 'pull', '--plain-http', ...ours, reference)
    expect(lazy.claims).toHaveLength(before + 1)
    expect(await ctr('--namespace', 'other', 'run', '--rm', ...ours, reference, 'c6', '/bin/cat', '/data/added')).toBe('third layer\n')
    await ctr('--namespace', 'other', 'images', 'rm', '--sync', reference)
    await ctr('images', 'rm', '--sync', siblingReference)
    await eventually(() => expect(lazy.forgotten).toEqual([sibling.diffIds[2]]))
    expect(await ctr('run', '--rm', ...ours, reference, 'c7', '/bin/cat', '/data/added')).toBe('third layer\n')
  })

  test('changes over a lazy image are committed, and run', async () => {
    const top = service.snapshotter.list().find(each => each.lazy?.diffId === image.diffIds[2])!.name
    const target = join(directory, 'edit')
    mkdirSync(target)
    await run(['sh', '-c', await keptMounts(containerd, 'skimmer', 'prepare', 'edit', top, target)])
    await run(['sh', '-c', `echo mine > ${target}/mine; rm ${target}/etc/motd; umount ${target}`])
    await ctr('snapshots', ...ours, 'commit', 'mine', 'edit')
    await ctr('snapshots', ...ours, 'label', 'mine', 'containerd.io/gc.root=kept')
    await run(['sh', '-c', await keptMounts(containerd, 'skimmer', 'prepare', 'on-mine', 'mine', target)])
    try {
      expect((await run(['sh', '-c', `cat ${target}/mine ${target}/data/added; ls ${target}/etc`])).stdout).toBe('mine\nthird layer\nlink\n')
    } finally {
      await run(['umount', target])
    }
    for (const key of ['on-mine', 'mine']) await ctr('snapshots', ...ours, 'rm', key)
    await eventually(() => expect(lazy.mounted()).toEqual([]))
  })

  test('removing the images unmounts all, frees all and forgets every layer', async () => {
    await removeImage(reference)
    await eventually(() => expect(readdirSync(join(root, 's'))).toEqual([]))
    expect(lazy.mounted()).toEqual([])
    expect([...lazy.forgotten].sort()).toEqual([...new Set([...image.diffIds, ...sibling.diffIds])].sort())
  })

  test('a layer that cannot be served lazily is unpacked over the lazy ones below it, and those above it too', async () => {
    lazy.failing.set(image.layers[1].digest, () => Promise.reject(new SkimmerError('UNSUPPORTED', 'a kind of tar that must be unpacked')))
    await rpull(reference)
    expect(await ctr('run', '--rm', ...ours, reference, 'c8', '/bin/sh', '-c', 'cat /etc/motd /data/added; ls /data /hidden')).toBe('second layer\nthird layer\n/data:\nadded\nkept\n\n/hidden:\nabove\n')
    const explained = service.snapshotter.explain().filter(each => each.kind === 'committed')
    expect(explained.map(each => each.lazy)).toEqual(expect.arrayContaining([true, false, false]))
    expect(explained.filter(each => !each.lazy).map(each => each.why).join()).toContain('a kind of tar that must be unpacked')
    lazy.failing.clear()
    await removeImage(reference)
  })

  test('with every source away the image is pulled the ordinary way, after a short wait', async () => {
    let asked = 0
    lazy.failing.set(image.layers[0].digest, () => {
      asked++
      return Promise.reject(new SkimmerError('UNAVAILABLE', 'no supernode answers'))
    })
    await rpull(reference)
    expect(asked).toBeGreaterThan(1)
    expect(await ctr('run', '--rm', ...ours, reference, 'c9', '/bin/cat', '/data/added')).toBe('third layer\n')
    expect((await claims())['unavailable']).toBe(1)
    lazy.failing.clear()
    await removeImage(reference)
  })

  test('a layer that is not the one its image names is refused and given up', async () => {
    const wrong = `sha256:${'ab'.repeat(32)}`
    lazy.failing.set(image.layers[1].digest, () => Promise.resolve({ diffId: wrong, size: 1, inodes: 1 }))
    await rpull(reference)
    expect((await claims())['mismatch']).toBe(1)
    expect(service.snapshotter.namedDiffIds()).toEqual(new Set([image.diffIds[0]]))
    await eventually(() => expect(lazy.forgotten).toContain(wrong))
    expect(await ctr('run', '--rm', ...ours, reference, 'c10', '/bin/cat', '/etc/motd')).toBe('second layer\n')
    lazy.failing.clear()
    await removeImage(reference)
  })
})
