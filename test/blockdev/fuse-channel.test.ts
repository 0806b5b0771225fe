// The FUSE mount in one process: reads are right whether blocks are here or come late, and every wait ends.
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { capabilities } from '../../blockdev/capabilities.ts'
import { FuseChannel } from '../../blockdev/fuse-channel.ts'
import type { FuseChannelComponents, FuseChannelOptions } from '../../blockdev/fuse-channel.ts'
import { FuseControl } from '../../blockdev/fuse-control.ts'
import { mountFuse } from '../../blockdev/fuse-mount.ts'
import { mountsUnder } from '../../blockdev/mount-table.ts'
import type { ReadFailure } from '../../blockdev/parked-reads.ts'
import { readBy, run, someBytes, temporaryDirectory, testLayer, until, whyNoMounts } from './layer-fixture.ts'

const suite = whyNoMounts === '' ? describe : describe.skip

suite(`the FUSE channel ${whyNoMounts}`, () => {
  let directory: string
  let mountPoint: string
  let channel: FuseChannel
  const closers: (() => void)[] = []

  beforeEach(() => {
    directory = temporaryDirectory()
    mountPoint = path.join(directory, 'fs')
  })

  afterEach(async () => {
    // An aborted connection said so already.
    const gone = channel.connected ? new Promise<void>((resolve) => channel.once('gone', resolve)) : Promise.resolve()
    const unmounted = await run('umount', mountPoint)
    if (unmounted.status !== 0) await run('umount', '-l', mountPoint)
    await gone
    expect(await channel.stop()).toEqual({ stuck: 0 })
    expect(mountsUnder(directory)).toEqual([])
    for (const close of closers.splice(0)) close()
    fs.rmSync(directory, { recursive: true })
  })

  async function serve(components: Partial<FuseChannelComponents> = {}, options: Partial<FuseChannelOptions> = {}): Promise<FuseChannel> {
    const mount = mountFuse(mountPoint)
    closers.push(() => fs.closeSync(mount.fd))
    const source = { read: () => Promise.reject(new Error('nothing should be missing')) }
    channel = new FuseChannel({ source, logger: pino({ level: 'silent' }), ...components }, { fd: mount.fd, mountPoint, negotiated: mount.negotiated, ...options })
    await channel.start()
    return channel
  }

  function layer(length: number, options: Parameters<typeof testLayer>[2] = {}) {
    const made = testLayer(directory, someBytes(length), options)
    closers.push(made.close)
    return made
  }

  test('serves a layer whose blocks are here, byte for byte, and lists it', async () => {
    const one = layer(9_000_123, { here: true })
    const served = await serve()
    served.publishLayer(one.name, one.resource)
    served.restored()
    expect((await run('ls', mountPoint)).stdout.toString()).toBe('disks\nimages\nlayers\n')
    expect((await run('ls', path.join(mountPoint, 'layers'))).stdout.toString()).toBe(`${one.name}\n`)
    const whole = await run('cat', served.layerPath(one.name))
    expect(whole.stdout.equals(one.bytes)).toBe(true)
    await run('sh', '-c', 'echo 3 > /proc/sys/vm/drop_caches')
    for (const [offset, length] of [[0, 1], [511, 4097], [262_143, 2], [5_000_000, 1_500_000], [9_000_100, 500], [9_000_123, 10], [20_000_000, 5]]) {
      expect((await readBy(served.layerPath(one.name), offset, length)).equals(one.bytes.subarray(offset, offset + length))).toBe(true)
    }
  })

  test('brings missing blocks once and only those that a read needs', async () => {
    const one = layer(6_000_000)
    const asked: number[] = []
    const served = await serve({
      source: {
        read: async (_, ranges) => {
          await new Promise((resolve) => setImmediate(resolve))
          for (const range of ranges) for (let block = range.from; block < range.to; block++) {
            asked.push(block)
            one.present(block, block + 1)
          }
        },
      },
    })
    served.publishLayer(one.name, one.resource)
    served.restored()
    expect((await readBy(served.layerPath(one.name), 3_000_000, 100)).equals(one.bytes.subarray(3_000_000, 3_000_100))).toBe(true)
    expect(asked.length).toBe(1)
    expect((await run('cat', served.layerPath(one.name))).stdout.equals(one.bytes)).toBe(true)
  })

  test('a read that no source can answer ends in EIO after the bounded wait, and says why', async () => {
    const one = layer(1_000_000)
    const failures: ReadFailure[] = []
    const registry = new Registry()
    const served = await serve({
      source: { read: (_id, _ranges, { signal }) => new Promise((_resolve, reject) => signal.addEventListener('abort', () => reject(signal.reason as Error))) },
      onReadError: (failure) => failures.push(failure),
      metrics: registry,
    }, { waitMs: 300 })
    served.publishLayer(one.name, one.resource)
    served.restored()
    await expect(readBy(served.layerPath(one.name), 0, 10)).rejects.toThrow('Input/output error')
    expect(failures[0].reason).toContain('no source delivered the blocks within 300 ms')
    expect(failures[0].resourceIds).toEqual([one.resource.id])
    expect(await registry.metrics()).toMatch(/skimmer_blockdev_read_errors_total [1-9]/)
    // The next read may succeed: nothing is remembered against it.
    one.present(0, one.resource.table.count)
    expect((await readBy(served.layerPath(one.name), 0, 10)).equals(one.bytes.subarray(0, 10))).toBe(true)
  })

  test('the reason a source gives is the reason of the EIO', async () => {
    const one = layer(1_000_000)
    const failures: ReadFailure[] = []
    const served = await serve({ source: { read: () => Promise.reject(new Error('the registry answered 401')) }, onReadError: (failure) => failures.push(failure) })
    served.publishLayer(one.name, one.resource)
    served.restored()
    await expect(readBy(served.layerPath(one.name), 0, 10)).rejects.toThrow('Input/output error')
    expect(failures[0].reason).toBe('the registry answered 401')
  })

  test('a reader that is killed while it waits goes away at once; another one still gets the data', async () => {
    const one = layer(1_000_000)
    const { promise: delivered, resolve: deliver } = Promise.withResolvers<void>()
    const asked = { count: 0 }
    const served = await serve({ source: { read: async () => { asked.count++; await delivered; one.present(0, one.resource.table.count) } } })
    served.publishLayer(one.name, one.resource)
    served.restored()
    const victim = spawn('dd', [`if=${served.layerPath(one.name)}`, 'of=/dev/null', 'bs=4096', 'count=1', 'iflag=fullblock'], { stdio: 'ignore' })
    await until(() => asked.count > 0)
    const ended = new Promise((resolve) => victim.once('exit', (_, signal) => resolve(signal)))
    victim.kill('SIGKILL')
    expect(await ended).toBe('SIGKILL')
    const other = readBy(served.layerPath(one.name), 0, 4096)
    deliver()
    expect((await other).equals(one.bytes.subarray(0, 4096))).toBe(true)
  })

  test('what was published before a restart is waited for, not refused', async () => {
    const one = layer(500_000, { here: true })
    const served = await serve()
    const early = run('cat', served.layerPath(one.name))
    const missing = run('cat', served.layerPath('0123'))
    const listing = run('ls', path.join(mountPoint, 'layers'))
    await until(() => served.waiting >= 1)
    served.publishLayer(one.name, one.resource)
    served.restored()
    expect((await early).stdout.equals(one.bytes)).toBe(true)
    expect((await missing).stderr).toContain('No such file')
    expect((await listing).stdout.toString()).toBe(`${one.name}\n`)
  })

  test('nothing can be written', async () => {
    const one = layer(1000, { here: true })
    const served = await serve()
    served.publishLayer(one.name, one.resource)
    served.restored()
    expect((await run('touch', path.join(mountPoint, 'layers', 'new'))).stderr).toContain('Read-only')
    expect((await run('sh', '-c', `echo x > ${served.layerPath(one.name)}`)).stderr).toContain('Read-only')
  })

  test('a withdrawn layer is gone, and its files may be closed then', async () => {
    const one = layer(300_000, { here: true })
    const two = layer(400_000, { here: true })
    const served = await serve()
    served.publishLayer(one.name, one.resource)
    served.publishLayer(two.name, two.resource)
    served.restored()
    await run('cat', served.layerPath(one.name))
    await served.withdraw(`layers/${one.name}`)
    expect(served.list('layers')).toEqual([two.name])
    expect((await run('ls', path.join(mountPoint, 'layers'))).stdout.toString()).toBe(`${two.name}\n`)
    await served.withdraw(`layers/${one.name}`)
    await expect(served.withdraw('elsewhere/x')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  })

  test('tells which blocks a start touched, each once, in order', async () => {
    const one = layer(4_000_000, { here: true })
    const touched: number[] = []
    const served = await serve({ onTouch: (id, blocks) => { expect(id).toBe(one.resource.id); touched.push(...blocks) } })
    served.publishLayer(one.name, one.resource)
    served.restored()
    served.watchTouches(one.name, true)
    await readBy(served.layerPath(one.name), 2_000_000, 10)
    await readBy(served.layerPath(one.name), 0, 10)
    await until(() => touched.includes(0))
    expect(new Set(touched).size).toBe(touched.length)
    expect(touched.at(0)).toBeGreaterThan(5)
    served.watchTouches(one.name, false)
  })

  test('a virtual disk is its metadata, then layers at their addresses, and zeros between', async () => {
    const one = layer(700_160, { here: true })
    const two = layer(300_032, { here: true })
    const metadata = someBytes(5000)
    const metadataPath = path.join(directory, 'metadata')
    fs.writeFileSync(metadataPath, metadata)
    const served = await serve()
    served.publishLayer(one.name, one.resource)
    served.publishLayer(two.name, two.resource)
    served.publishDisk('disk', { metadataPath, length: 1_500_000, segments: [{ start: 1_000_448, length: 300_032, layer: two.name }, { start: 8192, length: 700_160, layer: one.name }] })
    served.restored()
    const expected = Buffer.alloc(1_500_000)
    metadata.copy(expected)
    one.bytes.copy(expected, 8192)
    two.bytes.copy(expected, 1_000_448)
    expect((await run('cat', served.diskPath('disk'))).stdout.equals(expected)).toBe(true)
    expect(() => served.publishDisk('bad', { metadataPath, length: 10_000, segments: [{ start: 512, length: 100, layer: one.name }] })).toThrow(/overlaps/)
  })

  test('a connection that hangs can be aborted: readers get an error at once', async () => {
    const one = layer(100_000)
    const asked = { count: 0 }
    const served = await serve({ source: { read: () => { asked.count++; return new Promise(() => undefined) } } })
    served.publishLayer(one.name, one.resource)
    served.restored()
    await FuseControl.enable()
    const control = new FuseControl(mountsUnder(mountPoint)[0].device)
    const reading = readBy(served.layerPath(one.name), 0, 10).then(() => 'read', (error: Error) => error.message)
    await until(() => asked.count > 0)
    expect(control.waiting()).toBeGreaterThan(0)
    await control.abort()
    expect(await reading).not.toBe('read')
    await until(() => control.waiting() === undefined || control.waiting() === 0)
  })

  test('doctor learns what works here, and why the rest does not', async () => {
    const served = await serve()
    const facts = await capabilities(directory, served.options.negotiated)
    expect(facts.map(({ name }) => name)).toEqual(['root', 'perl', 'fuse', 'resend', 'overlay', 'erofs-file', 'erofs-loop'])
    for (const { because } of facts) expect(because).not.toBe('')
    expect(facts.find(({ name }) => name === 'resend')?.works).toBe(served.options.negotiated.resend)
    served.restored()
  })

  test('a thread in the middle of nothing can be stopped while the mount stays', async () => {
    const one = layer(1000, { here: true })
    const served = await serve()
    served.publishLayer(one.name, one.resource)
    served.restored()
    expect(await served.stop()).toEqual({ stuck: 0 })
    served.emit('gone')
    const again = new FuseChannel({ source: { read: () => Promise.reject(new Error('none')) }, logger: pino({ level: 'silent' }) }, served.options)
    channel = again
    await again.start()
    again.publishLayer(one.name, one.resource)
    again.restored()
    expect((await run('cat', again.layerPath(one.name))).stdout.equals(one.bytes)).toBe(true)
  })
})
