// The Snapshots service as its clients meet it: statuses, odd requests, slow and failing images.
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { status } from '@grpc/grpc-js'
import { once } from 'node:events'
import { linkSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { SkimmerError } from '../../oci/errors.ts'
import type { LazyImages } from '../../snapshotter/lazy-images.ts'
import { SnapshotsClient } from './client.ts'
import { eventually, startSnapshotter } from './machine.ts'
import type { TestSnapshotter } from './machine.ts'

const REF = 'containerd.io/snapshot.ref'
const DIFF = `sha256:${'11'.repeat(32)}`
let directory: string
let socketPath: string
let client: SnapshotsClient
let service: TestSnapshotter | undefined

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'skr-'))
  socketPath = join(directory, 's.sock')
  client = new SnapshotsClient(socketPath)
})
afterEach(async () => {
  client.close()
  await service?.snapshotter.stop()
  service = undefined
  rmSync(directory, { recursive: true, force: true })
})
const start = async (lazy?: LazyImages, options: { claimTimeoutMs?: number; unavailableWaitMs?: number } = {}): Promise<void> => {
  service = await startSnapshotter({ root: join(directory, 'root'), socketPath, lazy, db: service?.db, ...options })
}
/** The first layer of an image whose diffID is its chain ID. */
const layer = { key: 'default/1/extract-1 x', parent: '', labels: { [REF]: DIFF } }
const lazyOf = (parts: Partial<LazyImages>): LazyImages => ({
  claim: () => Promise.resolve({ diffId: DIFF, size: 10, inodes: 3 }),
  mount: () => Promise.resolve(directory),
  unmount: () => Promise.resolve(),
  forget: () => Promise.resolve(),
  ...parts,
})

describe('the Snapshots service', () => {
  test('failures carry the status that containerd acts on', async () => {
    await start()
    expect(await client.code('Stat', { key: 'none' })).toBe(status.NOT_FOUND)
    expect(await client.code('Mounts', { key: 'none' })).toBe(status.NOT_FOUND)
    expect(await client.code('Prepare', { key: '' })).toBe(status.INVALID_ARGUMENT)
    expect(await client.code('Prepare', { key: 'k', parent: 'none' })).toBe(status.NOT_FOUND)
    await client.call('Prepare', { key: 'k' })
    expect(await client.code('Prepare', { key: 'k' })).toBe(status.ALREADY_EXISTS)
    expect(await client.code('Prepare', { key: 'l', parent: 'k' })).toBe(status.INVALID_ARGUMENT)
    await client.call('Commit', { name: 'base', key: 'k', labels: { a: 'b' } })
    expect(await client.code('Mounts', { key: 'base' })).toBe(status.FAILED_PRECONDITION)
    expect(await client.code('Commit', { name: 'x', key: 'base' })).toBe(status.FAILED_PRECONDITION)
    await client.call('View', { key: 'v', parent: 'base' })
    expect(await client.code('Remove', { key: 'base' })).toBe(status.FAILED_PRECONDITION)
    expect(await client.code('Commit', { name: 'x', key: 'v' })).toBe(status.FAILED_PRECONDITION)
    expect(await client.code('Update', {})).toBe(status.INVALID_ARGUMENT)
    expect(await client.code('Update', { info: { name: 'base' }, updateMask: { paths: ['kind'] } })).toBe(status.INVALID_ARGUMENT)
    expect((await client.call('Stat', { key: 'base' })).info).toMatchObject({ kind: 'COMMITTED', labels: { a: 'b' }, parent: '' })
    await expect(client.list('name==')).rejects.toMatchObject({ code: status.INVALID_ARGUMENT })
    await client.call('Remove', { key: 'v' })
    await client.call('Remove', { key: 'base' })
    await client.call('Cleanup', {})
    expect(readdirSync(join(directory, 'root/s'))).toEqual([])
  })

  test('usage counts what is on the disk, each hardlinked file once', async () => {
    await start()
    const { mounts } = await client.call('Prepare', { key: 'k' })
    writeFileSync(join(mounts[0].source, 'file'), Buffer.alloc(1_000_000, 1))
    linkSync(join(mounts[0].source, 'file'), join(mounts[0].source, 'again'))
    mkdirSync(join(mounts[0].source, 'dir'))
    const active = await client.call('Usage', { key: 'k' })
    expect(active.inodes).toBe(3)
    expect(active.size).toBeGreaterThanOrEqual(1_000_000)
    expect(active.size).toBeLessThan(1_100_000)
    await client.call('Commit', { name: 'base', key: 'k' })
    expect(await client.call('Usage', { key: 'base' })).toEqual(active)
  })

  test('many snapshots are listed, and filtered', async () => {
    await start()
    await Promise.all(Array.from({ length: 400 }, (_, index) => client.call('View', { key: `k${index}`, labels: { n: String(index % 2) } })))
    expect(await client.list()).toHaveLength(400)
    expect(await client.list('labels.n==1')).toHaveLength(200)
    expect(await client.list('labels.n==1,name==k3', 'name==k0')).toHaveLength(2)
  })

  test('labels that are properties of every object are just labels', async () => {
    await start()
    await client.call('Prepare', { key: 'constructor', labels: { constructor: 'c', toString: 't' } })
    expect((await client.call('Stat', { key: 'constructor' })).info.labels).toMatchObject({ constructor: 'c', toString: 't' })
    expect(await client.list('labels.toString==t')).toHaveLength(1)
    expect(await client.list('labels.valueOf')).toHaveLength(0)
  })

  test('noise, oversized and unknown calls leave the service working', async () => {
    await start()
    const socket = connect(socketPath)
    socket.on('error', () => {}).resume()
    socket.write(Buffer.alloc(100_000, 0x16))
    await once(socket, 'close')
    expect(await client.code('Prepare', { key: 'k', labels: { big: 'x'.repeat(17 * 1024 * 1024) } })).toBe(status.RESOURCE_EXHAUSTED)
    expect(await client.code('Prepare', { key: 'x'.repeat(5000) })).toBe(status.INVALID_ARGUMENT)
    expect(await client.code('Stat', { key: 'k' })).toBe(status.NOT_FOUND)
  })

  test('the socket is root\'s alone, and is not taken from a living process', async () => {
    await start()
    expect(statSync(socketPath).mode & 0o777).toBe(0o600)
    await expect(startSnapshotter({ root: join(directory, 'other'), socketPath })).rejects.toThrow(/served by another process/)
    expect(await client.list()).toEqual([])
  })

  test('a claimed layer is committed under its chain ID with its labels, and the caller is told so', async () => {
    await start(lazyOf({}))
    expect(await client.code('Prepare', layer)).toBe(status.ALREADY_EXISTS)
    const [info] = await client.list(`labels."${REF}"==${DIFF},parent==""`)
    expect(info).toMatchObject({ name: DIFF, kind: 'COMMITTED', labels: layer.labels })
    expect(await client.call('Usage', { key: DIFF })).toEqual({ size: 10, inodes: 3 })
    expect((await client.call('View', { key: 'v', parent: DIFF })).mounts).toEqual([{ type: 'bind', source: directory, target: '', options: ['ro', 'rbind'] }])
    const active = await client.call('Prepare', { key: 'a', parent: DIFF })
    expect(active.mounts[0].type).toBe('overlay')
    expect(active.mounts[0].options.at(-1)).toBe(`lowerdir=${directory}`)
  })

  test('labels full of nonsense name no image', async () => {
    const seen: unknown[] = []
    await start(lazyOf({
      claim: claim => {
        seen.push(claim)
        return Promise.reject(new SkimmerError('UNSUPPORTED', 'no'))
      },
    }))
    const labels = {
      [REF]: DIFF,
      'containerd.io/snapshot/cri.image-ref': 'a b\n',
      'containerd.io/snapshot/cri.layer-digest': '../../etc/passwd',
      'containerd.io/snapshot/cri.manifest-digest': 'sha256:short',
      'containerd.io/snapshot/cri.image-layers': `${DIFF},sha256:cut`,
      'containerd.io/snapshot/remote/stargz.reference': 'docker.io/library/debian:12',
    }
    expect((await client.call('Prepare', { ...layer, labels })).mounts[0].type).toBe('bind')
    expect(seen).toEqual([{ reference: 'docker.io/library/debian:12', manifestDigest: undefined, layerDigest: undefined, layerDigests: [DIFF], chainId: DIFF, parentDiffIds: [] }])
    expect((await client.call('Prepare', { key: 'bad-ref', labels: { [REF]: 'sha256:zz' } })).mounts).toHaveLength(1)
    expect(seen).toHaveLength(1)
  })

  test('a claim that never ends is given up, and the layer is unpacked', async () => {
    await start(lazyOf({ claim: () => new Promise(() => {}) }), { claimTimeoutMs: 100 })
    expect((await client.call('Prepare', layer)).mounts[0].type).toBe('bind')
    expect(service!.snapshotter.explain()[0]).toMatchObject({ lazy: false, why: 'the layer was not ready in time' })
  })

  test('a caller that gives up ends the claim', async () => {
    let signal: AbortSignal | undefined
    await start(lazyOf({
      claim: (_layer, given) => {
        signal = given
        return new Promise(() => {})
      },
    }))
    const abort = new AbortController()
    const call = client.call('Prepare', layer, { signal: abort.signal })
    await eventually(() => expect(signal).toBeDefined())
    abort.abort()
    await expect(call).rejects.toMatchObject({ code: status.CANCELLED })
    await eventually(() => expect(signal!.aborted).toBe(true))
    await eventually(async () => expect(await client.list()).toEqual([]))
  })

  test('two namespaces that pull one layer at once cause one claim', async () => {
    let claims = 0
    const release = Promise.withResolvers<void>()
    await start(lazyOf({
      claim: async () => {
        claims++
        await release.promise
        return { diffId: DIFF, size: 1, inodes: 1 }
      },
    }))
    const codes = Promise.all(['a/1/x', 'b/2/x', 'c/3/x'].map(key => client.code('Prepare', { ...layer, key })))
    await eventually(() => expect(claims).toBe(1))
    release.resolve()
    expect(await codes).toEqual([status.ALREADY_EXISTS, status.ALREADY_EXISTS, status.ALREADY_EXISTS])
    expect(claims).toBe(1)
  })

  test('an image that cannot be mounted fails the call, leaves nothing, and is tried again the next time', async () => {
    let broken = true
    const released: string[] = []
    await start(lazyOf({
      mount: () => (broken ? Promise.reject(new SkimmerError('UNAVAILABLE', 'no such device')) : Promise.resolve(directory)),
      unmount: (_diffIds, user) => Promise.resolve(void released.push(user)),
    }))
    await client.code('Prepare', layer)
    expect(await client.code('Prepare', { key: 'c', parent: DIFF })).toBe(status.UNAVAILABLE)
    expect(readdirSync(join(directory, 'root/s')).filter(name => !name.startsWith('trash'))).toEqual([])
    expect(released).toHaveLength(1)
    broken = false
    await client.call('Prepare', { key: 'c', parent: DIFF })
    // After a restart the mount fails at first: later calls try again.
    broken = true
    await service!.snapshotter.stop()
    await start(lazyOf({ mount: () => (broken ? Promise.reject(new SkimmerError('UNAVAILABLE', 'no such device')) : Promise.resolve(directory)) }))
    await eventually(async () => expect(await client.code('Mounts', { key: 'c' })).toBe(status.UNAVAILABLE))
    broken = false
    expect((await client.call('Mounts', { key: 'c' })).mounts[0].type).toBe('overlay')
  })

  test('a busy unmount is tried again by Cleanup', async () => {
    let busy = true
    let unmounted = 0
    await start(lazyOf({
      unmount: () => {
        if (busy) return Promise.reject(new SkimmerError('CONFLICT', 'target is busy'))
        unmounted++
        return Promise.resolve()
      },
    }))
    await client.code('Prepare', layer)
    await client.call('Prepare', { key: 'c', parent: DIFF })
    await client.call('Remove', { key: 'c' })
    busy = false
    await eventually(async () => {
      await client.call('Cleanup', {})
      expect(unmounted).toBe(1)
    })
  })

  test('a hundred layers over a lazy image still fit into what mount(2) takes', async () => {
    await start(lazyOf({}))
    await client.code('Prepare', layer)
    let parent = DIFF
    for (let index = 0; index < 120; index++) {
      await client.call('Prepare', { key: 'k', parent })
      parent = `layer-${index}`
      await client.call('Commit', { name: parent, key: 'k' })
    }
    const { mounts } = await client.call('Prepare', { key: 'c', parent })
    const lower = mounts[0].options.find(option => option.startsWith('lowerdir='))!.slice('lowerdir='.length).split(':')
    expect(lower).toHaveLength(121)
    expect(lower.every(path => path.startsWith(join(directory, 'root/s/')))).toBe(true)
    expect(statSync(lower.at(-1)!).ino).toBe(statSync(directory).ino)
  })
})
