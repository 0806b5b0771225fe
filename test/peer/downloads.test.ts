// What a node promises of files and blobs: the stream starts at once, each byte comes once and from wherever it is nearest, and it is right or a clear error.
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { randomBytes } from 'node:crypto'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import type { Download } from '../../peer/download.ts'
import { Downloads } from '../../peer/downloads.ts'
import type { DownloadsOptions } from '../../peer/downloads.ts'
import type { DownloadRequest } from '../../peer/download-request.ts'
import { FileSupernode, TestFile, sha256 } from './file-supernode.ts'
import { Lab, until } from './lab.ts'
import type { Node, TestSupernode } from './lab.ts'

const logger = pino({ level: process.env.PEER_TEST_LOG ?? 'silent' })

describe('downloads', () => {
  let lab: Lab
  let supernode: TestSupernode
  let files: FileSupernode
  beforeEach(async () => {
    lab = new Lab()
    supernode = await lab.supernode()
    files = new FileSupernode(supernode)
    lab.onStop(async () => files.stop())
  })
  afterEach(() => lab.stop())

  const QUICK: DownloadsOptions = { lingerMs: 50, reconnectMs: 1_500, stalledMs: 700, demandAfterMs: 300 }

  async function node(name: string, options: DownloadsOptions = {}, at: { directory?: string; capBytes?: number } = {}, alone = false): Promise<Node & { downloads: Downloads }> {
    const made = await lab.node(name, { supernodes: alone ? [] : [supernode.address], fetch: { demandTimeout: 3_000, backgroundTimeout: 3_000, stallTimeout: 1_000 } }, at)
    if (!alone) await until(`${name} is greeted`, () => supernode.admitted.has(made.peer.id))
    const downloads = new Downloads({ peer: made.peer, logger, metrics: new Registry() }, { ...QUICK, ...options })
    lab.onStop(() => downloads.stop())
    return Object.assign(made, { downloads })
  }

  function ask(file: TestFile, more: Partial<DownloadRequest> = {}): DownloadRequest {
    if (file.blob) return { key: file.id(0), ask: { operation: 'blob.open', request: { reference: 'registry/name', digest: file.id(0).slice(5) } }, digest: file.id(0).slice(5), ...more }
    return { key: `${file.url} ${more.key ?? ''}`, ask: { operation: 'file.open', request: { url: file.url } }, ...more }
  }

  async function all(download: Download, range?: { from?: number; to?: number }): Promise<Buffer> {
    const chunks: Buffer[] = []
    for await (const chunk of download.read(range)) chunks.push(chunk)
    return Buffer.concat(chunks)
  }

  const right = (got: Buffer, file: TestFile): void => expect([got.length, sha256(got)]).toEqual([file.bytes.length, sha256(file.bytes)])

  test('the stream starts while the supernode still reads, and ends as what the source has', async () => {
    const file = files.publish(new TestFile('http://source/a', randomBytes(3_000_000)))
    file.give(200_000)
    const { downloads } = await node('one')
    const download = await downloads.open(ask(file))
    expect(download.length).toBe(3_000_000)
    expect(download.head).toMatchObject({ version: '1', contentType: 'text/plain' })
    const reader = download.read()
    const first = await reader.next()
    expect(file.givenToSupernode).toBeLessThan(3_000_000)
    file.give()
    const chunks = [first.value as Buffer]
    for await (const chunk of reader) chunks.push(chunk)
    right(Buffer.concat(chunks), file)
    await download.whole
    expect(download.stats()).toMatchObject({ length: 3_000_000, storedBytes: 3_000_000, supernode: 3_000_000, peer: 0, source: 0, local: 0, failed: undefined })
    expect(download.ended).toBe(true)
    download.release()
    expect(downloads.list()).toEqual([])
    expect(download.stats().supernode).toBe(3_000_000)
  })

  test('any range, also the last byte, nothing, and what begins in the middle of blocks', async () => {
    const file = files.publish(new TestFile('http://source/a', randomBytes(300_000)))
    const { downloads } = await node('one')
    const download = await downloads.open(ask(file))
    for (const [from, to] of [[0, 1], [299_999, 300_000], [65_535, 65_537], [100_000, 250_000], [5, 5], [300_000, 300_000], [10, 1e9]]) {
      expect(sha256(await all(download, { from, to }))).toBe(sha256(file.bytes.subarray(from, to)))
    }
    await expect(all(download, { from: 300_001 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    await expect(all(download, { from: -1 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  })

  test('an empty file', async () => {
    const file = files.publish(new TestFile('http://source/empty', Buffer.alloc(0)))
    const { downloads } = await node('one')
    const download = await downloads.open(ask(file, { source: file.source, digest: `sha256:${sha256('')}` }))
    expect(await all(download)).toEqual(Buffer.alloc(0))
    await download.whole
    const alone = await node('alone', {}, {}, true)
    expect(await all(await alone.downloads.open({ key: 'k', source: file.source }))).toEqual(Buffer.alloc(0))
  })

  test('two nodes trade what each has brought', async () => {
    const file = files.publish(new TestFile('http://source/a', randomBytes(4_000_000)))
    file.give(1_000_000)
    const nodes = await Promise.all([node('one'), node('two')])
    const downloads = await Promise.all(nodes.map(({ downloads }) => downloads.open(ask(file))))
    const reading = Promise.all(downloads.map(download => all(download)))
    await until('both know each other', () => nodes.every(({ peer }) => peer.pool.connected().some(({ supernode }) => !supernode)))
    file.give()
    for (const got of await reading) right(got, file)
    const stats = downloads.map(download => download.stats())
    expect(stats.every(({ peer }) => peer > 0)).toBe(true)
    expect(stats[0].supernode + stats[1].supernode).toBeLessThan(8_000_000)
    expect(file.givenToSupernode).toBe(4_000_000)
  })

  test('when peers are not wanted, all of it comes from the supernode', async () => {
    const file = files.publish(new TestFile('http://source/a', randomBytes(1_000_000)))
    const one = await node('one')
    const first = await one.downloads.open(ask(file))
    await first.whole
    const two = await node('two')
    const second = await two.downloads.open(ask(file, { peers: false }))
    right(await all(second), file)
    expect(second.stats()).toMatchObject({ supernode: 1_000_000, peer: 0 })
  })

  test('who asks for the same joins; another key of the same resource shares what comes', async () => {
    const file = files.publish(new TestFile('http://source/a', randomBytes(1_000_000)))
    file.give(100_000)
    const { downloads } = await node('one')
    const [one, two] = await Promise.all([downloads.open(ask(file)), downloads.open(ask(file))])
    expect(one).toBe(two)
    const other = await downloads.open(ask(file, { key: 'other credentials' }))
    expect(other).not.toBe(one)
    const reading = Promise.all([all(one), all(two), all(other)])
    file.give()
    for (const got of await reading) right(got, file)
    expect(one.stats().supernode).toBe(1_000_000)
    expect(file.asks).toBe(2)
    one.release()
    two.release()
    expect(downloads.list()).toEqual([other])
  })

  test('asked for again, what is here is read from the store', async () => {
    const file = files.publish(new TestFile('http://source/a', randomBytes(1_000_000)))
    const { downloads, store } = await node('one')
    const first = await downloads.open(ask(file))
    await first.whole
    first.release()
    expect(store.get(file.id(0))!.pinned).toBe(false)
    const second = await downloads.open(ask(file))
    expect(store.get(file.id(0))!.pinned).toBe(true)
    right(await all(second), file)
    expect(second.stats()).toMatchObject({ local: 1_000_000, supernode: 0, peer: 0 })
    expect(file.asks).toBe(2)
  })

  test('after a restart only what is missing is fetched', async () => {
    const file = files.publish(new TestFile('http://source/a', randomBytes(2_000_000)))
    file.give(1_000_000)
    const directory = await lab.directory()
    const before = await node('one', {}, { directory })
    const first = await before.downloads.open(ask(file))
    await until('half is here', () => first.stats().storedBytes >= 900_000)
    await before.downloads.stop()
    await before.stop()
    expect(first.stats().failed?.code).toBe('ABORTED')
    await expect(first.whole).rejects.toMatchObject({ code: 'ABORTED' })
    file.give()
    const after = await node('one', {}, { directory })
    const second = await after.downloads.open(ask(file))
    right(await all(second), file)
    const { local, supernode: came } = second.stats()
    expect(local).toBeGreaterThanOrEqual(900_000)
    expect(local + came).toBe(2_000_000)
  })

  test('a length that nobody knows: the file comes in parts', async () => {
    const file = files.publish(new TestFile('http://source/a', randomBytes(2_500_000), { lengthKnown: false, partBytes: 1_000_000 }))
    file.give(1_200_000)
    const { downloads } = await node('one')
    const download = await downloads.open(ask(file))
    expect(download.length).toBeUndefined()
    const reader = download.read()
    const chunks = [(await reader.next()).value as Buffer]
    file.give()
    for await (const chunk of reader) chunks.push(chunk)
    right(Buffer.concat(chunks), file)
    expect(download.length).toBe(2_500_000)
    expect(download.resources).toHaveLength(3)
    right(await all(download, {}), file)
    expect(sha256(await all(download, { from: 999_990, to: 2_000_010 }))).toBe(sha256(file.bytes.subarray(999_990, 2_000_010)))
  })

  test('what the source refuses is said at once', async () => {
    const { downloads } = await node('one')
    await expect(downloads.open({ key: 'x', ask: { operation: 'file.open', request: { url: 'http://source/none?token=secret' } } })).rejects.toMatchObject({ code: 'NOT_FOUND' })
    expect(downloads.list()).toEqual([])
    const alone = await node('alone', {}, {}, true)
    const refused = alone.downloads.open({ key: 'x', ask: { operation: 'file.open', request: { url: 'http://source/none?token=secret' } } })
    await expect(refused).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    await refused.catch((error: Error) => expect(error.message).not.toContain('secret'))
  })

  test('who gives up waiting hears of it, and the download ends when nobody else waits', async () => {
    const file = files.publish(new TestFile('http://source/a', randomBytes(1_000_000)))
    file.give(100_000)
    const { downloads, store } = await node('one')
    const download = await downloads.open(ask(file))
    const abort = new AbortController()
    const reading = (async () => { for await (const _ of download.read({}, { signal: abort.signal })) { /* on */ } })()
    abort.abort(new Error('enough'))
    await expect(reading).rejects.toThrow('enough')
    download.release()
    await until('it ended', () => downloads.list().length === 0)
    await expect(download.whole).rejects.toMatchObject({ code: 'ABORTED' })
    expect(store.get(file.id(0))!.pinned).toBe(false)
    const gone = new AbortController()
    const opening = downloads.open({ key: 'never', ask: { operation: 'file.open', request: { url: file.url } } }, { signal: gone.signal })
    gone.abort()
    await expect(opening).rejects.toMatchObject({ code: 'ABORTED' })
  })

  test('a slow reader holds two blocks, not the file', async () => {
    const file = files.publish(new TestFile('http://source/a', randomBytes(2_000_000)))
    const { downloads, store } = await node('one')
    const download = await downloads.open(ask(file))
    const reader = download.read()
    await reader.next()
    await download.whole
    const resource = store.get(file.id(0))!
    const reads = { count: 0 }
    const readPacked = resource.readPacked.bind(resource)
    resource.readPacked = block => { reads.count++; return readPacked(block) }
    await reader.next()
    await until('one block is read ahead', () => reads.count > 0)
    expect(reads.count).toBeLessThanOrEqual(2)
    await reader.return(undefined)
  })
})
