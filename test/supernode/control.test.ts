// What nodes and supernode say to each other beyond images: who has what, traces, quarantine, events; and what malformed messages meet.
import { afterEach, describe, expect, test } from '@jest/globals'
import * as fc from 'fast-check'
import { multiaddr } from '@multiformats/multiaddr'
import type { Stream } from '@libp2p/interface'
import { digestOf } from '../../oci/digest.ts'
import { buildBlockTable } from '../../image/block-table.ts'
import { CONTROL_PROTOCOL } from '../../peer/control.ts'
import type { ControlEvent } from '../../peer/control.ts'
import { FrameCutter, jsonFrame, parseJson } from '../../peer/frames.ts'
import { bitmapFill } from '../../supernode/bitmap-fill.ts'
import type { Supernode } from '../../supernode/supernode.ts'
import { haveRegistry, startRegistry } from '../oci/registry-fixture.ts'
import { Cleanup, joinNode, push, startSupernode, tarOf, until } from './lab.ts'

const cleanup = new Cleanup()
afterEach(() => cleanup.run())

const RESOURCE = `layer:${digestOf('a layer')}`
const OTHER = `layer:${digestOf('another layer')}`

describe('who has what', () => {
  test('what a node announces is offered to others, near ones first, and no longer when it is gone', async () => {
    const supernode = await startSupernode(cleanup)
    const near = await joinNode(cleanup, supernode, { labels: { zone: 'a', rack: '1' } })
    const far = await joinNode(cleanup, supernode, { labels: { zone: 'b', rack: '1' } })
    const asker = await joinNode(cleanup, supernode, { labels: { zone: 'a', rack: '1' } })
    await far.control.call('announce', { have: [{ resource: RESOURCE, whole: true }], gone: [] })
    await near.control.call('announce', { have: [{ resource: RESOURCE, blocks: Buffer.from([0xff, 0x0f]).toString('base64') }], gone: [] })

    const { parents } = await asker.control.call('parents', { resource: RESOURCE, count: 4 })
    expect(parents.map(({ peerId, whole }) => [peerId, whole])).toEqual(expect.arrayContaining([[near.peerId, false], [far.peerId, true]]))
    expect(parents.find(({ peerId }) => peerId === near.peerId)!.addrs[0]).toContain(`/p2p/${near.peerId}`)
    expect((await asker.control.call('parents', { resource: RESOURCE, count: 4, exclude: [near.peerId] })).parents.map(({ peerId }) => peerId)).toEqual([far.peerId])

    await far.control.call('announce', { have: [], gone: [RESOURCE] })
    expect((await asker.control.call('parents', { resource: RESOURCE, count: 4 })).parents.map(({ peerId }) => peerId)).toEqual([near.peerId])
    await asker.control.call('report', { resource: RESOURCE, from: [{ peerId: near.peerId, bytes: 0, blocks: 0, failures: 4, millis: 100 }] })
    expect((await asker.control.call('parents', { resource: RESOURCE, count: 4 })).parents).toEqual([])
  })

  test('addresses that lead to somebody else are not passed on', async () => {
    const supernode = await startSupernode(cleanup)
    const node = await joinNode(cleanup, supernode)
    const asker = await joinNode(cleanup, supernode)
    await node.control.call('hello', { version: '0', addrs: ['nonsense', `/ip4/10.9.9.9/tcp/1/p2p/${asker.peerId}`, '/ip4/10.1.1.1/tcp/7'], labels: {}, uploadSlots: 4 })
    await node.control.call('announce', { have: [{ resource: RESOURCE, whole: true }], gone: [] })
    const { parents } = await asker.control.call('parents', { resource: RESOURCE, count: 4 })
    expect(parents[0].addrs).toEqual([`/ip4/10.1.1.1/tcp/7/p2p/${node.peerId}`])
  })

  test('a bitmap counts its bits, but only those of blocks that exist, and never as whole', () => {
    expect(bitmapFill(Buffer.from([0b1111]), 8)).toBe(0.5)
    expect(bitmapFill(Buffer.from([0xff]), 4)).toBe(0.999)
    expect(bitmapFill(Buffer.alloc(0), 100)).toBe(0)
    expect(bitmapFill(Buffer.from([0xff]), 0)).toBe(0)
    fc.assert(fc.property(fc.uint8Array({ maxLength: 40 }), fc.integer({ min: 1, max: 400 }), (bitmap, blocks) => {
      let set = 0
      for (let block = 0; block < Math.min(blocks, bitmap.length * 8); block++) if ((bitmap[block >> 3] >> (block & 7)) & 1) set++
      expect(bitmapFill(bitmap, blocks)).toBeCloseTo(Math.min(set / blocks, 0.999), 10)
    }))
  })
})

const withRegistry = haveRegistry ? describe : describe.skip
withRegistry('traces (needs docker-registry)', () => {
  test('are merged over nodes and come with the image; only of what a node may read', async () => {
    const registry = await startRegistry()
    cleanup.add(() => registry.stop())
    await push(registry.host, 'app:1', [await tarOf({ a: 2_000_000 })])
    const supernode = await startSupernode(cleanup)
    const reference = `${registry.host}/app:1`
    const [first, second] = [await joinNode(cleanup, supernode), await joinNode(cleanup, supernode)]
    const image = await first.control.call('image.resolve', { reference })
    const { index } = await first.control.call('layer.index', { reference, manifestDigest: image.manifestDigest, layerDigest: image.layers[0].digest })
    const name = image.layers[0].diffId.slice(7) // one layer: its diffID is the chainID
    const resource = `layer:${index}`

    await expect(second.control.call('trace.put', { image: name, trace: { resources: [resource], blocks: [[0, 1]] } })).rejects.toMatchObject({ code: 'FORBIDDEN' })
    await second.control.call('image.resolve', { reference })
    await first.control.call('trace.put', { image: name, trace: { resources: [resource], blocks: [[0, 5], [0, 2], [0, 9]] } })
    await second.control.call('trace.put', { image: name, trace: { resources: [resource], blocks: [[0, 5], [0, 2], [0, 2], [0, 7]] } })
    const { trace } = await second.control.call('image.resolve', { reference })
    expect(trace!.resources).toEqual([resource])
    expect(trace!.blocks.map(([, block]) => block).slice(0, 2)).toEqual([5, 2])
    expect(new Set(trace!.blocks.map(([, block]) => block))).toEqual(new Set([5, 2, 9, 7]))
    expect((await first.control.call('trace.get', { image: name })).trace).toEqual(trace)
    expect((await first.control.call('trace.get', { image: 'unknown' })).trace).toBeUndefined()
  })
})

/** Puts a resource into the supernode's store whose blocks are right but whose stream is not what the diffID says. */
async function plant(supernode: Supernode, diffId: string): Promise<string> {
  const bytes = Buffer.from('the bytes of a layer')
  const hash = Buffer.from(digestOf(bytes).slice(7), 'hex')
  const id = `layer:${digestOf(`index of ${diffId}`)}`
  const resource = await supernode.parts.store.add(id, buildBlockTable([{ rawLength: bytes.length, packedLength: bytes.length, codec: 0, hash }]), { diffId })
  await resource.putBlock(0, bytes)
  return id
}

describe('quarantine', () => {
  test('a true claim is proved here, told to all who listen and to those who come later; a false one is not', async () => {
    const supernode = await startSupernode(cleanup)
    const [claimer, listener] = [await joinNode(cleanup, supernode), await joinNode(cleanup, supernode)]
    const events: ControlEvent[] = []
    const stop = new AbortController()
    cleanup.add(() => stop.abort())
    listener.control.call('events', {}, { signal: stop.signal, onProgress: event => events.push(event) }).catch(() => {})
    await until(() => supernode.parts.control.listeners.includes(listener.peerId))

    const wrong = await plant(supernode, digestOf('not these bytes'))
    const right = await plant(supernode, digestOf('the bytes of a layer'))
    await claimer.control.call('announce', { have: [{ resource: wrong, whole: true }], gone: [] })
    await claimer.control.call('quarantine', { resource: right, reason: 'I say so' })
    await claimer.control.call('quarantine', { resource: wrong, reason: 'it does not match' })
    await claimer.control.call('quarantine', { resource: OTHER, reason: 'not even here' })
    await until(() => events.length > 0)
    await supernode.parts.quarantine.idle()
    expect(events).toEqual([{ type: 'quarantine', resource: wrong, reason: expect.any(String) }])
    expect([...supernode.parts.quarantine.entries()].map(([resource]) => resource)).toEqual([wrong])
    await expect(listener.control.call('parents', { resource: wrong, count: 1 })).rejects.toMatchObject({ code: 'FORBIDDEN' })

    const late: ControlEvent[] = []
    const latecomer = await joinNode(cleanup, supernode)
    latecomer.control.call('events', {}, { signal: stop.signal, onProgress: event => late.push(event) }).catch(() => {})
    await until(() => late.length > 0)
    expect(late[0]).toMatchObject({ resource: wrong })
  })
})

/** A node that sends what it likes. */
async function raw(supernode: Supernode) {
  const node = await joinNode(cleanup, supernode)
  /** Sends bytes as they are; the JSON answer, or undefined when the supernode hung up. */
  return async (bytes: Uint8Array): Promise<unknown> => {
    const stream: Stream = await node.libp2p.dialProtocol(multiaddr(supernode.addrs[0]), CONTROL_PROTOCOL)
    return await new Promise(resolve => {
      const cutter = new FrameCutter(1 << 20, body => resolve(parseJson(body)))
      stream.addEventListener('message', event => cutter.push(event.data))
      stream.addEventListener('close', () => resolve(undefined))
      stream.addEventListener('remoteCloseWrite', () => resolve(undefined))
      stream.send(bytes)
    })
  }
}
const frame = (value: unknown): Buffer => jsonFrame(value, 1 << 20)

describe('malformed messages', () => {
  test('are refused with the field that is wrong, and the supernode lives', async () => {
    const supernode = await startSupernode(cleanup)
    const send = await raw(supernode)
    const code = async (value: unknown) => (await send(frame(value)) as { error: { code: string; message: string } }).error
    expect(await code({ op: 'nonsense' })).toMatchObject({ code: 'INVALID_ARGUMENT' })
    expect(await code({ op: 'constructor' })).toMatchObject({ code: 'INVALID_ARGUMENT' })
    expect(await code(null)).toMatchObject({ code: 'INVALID_ARGUMENT' })
    expect((await code({ op: 'parents', resource: '../../etc', count: 1 })).message).toContain('resource')
    expect((await code({ op: 'parents', resource: RESOURCE, count: 1e9 })).message).toContain('count')
    expect((await code({ op: 'announce', have: [{ resource: RESOURCE, blocks: '%%%' }], gone: [] })).code).toBe('INVALID_ARGUMENT')
    expect((await code({ op: 'trace.put', image: 'x', trace: { resources: [], blocks: [[3, 1]] } })).code).toBe('INVALID_ARGUMENT')
    expect(await send(Buffer.from([0xff, 0xff, 0xff, 0xff, 0, 0]))).toBeUndefined()
    expect((await joinNode(cleanup, supernode)).welcome.peerId).toBe(supernode.peerId)
  })

  test('whatever they are, never crash it', async () => {
    const supernode = await startSupernode(cleanup)
    const send = await raw(supernode)
    const operations = fc.constantFrom('hello', 'image.resolve', 'layer.index', 'chain.resolve', 'announce', 'parents', 'report', 'trace.put', 'grant.renew', 'quarantine')
    const message = fc.tuple(operations, fc.dictionary(fc.constantFrom('resource', 'count', 'have', 'gone', 'trace', 'reference', 'addrs', 'labels', 'uploadSlots', 'version', 'from', 'resources', 'chainId', 'image', 'reason'), fc.jsonValue()))
    await fc.assert(fc.asyncProperty(message, async ([op, fields]) => {
      expect(await send(frame({ ...fields, op }))).toMatchObject({ error: { code: expect.stringMatching(/INVALID|FORBIDDEN/) } })
    }), { numRuns: 60 })
    expect(supernode.parts.store.list()).toEqual([])
  })
})
