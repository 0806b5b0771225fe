// The control protocol: typed calls that end in an answer or a clear error, whatever the other end does.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { randomBytes } from 'node:crypto'
import type { Libp2p } from '@libp2p/interface'
import { SkimmerError } from '../../oci/errors.ts'
import { CONTROL_PROTOCOL } from '../../peer/control.ts'
import type { ControlEvent } from '../../peer/control.ts'
import { ControlClient } from '../../peer/control-client.ts'
import { MAX_HASHES_A_FRAME } from '../../peer/control-streams.ts'
import type { StreamProgress } from '../../peer/control-streams.ts'
import { jsonFrame } from '../../peer/frames.ts'
import { createHost, loadIdentity, parseAddress } from '../../peer/host.ts'
import { serveControl } from '../../peer/serve-control.ts'
import type { ControlHandlers } from '../../peer/serve-control.ts'
import { Lab, logger, makeContent, put, until } from './lab.ts'

const digest = `sha256:${'0'.repeat(64)}`

describe('the control protocol', () => {
  let server: Libp2p
  let client: Libp2p
  const handlers: Partial<ControlHandlers> = {}
  let stop: () => Promise<void>
  beforeAll(async () => {
    [server, client] = [await createHost({ listen: ['/ip4/127.0.0.1/tcp/0'] }), await createHost({ listen: [] })]
    const all = new Proxy(handlers, { get: (target, name) => target[name as keyof ControlHandlers] ?? (() => Promise.reject(new SkimmerError('UNSUPPORTED', 'not here'))) }) as ControlHandlers
    stop = await serveControl({ libp2p: server, logger }, all, { aliveMs: 50 })
  })
  afterAll(async () => {
    await stop()
    await client.stop()
    await server.stop()
  })
  const control = (silenceMs = 5_000): ControlClient => new ControlClient({ libp2p: client }, { peer: server.getMultiaddrs(), silenceMs })

  test('carries progress and an answer; work that takes longer than the allowed silence is waited for', async () => {
    handlers['layer.index'] = async (request, call) => {
      for (const bytes of [1, 2, 3]) call.progress({ bytes, total: 3 })
      await new Promise(resolve => { setTimeout(resolve, 600) })
      return { index: request.layerDigest, diffId: digest, rawLength: 5, packedLength: 3 }
    }
    const seen: number[] = []
    const answer = await control(300).call('layer.index', { reference: 'r', manifestDigest: digest, layerDigest: digest }, { onProgress: ({ bytes }) => seen.push(bytes) })
    expect(answer).toEqual({ index: digest, diffId: digest, rawLength: 5, packedLength: 3 })
    expect(seen).toEqual([1, 2, 3])
  })

  test('carries errors with code and message, but keeps the text of bugs to itself', async () => {
    handlers['chain.resolve'] = () => Promise.reject(new SkimmerError('NOT_FOUND', 'this chain is not known'))
    handlers['grant.renew'] = () => Promise.reject(new Error('password: hunter2'))
    await expect(control().call('chain.resolve', { chainId: digest })).rejects.toMatchObject({ code: 'NOT_FOUND', message: 'this chain is not known' })
    const bug = control().call('grant.renew', { resources: [`layer:${digest}`] })
    await expect(bug).rejects.toMatchObject({ code: 'INTERNAL' })
    await expect(bug).rejects.not.toThrow(/hunter2/)
  })

  test('names the field of a malformed answer', async () => {
    handlers.parents = () => Promise.resolve({ parents: [{ peerId: 'x', addrs: [], whole: 'yes', slots: 1 }] } as never)
    await expect(control().call('parents', { resource: `layer:${digest}`, count: 3 })).rejects.toMatchObject({ code: 'INVALID_DATA', message: expect.stringContaining('parents.0.whole') })
  })

  test('carries a download: its head, its parts, the hashes of their blocks', async () => {
    const hashes = randomBytes(MAX_HASHES_A_FRAME * 32).toString('base64')
    const part = { resource: 'file:abc.1', offset: 0, length: 5, blockBytes: 1024, grant: 'g', last: true }
    handlers['file.open'] = async (request, call) => {
      call.progress({ head: { version: 'v1', length: 5, etag: request.url } })
      call.progress({ part })
      call.progress({ hashes: { resource: part.resource, from: 7, hashes } })
      call.progress({ fetched: 5 })
      return { length: 5, parts: 1, digest }
    }
    const seen: StreamProgress[] = []
    const url = 'http://127.0.0.1/a?b=c'
    const answer = await control().call('file.open', { url, headers: { Authorization: 'Bearer x' }, digest: 'crc32:0a1b2c3d', range: { start: 0, end: 4 }, priority: 6 }, { onProgress: progress => seen.push(progress) })
    expect(answer).toEqual({ length: 5, parts: 1, digest })
    expect(seen).toEqual([{ head: { version: 'v1', length: 5, etag: url } }, { part }, { hashes: { resource: part.resource, from: 7, hashes } }, { fetched: 5 }])
    for (const progress of [{ hashes: { resource: 'file:abc', from: 0, hashes: randomBytes(31).toString('base64') } }, { hashes: { resource: 'file:abc', from: 0, hashes: '' } }, { part: { ...part, resource: 'file:../x/y' } }, {}]) {
      handlers['blob.open'] = async (_, call) => {
        call.progress(progress as never)
        return { length: 0, parts: 0 }
      }
      await expect(control().call('blob.open', { reference: 'registry:5000/name', digest }, { onProgress: () => {} })).rejects.toMatchObject({ code: 'INVALID_DATA', message: expect.stringContaining('malformed progress') })
    }
  })

  test('refuses wishes for files that nobody should try, and shows no secret of them', async () => {
    const url = 'http://127.0.0.1/'
    const refused: [unknown, string][] = [
      [{}, 'neither a url nor a resource'], [{ url: `${url}${'x'.repeat(9000)}` }, 'url'], [{ url, headers: { 'a b': 'hunter2' } }, 'headers'], [{ url, headers: { a: 'hunter2\r\nb: c' } }, 'headers.a'],
      [{ url, headers: Object.fromEntries(Array.from({ length: 65 }, (_, index) => [`h${index}`, 'hunter2'])) }, 'more than 64'], [{ url, range: { start: 5, end: 4 } }, 'ends before it starts'],
      [{ url, digest: 'sha256:hunter2' }, 'a digest is'], [{ url, priority: 7 }, 'priority'], [{ resource: 'hunter2' }, 'resource'],
    ]
    for (const [request, names] of refused) {
      const asked = control().call('file.open', request as never)
      await expect(asked).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(names) })
      await expect(asked).rejects.not.toThrow(/hunter2/)
    }
  })

  test('pushes events until the caller hangs up, and the server learns of that', async () => {
    let ended = false
    handlers.events = async (_, call) => {
      const timer = setInterval(() => call.progress({ type: 'hold', reference: 'alpine' }), 5)
      await new Promise<void>(resolve => { call.signal.addEventListener('abort', () => resolve()) })
      clearInterval(timer)
      ended = true
      return {}
    }
    const abort = new AbortController()
    const events: ControlEvent[] = []
    const call = control().call('events', {}, { signal: abort.signal, onProgress: event => { if (events.push(event) === 3) abort.abort() } })
    await expect(call).rejects.toMatchObject({ code: 'ABORTED' })
    expect(events[0]).toEqual({ type: 'hold', reference: 'alpine' })
    await until('the handler ended', () => ended)
  })

  test('a server that is silent, hangs up, or is not there is an error in time', async () => {
    const mute = await createHost({ listen: ['/ip4/127.0.0.1/tcp/0'] })
    await mute.handle(CONTROL_PROTOCOL, () => { /* says nothing */ })
    const to = new ControlClient({ libp2p: client }, { peer: mute.getMultiaddrs(), silenceMs: 200 })
    await expect(to.call('trace.get', { image: 'i' })).rejects.toMatchObject({ code: 'TIMEOUT' })
    await mute.unhandle(CONTROL_PROTOCOL)
    await mute.handle(CONTROL_PROTOCOL, stream => { stream.addEventListener('message', () => { void stream.close() }) })
    await expect(to.call('trace.get', { image: 'i' })).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    await mute.unhandle(CONTROL_PROTOCOL)
    await mute.handle(CONTROL_PROTOCOL, stream => { stream.send(jsonFrame({ what: 1 }, 100)) })
    await expect(to.call('trace.get', { image: 'i' })).rejects.toMatchObject({ code: 'INVALID_DATA' })
    await mute.stop()
    await expect(to.call('trace.get', { image: 'i' })).rejects.toMatchObject({ code: 'UNAVAILABLE' })
  })
})

describe('a node and its supernodes', () => {
  const lab = new Lab()
  afterAll(() => lab.stop())

  test('an identity survives a restart, and a file that is none is refused', async () => {
    const directory = await lab.directory()
    const first = await loadIdentity(`${directory}/identity`)
    expect((await loadIdentity(`${directory}/identity`)).raw).toEqual(first.raw)
    await expect(loadIdentity('/etc/hostname')).rejects.toMatchObject({ code: 'INVALID_DATA' })
  })

  test('addresses may be written as multiaddr or host:port', () => {
    const id = '12D3KooWMaJw1XRxm67wgvm9QrXc4p3zcYeQDxo1CXB5KSNj537i'
    expect(String(parseAddress('10.0.0.1:4001'))).toBe('/ip4/10.0.0.1/tcp/4001')
    expect(String(parseAddress(`tcp://super.example:4001/${id}`))).toBe(`/dns/super.example/tcp/4001/p2p/${id}`)
    expect(String(parseAddress(`[::1]:4001/p2p/${id}`))).toBe(`/ip6/::1/tcp/4001/p2p/${id}`)
    expect(String(parseAddress(`/ip4/10.0.0.1/tcp/1/p2p/${id}`))).toBe(`/ip4/10.0.0.1/tcp/1/p2p/${id}`)
    for (const bad of ['', 'host', '/nonsense', 'a:b:c', '1.2.3.4:99999999']) expect(() => parseAddress(bad)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
  })

  test('a supernode that comes back is greeted again and told all that is here', async () => {
    const content = makeContent(3)
    const supernode = await lab.supernode()
    const listen = [supernode.address.split('/p2p/')[0]]
    const node = await lab.node('node', { supernodes: [listen[0]] })
    await put(node, content)
    await until('announced', () => supernode.holders.get(content.id)?.get(node.peer.id)?.whole === true)
    const { directory } = supernode.node
    await supernode.stop()
    await until('it is missed', () => node.peer.supernodes.inOrder('').length === 0)
    await expect(node.peer.supernodes.call('trace.get', { image: 'i' })).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    const again = await lab.supernode({ at: { directory }, listen })
    await until('announced again', () => again.holders.get(content.id)?.get(node.peer.id)?.whole === true)
    let held = ''
    let file = ''
    node.peer.on('hold', event => { held = event.reference })
    node.peer.on('hold-file', event => { file = `${event.resource} ${event.name}` })
    await until('it listens', () => again.listeners.size === 1)
    for (const tell of again.listeners) {
      tell({ type: 'hold', reference: 'debian:12' })
      tell({ type: 'hold-file', resource: 'file:abc', name: 'model.bin' })
      tell({ type: 'quarantine', resource: content.id, reason: 'it is not what it says' })
    }
    await until('the events came', () => held === 'debian:12' && file === 'file:abc model.bin' && node.store.get(content.id)?.quarantined === true)
  })

  test('with several supernodes a key belongs to one of them, and to the next when that one is gone', async () => {
    const supernodes = [await lab.supernode(), await lab.supernode(), await lab.supernode()]
    const node = await lab.node('node', { supernodes: supernodes.map(({ address }) => address) })
    await until('all are up', () => node.peer.supernodes.inOrder('').length === 3)
    const owners = new Set(Array.from({ length: 60 }, (_, index) => node.peer.supernodes.inOrder(`layer:${index}`)[0].peerId))
    expect(owners.size).toBe(3)
    const order = node.peer.supernodes.inOrder('layer:x').map(({ peerId }) => peerId)
    await supernodes.find(({ node: { peer } }) => peer.id === order[0])!.stop()
    const { grant } = await node.peer.supernodes.call('grant.renew', { resources: [`layer:${digest}`] }, { key: 'layer:x' })
    expect(grant).toContain('.')
    await until('it is missed', () => node.peer.supernodes.inOrder('').length === 2)
    expect(node.peer.supernodes.inOrder('layer:x').map(({ peerId }) => peerId)).toEqual(order.slice(1))
  })
})
