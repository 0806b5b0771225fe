// What a node promises of files and blobs: the stream starts at once, each byte comes once and from wherever it is nearest, and it is right or a clear error.
import { afterAll, afterEach, beforeEach, describe, expect, jest, test } from '@jest/globals'
import { randomBytes } from 'node:crypto'
import { Prover } from '../../peer/proof.ts'
import { DownloadLab, ask, expectFile, readAll } from './download-lab.ts'
import { TestFile, sha256 } from './file-supernode.ts'
import { until } from './lab.ts'

describe('downloads', () => {
  let lab: DownloadLab
  beforeEach(async () => { lab = await DownloadLab.start() })
  afterEach(() => lab.stop())

  test('the stream starts while the supernode still reads, and ends as what the source has', async () => {
    const file = lab.files.publish(new TestFile('http://source/a', randomBytes(3_000_000)))
    file.give(200_000)
    const { downloads } = await lab.node('one')
    const download = await downloads.open(ask(file))
    expect(download.length).toBe(3_000_000)
    expect(download.head).toMatchObject({ version: '1', contentType: 'text/plain' })
    const reader = download.read()
    const first = await reader.next()
    expect(file.givenToSupernode).toBeLessThan(3_000_000)
    file.give()
    const chunks = [first.value as Buffer]
    for await (const chunk of reader) chunks.push(chunk)
    expectFile(Buffer.concat(chunks), file)
    await download.whole
    expect(download.stats()).toMatchObject({ length: 3_000_000, storedBytes: 3_000_000, supernode: 3_000_000, peer: 0, source: 0, local: 0, failed: undefined })
    expect(download.ended).toBe(true)
    download.release()
    expect(downloads.list()).toEqual([])
    expect(download.stats().supernode).toBe(3_000_000)
  })

  test('any range, also the last byte, nothing, and what begins in the middle of blocks', async () => {
    const file = lab.files.publish(new TestFile('http://source/a', randomBytes(300_000)))
    const { downloads } = await lab.node('one')
    const download = await downloads.open(ask(file))
    for (const [from, to] of [[0, 1], [299_999, 300_000], [65_535, 65_537], [100_000, 250_000], [5, 5], [300_000, 300_000], [10, 1e9]]) {
      expect(sha256(await readAll(download, { from, to }))).toBe(sha256(file.bytes.subarray(from, to)))
    }
    await expect(readAll(download, { from: 300_001 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    await expect(readAll(download, { from: -1 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  })

  test('an empty file', async () => {
    const file = lab.files.publish(new TestFile('http://source/empty', Buffer.alloc(0)))
    const { downloads } = await lab.node('one')
    const download = await downloads.open(ask(file, { source: file.source, digest: `sha256:${sha256('')}` }))
    expect(await readAll(download)).toEqual(Buffer.alloc(0))
    await download.whole
    const alone = await lab.node('alone', { alone: true })
    expect(await readAll(await alone.downloads.open({ key: 'k', source: file.source }))).toEqual(Buffer.alloc(0))
  })

  test('two nodes trade what each has brought', async () => {
    const file = lab.files.publish(new TestFile('http://source/a', randomBytes(4_000_000)))
    file.give(1_000_000)
    const nodes = await Promise.all([lab.node('one'), lab.node('two')])
    const downloads = await Promise.all(nodes.map(({ downloads }) => downloads.open(ask(file))))
    const reading = Promise.all(downloads.map(download => readAll(download)))
    await until('both know each other', () => nodes.every(({ peer }) => peer.pool.connected().some(({ supernode }) => !supernode)))
    file.give()
    for (const got of await reading) expectFile(got, file)
    const stats = downloads.map(download => download.stats())
    expect(stats.every(({ peer }) => peer > 0)).toBe(true)
    expect(stats[0].supernode + stats[1].supernode).toBeLessThan(8_000_000)
    expect(file.givenToSupernode).toBe(4_000_000)
  })

  test('when peers are not wanted, all of it comes from the supernode', async () => {
    const file = lab.files.publish(new TestFile('http://source/a', randomBytes(1_000_000)))
    const one = await lab.node('one')
    const first = await one.downloads.open(ask(file))
    await first.whole
    const two = await lab.node('two')
    const second = await two.downloads.open(ask(file, { peers: false }))
    expectFile(await readAll(second), file)
    expect(second.stats()).toMatchObject({ supernode: 1_000_000, peer: 0 })
  })

  test('who asks for the same joins; another key of the same resource shares what comes', async () => {
    const file = lab.files.publish(new TestFile('http://source/a', randomBytes(1_000_000)))
    file.give(100_000)
    const { downloads } = await lab.node('one')
    const [one, two] = await Promise.all([downloads.open(ask(file)), downloads.open(ask(file))])
    expect(one).toBe(two)
    const other = await downloads.open(ask(file, { key: 'other credentials' }))
    expect(other).not.toBe(one)
    const reading = Promise.all([readAll(one), readAll(two), readAll(other)])
    file.give()
    for (const got of await reading) expectFile(got, file)
    expect(one.stats().supernode).toBe(1_000_000)
    expect(file.asks).toBe(2)
    one.release()
    two.release()
    expect(downloads.list()).toEqual([other])
  })

  test('asked for again, what is here is read from the store', async () => {
    const file = lab.files.publish(new TestFile('http://source/a', randomBytes(1_000_000)))
    const { downloads, store } = await lab.node('one')
    const first = await downloads.open(ask(file))
    await first.whole
    first.release()
    expect(store.get(file.id(0))!.pinned).toBe(false)
    const second = await downloads.open(ask(file))
    expect(store.get(file.id(0))!.pinned).toBe(true)
    expectFile(await readAll(second), file)
    expect(second.stats()).toMatchObject({ local: 1_000_000, supernode: 0, peer: 0 })
    expect(file.asks).toBe(2)
  })

  test('after a restart only what is missing is fetched', async () => {
    const file = lab.files.publish(new TestFile('http://source/a', randomBytes(2_000_000)))
    file.give(1_000_000)
    const directory = await lab.lab.directory()
    const before = await lab.node('one', { at: { directory } })
    const first = await before.downloads.open(ask(file))
    await until('half is here', () => first.stats().storedBytes >= 900_000)
    await before.downloads.stop()
    await before.stop()
    expect(first.stats().failed?.code).toBe('ABORTED')
    await expect(first.whole).rejects.toMatchObject({ code: 'ABORTED' })
    file.give()
    const after = await lab.node('one', { at: { directory } })
    const second = await after.downloads.open(ask(file))
    expectFile(await readAll(second), file)
    const { local, supernode: came } = second.stats()
    expect(local).toBeGreaterThanOrEqual(900_000)
    expect(local + came).toBe(2_000_000)
  })

  test('a length that nobody knows: the file comes in parts', async () => {
    const file = lab.files.publish(new TestFile('http://source/a', randomBytes(2_500_000), { lengthKnown: false, partBytes: 1_000_000 }))
    file.give(1_200_000)
    const { downloads } = await lab.node('one')
    const download = await downloads.open(ask(file))
    expect(download.length).toBeUndefined()
    const reader = download.read()
    const chunks = [(await reader.next()).value as Buffer]
    file.give()
    for await (const chunk of reader) chunks.push(chunk)
    expectFile(Buffer.concat(chunks), file)
    expect(download.length).toBe(2_500_000)
    expect(download.resources).toHaveLength(3)
    expectFile(await readAll(download, {}), file)
    expect(sha256(await readAll(download, { from: 999_990, to: 2_000_010 }))).toBe(sha256(file.bytes.subarray(999_990, 2_000_010)))
  })

  test('what the source refuses is said at once', async () => {
    const { downloads } = await lab.node('one')
    await expect(downloads.open({ key: 'x', ask: { operation: 'file.open', request: { url: 'http://source/none?token=secret' } } })).rejects.toMatchObject({ code: 'NOT_FOUND' })
    expect(downloads.list()).toEqual([])
    const alone = await lab.node('alone', { alone: true })
    const refused = alone.downloads.open({ key: 'x', ask: { operation: 'file.open', request: { url: 'http://source/none?token=secret' } } })
    await expect(refused).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    await refused.catch((error: Error) => expect(error.message).not.toContain('secret'))
  })

  test('who gives up waiting hears of it, and the download ends when nobody else waits', async () => {
    const file = lab.files.publish(new TestFile('http://source/a', randomBytes(1_000_000)))
    file.give(100_000)
    const { downloads, store } = await lab.node('one')
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
    const file = lab.files.publish(new TestFile('http://source/a', randomBytes(2_000_000)))
    const { downloads, store } = await lab.node('one')
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

  describe('the proof that a blob is what it is called', () => {
    const proofs = jest.spyOn(Prover.prototype, 'prove')
    beforeEach(() => { proofs.mockClear() })
    afterAll(() => { proofs.mockRestore() })

    test('is the reading of the whole, and lasts; nothing is read once more for it', async () => {
      const file = lab.files.publish(new TestFile('blob', randomBytes(1_000_000), { blob: true }))
      const directory = await lab.lab.directory()
      const node = await lab.node('one', { at: { directory } })
      const download = await node.downloads.open(ask(file))
      expectFile(await readAll(download), file)
      const resource = node.store.get(file.id(0))!
      await until('it is proved', () => resource.proved)
      expect(proofs).not.toHaveBeenCalled()
      download.release()
      await node.downloads.stop()
      await node.stop()
      const again = await lab.node('one', { at: { directory } })
      expect(again.store.get(file.id(0))).toMatchObject({ proved: true, whole: true })
    })

    test('is made once more where nobody read all of it', async () => {
      const file = lab.files.publish(new TestFile('blob', randomBytes(1_000_000), { blob: true }))
      const { downloads, store } = await lab.node('one')
      const download = await downloads.open(ask(file))
      expect((await readAll(download, { from: 10, to: 20 })).length).toBe(10)
      await download.whole
      await until('it is proved', () => store.get(file.id(0))!.proved)
      expect(proofs).toHaveBeenCalledTimes(1)
    })

    test.each([['takes its time', false], ['goes away', true]])('does not wait for ever for a reader that %s', async (_, goes) => {
      const file = lab.files.publish(new TestFile('blob', randomBytes(1_000_000), { blob: true }))
      const { downloads, store } = await lab.node('one', { options: { slowReaderMs: goes ? 60_000 : 200 } })
      const download = await downloads.open(ask(file))
      const reader = download.read()
      await reader.next()
      await download.whole
      expect([store.get(file.id(0))!.proved, proofs.mock.calls.length]).toEqual([false, 0])
      if (goes) await reader.return()
      await until('it is proved', () => store.get(file.id(0))!.proved)
      expect(proofs).toHaveBeenCalledTimes(1)
      await reader.return()
    })
  })
})
