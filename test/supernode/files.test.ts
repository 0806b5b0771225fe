// Files through the supernode: brought once for all, told on while they come, never two versions in one, never to whom the source refuses.
import { randomBytes } from 'node:crypto'
import { utimes, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { afterEach, describe, expect, jest, test } from '@jest/globals'
import { blockBytesFor } from '../../peer/file-blocks.ts'
import { GrantVerifier } from '../../peer/grants.ts'
import type { ControlRequest } from '../../peer/control.ts'
import type { Supernode } from '../../supernode/supernode.ts'
import type { SupernodeConfigInput } from '../../supernode/supernode-config.ts'
import { haveNginx, startNginx } from '../source/nginx-fixture.ts'
import type { NginxOptions, RunningNginx } from '../source/nginx-fixture.ts'
import { Cleanup, joinNode, startSupernode, temporaryDirectory, until } from './lab.ts'
import { StreamCall, contentOf, sha256 } from './stream-caller.ts'

const withNginx = haveNginx ? describe : describe.skip
const cleanup = new Cleanup()
afterEach(() => cleanup.run())

const MIB = 1024 * 1024
/** Blocks of files of this size. */
const BLOCK = blockBytesFor(MIB)

async function nginx(options: NginxOptions = {}): Promise<RunningNginx> {
  const running = await startNginx(options)
  cleanup.add(() => running.stop())
  return running
}

/** Last changed long ago: what changed within the second of the answer has no version yet. */
async function publish(server: { root: string }, name: string, bytes: Uint8Array, changed = 1_600_000_000): Promise<void> {
  const path = join(server.root, name)
  await writeFile(path, bytes)
  await utimes(path, changed, changed)
}

const supernodeOf = (config: Partial<SupernodeConfigInput> = {}): Promise<Supernode> => startSupernode(cleanup, { ...config, files: { loopback: true, ...config.files } })

async function caller(supernode: Supernode) {
  const node = await joinNode(cleanup, supernode)
  return { ...node, open: (request: ControlRequest<'file.open'>) => new StreamCall(node.control, 'file.open', request) }
}

/** nginx writes its log a moment after its answer. */
const statuses = async (server: RunningNginx, least: number): Promise<number[]> => {
  const requests = await until(async () => {
    const all = await server.requests()
    return all.length >= least && all
  })
  return requests.map(({ status }) => status)
}

const sent = async (server: RunningNginx): Promise<number> => (await server.requests()).reduce((sum, { bytes }) => sum + bytes, 0)

withNginx('a file (needs nginx)', () => {
  test('is read from its source once for all who ask, in head, one part, hashes and an answer, with a grant for each', async () => {
    const server = await nginx()
    const bytes = randomBytes(5 * MIB + 12_345)
    await publish(server, 'a.bin', bytes)
    const supernode = await supernodeOf()
    const nodes = await Promise.all(Array.from({ length: 4 }, () => caller(supernode)))
    const url = `${server.url}/a.bin`
    const calls = nodes.map(node => node.open({ url }))
    for (const call of calls) expect(await call.answer).toEqual({ length: bytes.length, parts: 1 })
    expect(sha256(await contentOf(supernode, calls[0]))).toBe(sha256(bytes))
    await statuses(server, 1)
    expect(await sent(server)).toBe(bytes.length)

    const [first] = calls
    expect(first.order.slice(0, 2)).toEqual(['head', 'part'])
    expect(first.head).toMatchObject({ length: bytes.length, contentType: 'application/octet-stream', etag: expect.any(String), lastModified: expect.any(String) })
    expect(first.parts).toMatchObject([{ resource: expect.stringMatching(/^file:[0-9a-f]{64}$/), offset: 0, length: bytes.length, blockBytes: BLOCK, last: true }])
    expect(first.fetched.at(-1)).toBe(bytes.length)
    for (const call of calls) expect([...call.hashes]).toEqual([...first.hashes])
    const verifier = new GrantVerifier()
    verifier.trust(nodes[2].welcome.grantKey)
    expect(verifier.check(calls[2].parts[0].grant, nodes[2].peerId).resources).toEqual([first.parts[0].resource])
    expect(() => verifier.check(calls[2].parts[0].grant, nodes[0].peerId)).toThrow(/another peer/)
    expect((await nodes[0].control.call('grant.renew', { resources: [first.parts[0].resource] })).grant).toBeTruthy()

    // Later: nothing but what is stored, and within the expiry not even a question.
    const later = nodes[3].open({ url })
    await later.answer
    expect([...later.hashes]).toEqual([...first.hashes])
    expect(await statuses(server, 1)).toHaveLength(1)
    const fresh = nodes[3].open({ url, fresh: true })
    await fresh.answer
    expect(await statuses(server, 2)).toEqual([200, 304])
  })

  test('is told on while it comes: hashes long before the end, also to who comes later', async () => {
    const server = await nginx({ location: 'limit_rate 2m;' })
    await publish(server, 'slow.bin', randomBytes(6 * MIB))
    const supernode = await supernodeOf()
    const [early, late] = [await caller(supernode), await caller(supernode)]
    const url = `${server.url}/slow.bin`
    const first = early.open({ url, pieceLength: 256 * 1024 })
    await until(() => first.told >= 2)
    expect(first.told).toBeLessThan(24)
    const second = late.open({ url, pieceLength: 256 * 1024 })
    await until(() => second.told >= 2)
    expect(second.told).toBeLessThan(24)
    first.hangUp()
    await expect(first.answer).rejects.toMatchObject({ code: 'ABORTED' })
    expect(await second.answer).toMatchObject({ length: 6 * MIB })
    expect(second.told).toBe(24)
    expect(await statuses(server, 1)).toHaveLength(1)
  })

  test('goes on to its end when all who asked have gone', async () => {
    const server = await nginx({ location: 'limit_rate 4m;' })
    await publish(server, 'a.bin', randomBytes(3 * MIB))
    const supernode = await supernodeOf()
    const { open } = await caller(supernode)
    const call = open({ url: `${server.url}/a.bin` })
    await until(() => call.told > 0)
    call.hangUp()
    const [work] = supernode.parts.streams.inWork()
    await work.over
    expect(work.failure).toBeUndefined()
    expect(supernode.parts.store.get(call.parts[0].resource)).toMatchObject({ whole: true, open: false, pinned: false })
  })

  test('is asked for once when many come one after the other, before the first has its answer and after', async () => {
    const server = await nginx()
    const bytes = randomBytes(3 * MIB)
    for (let round = 0; round < 5; round++) await publish(server, `${round}.bin`, bytes)
    const supernode = await supernodeOf()
    const { open } = await caller(supernode)
    for (let round = 0; round < 5; round++) {
      const calls: StreamCall[] = []
      for (let turn = 0; turn < 60; turn++) {
        calls.push(open({ url: `${server.url}/${round}.bin` }))
        await new Promise(resolve => { setImmediate(resolve) })
      }
      for (const call of calls) await call.answer
    }
    expect(await statuses(server, 5)).toEqual([200, 200, 200, 200, 200])
    expect(await sent(server)).toBe(5 * bytes.length)
  })

  test('whose source can tell is asked again after ten seconds, not after the expiry of those that cannot', async () => {
    const server = await nginx()
    await publish(server, 'a.bin', randomBytes(MIB))
    const { open } = await caller(await supernodeOf())
    const url = `${server.url}/a.bin`
    const before = open({ url })
    await before.answer
    await publish(server, 'a.bin', randomBytes(MIB), 1_700_000_000)
    const crowd = open({ url })
    await crowd.answer
    expect(crowd.head!.version).toBe(before.head!.version)
    const clock = jest.spyOn(Date, 'now').mockImplementation(() => Math.round(performance.timeOrigin + performance.now()) + 11_000)
    try {
      const after = open({ url })
      await after.answer
      expect(after.head!.version).not.toBe(before.head!.version)
      const wanted = open({ url, expireMs: 60_000 })
      await wanted.answer
      expect(wanted.head!.version).toBe(after.head!.version)
    } finally {
      clock.mockRestore()
    }
    expect(await statuses(server, 2)).toEqual([200, 200])
  })

  test('that changed at the source is another version; nobody gets a mixture', async () => {
    const server = await nginx()
    const [old, young] = [randomBytes(2 * MIB), randomBytes(3 * MIB)]
    await publish(server, 'a.bin', old)
    const supernode = await supernodeOf({ files: { expireMs: 0 } })
    const { open } = await caller(supernode)
    const url = `${server.url}/a.bin`
    const before = open({ url })
    await before.answer
    await publish(server, 'a.bin', young, 1_700_000_000)
    const after = open({ url })
    await after.answer
    expect(after.head!.version).not.toBe(before.head!.version)
    expect(after.parts[0].resource).not.toBe(before.parts[0].resource)
    expect(sha256(await contentOf(supernode, before))).toBe(sha256(old))
    expect(sha256(await contentOf(supernode, after))).toBe(sha256(young))
    // Unchanged since: the source is asked, and says so.
    await open({ url }).answer
    expect(await statuses(server, 3)).toEqual([200, 200, 304])
  })

  test('with another token is given only when the source takes that token, and then from here', async () => {
    const server = await nginx({ http: 'map $http_authorization $ok { default 0; "Bearer one" 1; "Bearer two" 1; }', location: 'if ($ok = 0) { return 401; }' })
    const bytes = randomBytes(2 * MIB)
    await publish(server, 'private.bin', bytes)
    const supernode = await supernodeOf()
    const url = `${server.url}/private.bin`
    const [one, two, thief] = [await caller(supernode), await caller(supernode), await caller(supernode)]
    const first = one.open({ url, headers: { Authorization: 'Bearer one' } })
    await first.answer
    const second = two.open({ url, headers: { authorization: 'Bearer two' } })
    await second.answer
    expect([...second.hashes]).toEqual([...first.hashes])
    for (const headers of [undefined, { authorization: 'Bearer three' }]) {
      const refused = thief.open({ url, headers })
      await expect(refused.answer).rejects.toMatchObject({ code: 'UNAUTHORIZED' })
      expect(refused.order).toEqual([])
    }
    await expect(thief.control.call('grant.renew', { resources: [first.parts[0].resource] })).rejects.toMatchObject({ code: 'FORBIDDEN' })
    await expect(thief.open({ resource: first.parts[0].resource }).answer).rejects.toMatchObject({ code: 'NOT_FOUND' })
    expect(await statuses(server, 4)).toEqual([200, 304, 401, 401])
    // Who asked before is believed for a while.
    await two.open({ url, headers: { authorization: 'Bearer two' } }).answer
    expect(await statuses(server, 4)).toHaveLength(4)
  })

  test('that is asked for with different tokens at the same moment is still read once', async () => {
    const server = await nginx({ location: 'limit_rate 4m;' })
    await publish(server, 'a.bin', randomBytes(2 * MIB))
    const supernode = await supernodeOf()
    const { open } = await caller(supernode)
    const calls = Array.from({ length: 8 }, (_, at) => open({ url: `${server.url}/a.bin`, headers: { authorization: `Bearer ${at}` } }))
    await Promise.all(calls.map(call => call.answer))
    expect(new Set(calls.map(call => call.parts[0].resource)).size).toBe(1)
    expect((await statuses(server, 8)).filter(status => status === 200)).toHaveLength(1)
  })

  test('without validators is read again after the expiry, and never shared between credentials', async () => {
    const server = await nginx({ location: 'etag off; add_header Last-Modified ""; if_modified_since off;' })
    await publish(server, 'a.bin', randomBytes(MIB))
    const supernode = await supernodeOf()
    const { open } = await caller(supernode)
    const url = `${server.url}/a.bin`
    const first = open({ url })
    await first.answer
    const again = open({ url })
    await again.answer
    expect(again.parts[0].resource).toBe(first.parts[0].resource)
    const other = open({ url, headers: { cookie: 'me' } })
    await other.answer
    expect(other.parts[0].resource).not.toBe(first.parts[0].resource)
    expect(await statuses(server, 2)).toHaveLength(2)
    const expired = open({ url, expireMs: 0 })
    await expired.answer
    expect(expired.parts[0].resource).not.toBe(first.parts[0].resource)
    expect(await statuses(server, 3)).toHaveLength(3)
  })

  test('whose source tells no length comes in parts, each told when it was read', async () => {
    const server = await nginx({ http: 'gzip on; gzip_types *; gzip_comp_level 1;' })
    const bytes = randomBytes(18 * MIB)
    await publish(server, 'a.bin', bytes)
    const supernode = await supernodeOf()
    const { open } = await caller(supernode)
    const call = open({ url: `${server.url}/a.bin`, headers: { 'accept-encoding': 'gzip' } })
    const answer = await call.answer
    expect(call.head!.length).toBeUndefined()
    expect(call.head!.contentEncoding).toBe('gzip')
    expect(answer.parts).toBe(3)
    expect(call.parts.map(({ length, last }) => [length, last])).toEqual([[8 * MIB, undefined], [8 * MIB, undefined], [answer.length - 16 * MIB, true]])
    expect(call.parts.map(({ resource }) => resource.replace(/^file:[0-9a-f]{64}/, ''))).toEqual(['', '.1', '.2'])
    const wire = await contentOf(supernode, call)
    const { gunzipSync } = await import('node:zlib')
    expect(sha256(gunzipSync(wire))).toBe(sha256(bytes))
    // A weak ETag is a validator: the same parts serve the next one, who is asked for nothing but whether it is still that.
    const again = open({ url: `${server.url}/a.bin`, headers: { 'accept-encoding': 'gzip' } })
    expect(await again.answer).toEqual(answer)
    expect([...again.hashes]).toEqual([...call.hashes])
  })

  test('is a part of what the URL answers when a range is asked for; nothing, and empty files, are files too', async () => {
    const server = await nginx()
    const bytes = randomBytes(2 * MIB)
    await publish(server, 'a.bin', bytes)
    await publish(server, 'empty', Buffer.alloc(0))
    const supernode = await supernodeOf()
    const { open } = await caller(supernode)
    const url = `${server.url}/a.bin`
    const range = open({ url, range: { start: 1_000, end: 1_500_000 } })
    expect(await range.answer).toEqual({ length: 1_499_001, parts: 1 })
    expect(sha256(await contentOf(supernode, range))).toBe(sha256(bytes.subarray(1_000, 1_500_001)))
    const beyond = open({ url, range: { start: bytes.length - 10, end: bytes.length + 100 } })
    expect(await beyond.answer).toEqual({ length: 10, parts: 1 })
    await expect(open({ url, range: { start: bytes.length + 1, end: bytes.length + 2 } }).answer).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    const empty = open({ url: `${server.url}/empty` })
    expect(await empty.answer).toEqual({ length: 0, parts: 1 })
    expect(empty.parts).toMatchObject([{ length: 0, last: true }])
    expect(empty.told).toBe(0)
  })

  test('whose digest was told is checked: a wrong one ends in an error before the last hash, and nothing is kept', async () => {
    const server = await nginx()
    const bytes = randomBytes(3 * MIB)
    await publish(server, 'a.bin', bytes)
    const supernode = await supernodeOf()
    const { open } = await caller(supernode)
    const url = `${server.url}/a.bin`
    const good = open({ url, digest: `sha256:${sha256(bytes)}` })
    expect(await good.answer).toEqual({ length: bytes.length, parts: 1, digest: `sha256:${sha256(bytes)}` })
    for (const digest of [`sha256:${sha256(Buffer.from('other'))}`, 'crc32:00000001']) {
      const wrong = open({ url, digest })
      await expect(wrong.answer).rejects.toMatchObject({ code: 'DIGEST_MISMATCH' })
      expect(wrong.told).toBeLessThan(6)
      await until(() => supernode.parts.store.get(wrong.parts[0]?.resource ?? '') === undefined)
    }
    expect(supernode.parts.store.list()).toHaveLength(1)
  })

  test('that is refused, missing or not to be fetched from here says so', async () => {
    const server = await nginx({ server: 'location /gone { return 404; } location /no { return 403; } location /down { return 503; } location /away { return 302 http://127.0.0.1:1/; }' })
    const supernode = await supernodeOf()
    const { open } = await caller(supernode)
    await expect(open({ url: `${server.url}/gone` }).answer).rejects.toMatchObject({ code: 'NOT_FOUND' })
    await expect(open({ url: `${server.url}/no` }).answer).rejects.toMatchObject({ code: 'FORBIDDEN' })
    await expect(open({ url: 'file:///etc/hostname' }).answer).rejects.toMatchObject({ code: 'FORBIDDEN' })
    await expect(open({ url: 'ftp://x/y' }).answer).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    await expect(open({ url: 'no url' }).answer).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    await expect(open({ url: `${server.url}/a`, headers: { range: 'bytes=0-1' } }).answer).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })

    // Without files.loopback this host is no source, by whatever name.
    const guarded = await startSupernode(cleanup)
    const node = await caller(guarded)
    await publish(server, 'a.bin', randomBytes(100))
    for (const host of ['127.0.0.1', 'localhost', '[::ffff:127.0.0.1]', '0.0.0.0', '2130706433', '[::1]']) {
      await expect(node.open({ url: `http://${host}:${server.port}/a.bin` }).answer).rejects.toMatchObject({ code: 'FORBIDDEN' })
    }
    expect((await server.requests()).some(({ url }) => url === '/a.bin')).toBe(false)
  })

  test('that does not fit is refused at once, and a full cache ends in a clear error with nothing half kept', async () => {
    const server = await nginx({ http: 'gzip on; gzip_types *; gzip_comp_level 1;' })
    await publish(server, 'a.bin', randomBytes(24 * MIB))
    const url = `${server.url}/a.bin`
    const small = await supernodeOf({ files: { maxBytes: MIB } })
    const one = await caller(small)
    await expect(one.open({ url }).answer).rejects.toMatchObject({ code: 'LIMIT_EXCEEDED' })
    await expect(one.open({ url, headers: { 'accept-encoding': 'gzip' } }).answer).rejects.toMatchObject({ code: 'LIMIT_EXCEEDED' })
    const tight = await supernodeOf({ cacheBytes: 16 * MIB })
    const two = await caller(tight)
    await expect(two.open({ url }).answer).rejects.toMatchObject({ code: 'NO_SPACE' })
    const parts = two.open({ url, headers: { 'accept-encoding': 'gzip' } })
    await expect(parts.answer).rejects.toMatchObject({ code: 'NO_SPACE' })
    for (const supernode of [small, tight]) {
      await until(() => supernode.parts.store.list().length === 0)
      expect(supernode.parts.store.usage().packedBytes).toBe(0)
    }
  })
})

withNginx('a source that fails (needs nginx)', () => {
  test('and comes back is gone on with where it broke', async () => {
    const server = await nginx({ location: 'limit_rate 3m;' })
    const bytes = randomBytes(6 * MIB)
    await publish(server, 'a.bin', bytes)
    const supernode = await supernodeOf()
    const { open } = await caller(supernode)
    const call = open({ url: `${server.url}/a.bin` })
    await until(() => call.told >= 2)
    await server.kill()
    const again = await nginx({ port: server.port, root: server.root })
    expect(await call.answer).toEqual({ length: bytes.length, parts: 1 })
    expect(sha256(await contentOf(supernode, call))).toBe(sha256(bytes))
    await statuses(again, 1)
    const [resumed] = await again.requests()
    expect(resumed).toMatchObject({ status: 206, range: expect.stringMatching(/^bytes=[1-9]/), ifRange: call.head!.etag })
  })

  test('and comes back with another version is a conflict; the next to ask gets the new version', async () => {
    const server = await nginx({ location: 'limit_rate 3m;' })
    await publish(server, 'a.bin', randomBytes(6 * MIB))
    const supernode = await supernodeOf()
    const { open } = await caller(supernode)
    const call = open({ url: `${server.url}/a.bin` })
    await until(() => call.told >= 2)
    await server.kill()
    const young = randomBytes(5 * MIB)
    await publish(server, 'a.bin', young, 1_700_000_000)
    await nginx({ port: server.port, root: server.root })
    await expect(call.answer).rejects.toMatchObject({ code: 'CONFLICT' })
    await until(() => supernode.parts.store.get(call.parts[0].resource) === undefined)
    const next = open({ url: `${server.url}/a.bin` })
    expect(await next.answer).toEqual({ length: young.length, parts: 1 })
    expect(sha256(await contentOf(supernode, next))).toBe(sha256(young))
  })

  test('is not asked for again what a supernode that was restarted had stored', async () => {
    const server = await nginx({ location: 'limit_rate 3m;' })
    const bytes = randomBytes(6 * MIB)
    await publish(server, 'a.bin', bytes)
    const dataDir = await temporaryDirectory(cleanup)
    const url = `${server.url}/a.bin`
    const first = await supernodeOf({ dataDir })
    const call = (await caller(first)).open({ url })
    await until(() => call.told >= 3)
    const told = call.told
    await first.stop()
    await expect(call.answer).rejects.toMatchObject({ code: 'UNAVAILABLE' })

    const second = await supernodeOf({ dataDir })
    const resumed = (await caller(second)).open({ url })
    expect(await resumed.answer).toEqual({ length: bytes.length, parts: 1 })
    expect(resumed.parts[0].resource).toBe(call.parts[0].resource)
    expect(sha256(await contentOf(second, resumed))).toBe(sha256(bytes))
    expect(resumed.fetched.at(-1)).toBeLessThanOrEqual(bytes.length - (told - 1) * BLOCK)
    expect((await statuses(server, 3)).slice(1)).toEqual([304, 206])
  })

  test('and whose file was dropped from the cache is read again', async () => {
    const server = await nginx()
    const bytes = randomBytes(2 * MIB)
    await publish(server, 'a.bin', bytes)
    const supernode = await supernodeOf()
    const { open } = await caller(supernode)
    const url = `${server.url}/a.bin`
    const first = open({ url })
    await first.answer
    await supernode.parts.store.remove(first.parts[0].resource)
    const again = open({ url })
    await again.answer
    expect(again.parts[0].resource).toBe(first.parts[0].resource)
    expect(sha256(await contentOf(supernode, again))).toBe(sha256(bytes))
  })
})

describe('many small files', () => {
  test('come quickly, are remembered, and forgotten when their bytes are gone', async () => {
    const server = createServer((request, response) => { response.end(`this is ${request.url}`) })
    await new Promise<void>(resolve => { server.listen(0, '127.0.0.1', resolve) })
    cleanup.add(() => new Promise(resolve => { server.closeAllConnections(); server.close(resolve) }))
    const supernode = await supernodeOf()
    const { open } = await caller(supernode)
    const base = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
    const urls = Array.from({ length: 400 }, (_, at) => `${base}/file-${at}`)
    for (let at = 0; at < urls.length; at += 50) {
      const calls = urls.slice(at, at + 50).map(url => open({ url }))
      for (const [index, call] of calls.entries()) expect((await call.answer).length).toBe(`this is /file-${at + index}`.length)
    }
    const { streams, store } = supernode.parts
    const count = async (): Promise<number> => {
      let records = 0
      for await (const _ of streams.records()) records++
      return records
    }
    expect(await count()).toBe(400)
    await streams.prune()
    expect(await count()).toBe(400)
    for (const resource of store.list()) await store.remove(resource.id)
    await streams.prune()
    // Without validators nothing is left to remember.
    expect(await count()).toBe(0)
  })

  test('are not opened without end by one node', async () => {
    const held: (() => void)[] = []
    let late = false
    const server = createServer((_request, response) => {
      if (late) response.end()
      else held.push(() => response.end())
    })
    await new Promise<void>(resolve => { server.listen(0, '127.0.0.1', resolve) })
    cleanup.add(() => new Promise(resolve => { server.closeAllConnections(); server.close(resolve) }))
    const supernode = await supernodeOf()
    const [greedy, other] = [await caller(supernode), await caller(supernode)]
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/a`
    const calls = Array.from({ length: 193 }, () => greedy.open({ url }))
    const results = Promise.allSettled(calls.map(call => call.answer))
    await until(() => held.length > 0)
    const kind = other.open({ url })
    await Promise.any(calls.map(call => call.answer.then(() => Promise.reject(new Error('none ends well yet')), error => error)))
    late = true
    for (const end of held) end()
    await kind.answer
    const refused = (await results).filter(result => result.status === 'rejected')
    expect(refused).toHaveLength(1)
    expect(refused[0]).toMatchObject({ reason: { code: 'LIMIT_EXCEEDED' } })
  })
})
