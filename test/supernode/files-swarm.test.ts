// Files all the way to real peers: the source gives one copy, peers trade, preheat pushes, and a supernode that dies costs nobody the file.
import { randomBytes } from 'node:crypto'
import { utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterEach, describe, expect, test } from '@jest/globals'
import { HeldFiles } from '../../node/held-files.ts'
import type { Download } from '../../peer/download.ts'
import type { PreheatJob } from '../../supernode/preheat-job.ts'
import type { Supernode } from '../../supernode/supernode.ts'
import { haveNginx, startNginx } from '../source/nginx-fixture.ts'
import type { NginxOptions, RunningNginx } from '../source/nginx-fixture.ts'
import { Cleanup, silent, startPeer, startSupernode, temporaryDirectory, until } from './lab.ts'
import { sha256 } from './stream-caller.ts'

const withNginx = haveNginx ? describe : describe.skip
const cleanup = new Cleanup()
afterEach(() => cleanup.run())

const MIB = 1024 * 1024

async function served(name: string, bytes: Uint8Array, options: NginxOptions = {}): Promise<{ server: RunningNginx; url: string }> {
  const server = await startNginx(options)
  cleanup.add(() => server.stop())
  await writeFile(join(server.root, name), bytes)
  await utimes(join(server.root, name), 1_600_000_000, 1_600_000_000)
  return { server, url: `${server.url}/${name}` }
}

/** nginx writes its log a moment after its answer. */
const sent = async (server: RunningNginx): Promise<number> => (await until(async () => {
  const requests = await server.requests()
  return requests.length > 0 && requests
})).reduce((sum, { bytes }) => sum + bytes, 0)

async function content(download: Download): Promise<string> {
  const chunks: Buffer[] = []
  for await (const chunk of download.read()) chunks.push(chunk)
  return sha256(Buffer.concat(chunks))
}

const asked = (url: string) => ({ key: url, ask: { operation: 'file.open' as const, request: { url } } })
const files = { loopback: true }

async function preheat(supernode: Supernode, body: object): Promise<PreheatJob> {
  const answer = await fetch(`${supernode.httpUrl}/api/v1/preheats`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) })
  expect(answer.status).toBe(201)
  return await answer.json() as PreheatJob
}

async function ended(supernode: Supernode, { id }: PreheatJob): Promise<PreheatJob> {
  return await until(async () => {
    const job = await (await fetch(`${supernode.httpUrl}/api/v1/preheats/${id}`)).json() as PreheatJob
    return job.state === 'SUCCESS' || job.state === 'FAILED' ? job : undefined
  })
}

withNginx('a file in the swarm (needs nginx)', () => {
  test('comes to all nodes at once from one copy out of the source, and nodes give to each other', async () => {
    const bytes = randomBytes(24 * MIB)
    const { server, url } = await served('a.bin', bytes)
    const supernode = await startSupernode(cleanup, { files })
    const nodes = await Promise.all([1, 2, 3].map(() => startPeer(cleanup, supernode)))
    const downloads = await Promise.all(nodes.map(node => node.downloads.open(asked(url))))
    expect(await Promise.all(downloads.map(content))).toEqual(Array.from({ length: 3 }, () => sha256(bytes)))
    expect(await sent(server)).toBe(bytes.length)
    const stats = downloads.map(download => download.stats())
    expect(stats.every(({ source }) => source === 0)).toBe(true)
    expect(stats.reduce((sum, { peer }) => sum + peer, 0)).toBeGreaterThan(0)
    for (const download of downloads) download.release()
  })

  test('of unknown length comes too', async () => {
    const bytes = randomBytes(10 * MIB)
    const { server, url } = await served('a.bin', bytes, { http: 'gzip on; gzip_types *; gzip_comp_level 1;' })
    const supernode = await startSupernode(cleanup, { files })
    const [one, two] = [await startPeer(cleanup, supernode), await startPeer(cleanup, supernode)]
    const request = { key: url, ask: { operation: 'file.open' as const, request: { url, headers: { 'accept-encoding': 'gzip' } } } }
    const downloads = await Promise.all([one, two].map(node => node.downloads.open(request)))
    const digests = await Promise.all(downloads.map(content))
    expect(digests[0]).toBe(digests[1])
    expect(await sent(server)).toBeGreaterThan(0)
    expect(await server.requests()).toHaveLength(1)
    for (const download of downloads) download.release()
  })

  test('goes on when the supernode was restarted in the middle', async () => {
    const bytes = randomBytes(12 * MIB)
    const { server, url } = await served('a.bin', bytes, { location: 'limit_rate 4m;' })
    const dataDir = await temporaryDirectory(cleanup)
    const first = await startSupernode(cleanup, { dataDir, files })
    const node = await startPeer(cleanup, first)
    const download = await node.downloads.open(asked(url))
    await until(() => download.stats().storedBytes >= 3 * MIB)
    const [address] = first.addrs
    await first.stop()
    await startSupernode(cleanup, { dataDir, files, listen: [address.replace(/\/p2p\/.*/, '')] })
    expect(await content(download)).toBe(sha256(bytes))
    // What the first one had stored was not read again; what was on its way may have been.
    expect(await sent(server)).toBeLessThan(bytes.length + 6 * MIB)
    download.release()
  })

  test('is preheated, held, shown, and let go', async () => {
    const bytes = randomBytes(3 * MIB)
    const { server, url } = await served('a.bin', bytes)
    const supernode = await startSupernode(cleanup, { files })
    const job = await preheat(supernode, { type: 'file', url })
    expect(await ended(supernode, job)).toMatchObject({ state: 'SUCCESS', type: 'file', url, progress: { bytes: bytes.length, total: bytes.length }, resources: [expect.stringMatching(/^file:/)] })
    const [listed] = await (await fetch(`${supernode.httpUrl}/api/v1/files`)).json() as { resource: string }[]
    expect(listed).toMatchObject({ kind: 'file', name: url, state: 'complete', length: bytes.length, storedBytes: bytes.length, parts: 1, followers: 0, contentType: 'application/octet-stream' })
    const path = `${supernode.httpUrl}/api/v1/files/${encodeURIComponent(listed.resource)}`
    expect((await fetch(path, { method: 'DELETE' })).status).toBe(409)

    const node = await startPeer(cleanup, supernode)
    const download = await node.downloads.open(asked(url))
    expect(await content(download)).toBe(sha256(bytes))
    download.release()
    expect((await server.requests()).filter(({ status }) => status === 200)).toHaveLength(1)

    expect((await fetch(`${supernode.httpUrl}/api/v1/preheats/${job.id}`, { method: 'DELETE' })).status).toBe(204)
    expect((await fetch(path, { method: 'DELETE' })).status).toBe(204)
    expect(supernode.parts.store.list()).toEqual([])
    expect(await (await fetch(`${supernode.httpUrl}/api/v1/files`)).json()).toEqual([])
  })

  test('is pushed to nodes while the supernode still reads it', async () => {
    const bytes = randomBytes(6 * MIB)
    const { server, url } = await served('a.bin', bytes, { location: 'limit_rate 4m;' })
    const supernode = await startSupernode(cleanup, { files })
    const nodes = await Promise.all([1, 2].map(() => startPeer(cleanup, supernode)))
    for (const { peer, downloads } of nodes) {
      const held = new HeldFiles({ downloads, logger: silent })
      peer.on('hold-file', ({ resource, name }) => { held.hold(resource, name) })
    }
    const job = await preheat(supernode, { type: 'file', url, scope: 'all' })
    const done = await ended(supernode, job)
    expect(done).toMatchObject({ state: 'SUCCESS', progress: { nodes: 2, nodesDone: 2 } })
    for (const { store } of nodes) expect(sha256(await store.get(done.resources[0])!.readRaw(0, bytes.length))).toBe(sha256(bytes))
    expect(await sent(server)).toBe(bytes.length)
  })

  test('is preheated with credentials that nobody can read back, and that a restart costs', async () => {
    const { server, url } = await served('a.bin', randomBytes(8 * MIB), { http: 'map $http_authorization $ok { default 0; "Bearer s3cret" 1; }', location: 'if ($ok = 0) { return 401; } limit_rate 1m;' })
    const dataDir = await temporaryDirectory(cleanup)
    const supernode = await startSupernode(cleanup, { dataDir, files })
    expect(await ended(supernode, await preheat(supernode, { type: 'file', url }))).toMatchObject({ state: 'FAILED', error: { code: 'UNAUTHORIZED' } })
    const job = await preheat(supernode, { type: 'file', url: `${url}?sig=s3cret`, headers: { Authorization: 'Bearer s3cret', accept: 'text/plain' }, tag: 'x' })
    await until(() => supernode.parts.streams.inWork().length === 1)
    const shown = await (await fetch(`${supernode.httpUrl}/api/v1/preheats`)).text()
    expect(shown).not.toContain('s3cret')
    expect(JSON.parse(shown)[0]).toMatchObject({ url, unkept: true, file: { headers: { accept: 'text/plain' }, tag: 'x' } })
    expect(await (await fetch(`${supernode.httpUrl}/api/v1/files`)).text()).not.toContain('s3cret')
    await supernode.stop()
    const again = await startSupernode(cleanup, { dataDir, files })
    expect(await ended(again, job)).toMatchObject({ state: 'FAILED', error: { code: 'UNAUTHORIZED', message: expect.stringContaining('ask for it again') } })
    expect(server.pid).toBeGreaterThan(0)
  })
})
