// What a download comes to when the supernode, a peer, the source or the disk fails: the right bytes all the same, or a clear error; never wrong ones.
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { randomBytes } from 'node:crypto'
import { fixedBlockTable } from '../../image/block-table.ts'
import { SkimmerError } from '../../oci/errors.ts'
import { StreamFill } from '../../peer/stream-fill.ts'
import { DownloadLab, ask, expectFile, hold, readAll } from './download-lab.ts'
import { TestFile, sha256 } from './file-supernode.ts'
import { until } from './lab.ts'

describe('when a download meets a failure', () => {
  let lab: DownloadLab
  beforeEach(async () => { lab = await DownloadLab.start() })
  afterEach(() => lab.stop())

  test('the supernode dies in the middle: the node goes on from the source, with what is missing only', async () => {
    const file = lab.files.publish(new TestFile('http://source/a', randomBytes(2_000_000)))
    file.give(1_000_000)
    const { downloads } = await lab.node('one')
    const download = await downloads.open(ask(file, { source: file.source }))
    await until('what is known is here', () => download.stats().storedBytes >= 900_000)
    const reading = readAll(download)
    await lab.supernode.stop()
    file.give()
    expectFile(await reading, file)
    await download.whole
    const { supernode, source, local } = download.stats()
    expect(supernode).toBeGreaterThanOrEqual(900_000)
    expect(supernode + source + local).toBe(2_000_000)
    expect(file.opened).toHaveLength(1)
    expect(file.opened[0]).toBeGreaterThanOrEqual(900_000)
  })

  test('the supernode dies, and the source may not be read: a clear error, after what was there', async () => {
    const file = lab.files.publish(new TestFile('http://source/a', randomBytes(2_000_000)))
    file.give(1_000_000)
    const { downloads } = await lab.node('one')
    const download = await downloads.open(ask(file))
    await until('some is here', () => download.stats().storedBytes >= 900_000)
    let got = 0
    const reading = (async () => { for await (const chunk of download.read()) got += chunk.length })()
    await lab.supernode.stop()
    await expect(reading).rejects.toMatchObject({ code: 'UNAVAILABLE', message: expect.stringContaining('the supernode is lost') })
    expect(got).toBeGreaterThanOrEqual(900_000)
    expect(got).toBeLessThan(2_000_000)
    expect(download.stats().failed?.code).toBe('UNAVAILABLE')
    await expect(download.whole).rejects.toMatchObject({ code: 'UNAVAILABLE' })
  })

  test('the supernode dies when all is known: peers give the rest', async () => {
    await lab.stop()
    lab = await DownloadLab.start({ supernode: 1_500_000 })
    const file = lab.files.publish(new TestFile('http://source/a', randomBytes(6_000_000)))
    const [one, two] = [await lab.node('one'), await lab.node('two')]
    await hold({ node: one, file, supernode: lab.supernode })
    const download = await two.downloads.open(ask(file))
    await until('peers meet, and all is told', () => two.peer.pool.get(one.peer.id)?.holdings(file.id(0))?.whole === true && two.store.get(file.id(0))?.open === false)
    await lab.supernode.stop()
    expectFile(await readAll(download), file)
    expect(download.stats().peer).toBeGreaterThan(0)
  })

  test('everyone is gone, but all is known: the source gives the rest', async () => {
    const file = lab.files.publish(new TestFile('http://source/a', randomBytes(2_000_000)))
    const one = await lab.node('one')
    const filled = await one.store.add(file.id(0), fixedBlockTable(file.bytes.length, file.blockBytes), { open: true })
    const fill = new StreamFill(filled)
    await fill.write(file.bytes.subarray(0, 700_000))
    await until('what was read is stored', () => filled.storedBlocks === 10)
    const download = await one.downloads.open({ key: 'k', source: file.source })
    expectFile(await readAll(download), file)
    expect(file.opened).toEqual([0, 655_360])
    expect(download.stats()).toMatchObject({ local: 655_360, source: 2_000_000 - 655_360 })
  })

  test('a parent dies in the middle: the blocks come from elsewhere', async () => {
    await lab.stop()
    lab = await DownloadLab.start({ supernode: 2_000_000 })
    const file = lab.files.publish(new TestFile('http://source/a', randomBytes(6_000_000)))
    const [one, two] = [await lab.node('one', { peer: { exchange: { uploadBytesPerSecond: 1_000_000 } } }), await lab.node('two')]
    await hold({ node: one, file, supernode: lab.supernode })
    const download = await two.downloads.open(ask(file))
    const reading = readAll(download)
    await until('the parent gave something', () => download.stats().peer > 0)
    await one.stop()
    expectFile(await reading, file)
  })

  test('a peer sends other bytes: it is banned, and the bytes are right', async () => {
    const file = lab.files.publish(new TestFile('http://source/a', randomBytes(1_000_000)))
    const [liar, node] = [await lab.node('liar'), await lab.node('node')]
    await hold({ node: liar, file, bytes: randomBytes(file.bytes.length), supernode: lab.supernode })
    file.give(100_000)
    const download = await node.downloads.open(ask(file))
    const reading = readAll(download)
    await until('the liar is met', () => node.peer.pool.get(liar.peer.id)?.holdings(file.id(0))?.whole === true)
    file.give()
    expectFile(await reading, file)
    await until('the liar is banned', () => node.peer.pool.isBanned(liar.peer.id))
  })

  test('the source changes before a reader got anything: all of the new version, nothing of the old', async () => {
    const file = lab.files.publish(new TestFile('http://source/a', randomBytes(1_000_000)))
    file.give(30_000)
    const { downloads } = await lab.node('one')
    const download = await downloads.open(ask(file))
    const reading = readAll(download)
    file.version = '2'
    file.bytes = randomBytes(1_200_000)
    file.break(new SkimmerError('CONFLICT', 'changed at the source'), { once: true })
    await until('it was asked for again', () => file.asks === 2)
    file.give()
    expectFile(await reading, file)
    expect(download.head.version).toBe('2')
    expect(download.length).toBe(1_200_000)
  })

  test('the source changes after a reader got something: an error, never two versions', async () => {
    const file = lab.files.publish(new TestFile('http://source/a', randomBytes(1_000_000)))
    file.give(300_000)
    const { downloads } = await lab.node('one')
    const download = await downloads.open(ask(file))
    const reader = download.read()
    await reader.next()
    file.version = '2'
    file.break(new SkimmerError('CONFLICT', 'changed at the source'))
    await expect((async () => { for await (const _ of reader) { /* on */ } })()).rejects.toMatchObject({ code: 'CONFLICT' })
  })

  test('a source that has become another version is not what goes on where the supernode ended', async () => {
    const file = lab.files.publish(new TestFile('http://source/a', randomBytes(1_000_000)))
    file.give(300_000)
    const { downloads } = await lab.node('one')
    const download = await downloads.open(ask(file, { source: file.source }))
    const reader = download.read()
    await reader.next()
    file.version = '2'
    await lab.supernode.stop()
    await expect((async () => { for await (const _ of reader) { /* on */ } })()).rejects.toMatchObject({ code: 'CONFLICT' })
  })

  test('without a supernode, from the source; which breaks off and comes back', async () => {
    const file = new TestFile('http://source/a', randomBytes(1_000_000))
    file.give(400_000)
    const { downloads } = await lab.node('alone', { alone: true })
    const download = await downloads.open(ask(file, { source: file.source }))
    const reading = readAll(download)
    await until('some came', () => download.stats().source >= 400_000)
    file.break()
    await until('it was asked again', () => file.opened.length > 1)
    file.broken = undefined
    file.give()
    expectFile(await reading, file)
    expect(download.stats().supernode).toBe(0)
  })

  test('two that must go to the source for the same read it once', async () => {
    const file = new TestFile('http://source/a', randomBytes(2_000_000))
    file.give(300_000)
    const { downloads } = await lab.node('alone', { alone: true })
    const [one, two] = [await downloads.open({ key: 'one', source: file.source }), await downloads.open({ key: 'two', source: file.source })]
    const reading = Promise.all([readAll(one), readAll(two)])
    file.give()
    for (const got of await reading) expectFile(got, file)
    expect(file.givenToNodes).toBe(2_000_000)
  })

  test('a source that stays broken ends in its own words', async () => {
    const file = new TestFile('http://source/a', randomBytes(1_000_000))
    file.give(400_000)
    file.break(new SkimmerError('UNAVAILABLE', 'the source broke off'))
    const { downloads } = await lab.node('alone', { alone: true })
    const download = await downloads.open(ask(file, { source: file.source }))
    await expect(readAll(download)).rejects.toMatchObject({ code: 'UNAVAILABLE', message: 'the source broke off' })
  })

  test('a source of unknown length, by the node alone, and once more when the supernode is lost', async () => {
    const file = lab.files.publish(new TestFile('http://source/a', randomBytes(20_000_000), { lengthKnown: false, blockBytes: 1024 * 1024 }))
    const alone = await lab.node('alone', { alone: true })
    const first = await alone.downloads.open({ key: 'k', source: file.source })
    expectFile(await readAll(first), file)
    expect(first.resources).toHaveLength(3)
    file.give(9_000_000)
    const { downloads } = await lab.node('one')
    const download = await downloads.open(ask(file, { source: file.source }))
    const reading = readAll(download)
    await until('the first part is here', () => download.stats().storedBytes >= 8_000_000)
    await lab.supernode.stop()
    file.give()
    expectFile(await reading, file)
    expect(file.opened).toEqual([0, 8 * 1024 * 1024])
  })

  test('the disk is full: readers get all of it, and what was stored before stays right', async () => {
    const file = lab.files.publish(new TestFile('http://source/a', randomBytes(3_000_000)))
    const { downloads, store } = await lab.node('small', { at: { capBytes: 1_000_000 } })
    const download = await downloads.open(ask(file))
    const [one, two] = await Promise.all([readAll(download), readAll(download)])
    expectFile(one, file)
    expectFile(two, file)
    await expect(download.whole).rejects.toMatchObject({ code: 'NO_SPACE' })
    expect(download.stats().failed).toBeUndefined()
    expect(store.usage().packedBytes).toBeLessThanOrEqual(1_000_000)
    download.release()
    expect(downloads.list()).toEqual([])
  })

  test('the disk is full and there is no supernode: each reader reads the source', async () => {
    for (const lengthKnown of [true, false]) {
      const file = new TestFile('http://source/a', randomBytes(9_000_000), { lengthKnown, blockBytes: 1024 * 1024 })
      const { downloads } = await lab.node('small', { at: { capBytes: 2_500_000 }, alone: true })
      const download = await downloads.open({ key: 'k', source: file.source, digest: `sha256:${sha256(file.bytes)}` })
      expectFile(await readAll(download), file)
      expect(download.stats().failed).toBeUndefined()
    }
  })

  test('a blob that is not what its digest says never looks whole', async () => {
    const file = lab.files.publish(new TestFile('blob', randomBytes(1_000_000), { blob: true }))
    const request = ask(file)
    file.bytes = Buffer.concat([file.bytes.subarray(0, 999_999), Buffer.from([file.bytes[999_999] ^ 1])])
    file.id = () => request.key
    const { downloads, store } = await lab.node('one')
    const download = await downloads.open(request)
    let got = 0
    await expect((async () => { for await (const chunk of download.read()) got += chunk.length })()).rejects.toMatchObject({ code: 'DIGEST_MISMATCH' })
    expect(got).toBeLessThanOrEqual(1_000_000 - (1_000_000 % 65_536))
    await until('it is quarantined', () => store.get(request.key)?.quarantined === true)
    await until('the supernode hears of it', () => lab.supernode.quarantines.includes(request.key))
    await expect(downloads.open(request)).rejects.toMatchObject({ code: 'DIGEST_MISMATCH' })
  })

  test('a blob that is whole is served without asking anyone, when the caller says so', async () => {
    const file = lab.files.publish(new TestFile('blob', randomBytes(1_000_000), { blob: true }))
    const { downloads, store } = await lab.node('one')
    const first = await downloads.open(ask(file))
    expectFile(await readAll(first), file)
    const resource = store.get(file.id(0))!
    await until('it is proved', () => resource.proved)
    first.release()
    const again = await downloads.open(ask(file, { local: file.id(0) }))
    expectFile(await readAll(again), file)
    await again.whole
    expect(file.asks).toBe(1)
    expect(again.stats()).toMatchObject({ local: 1_000_000, supernode: 0 })
    again.release()
    expect(resource.pinned).toBe(false)
  })

  test('a block that rots on the disk is fetched again, by the way', async () => {
    const file = lab.files.publish(new TestFile('blob', randomBytes(1_000_000), { blob: true }))
    const directory = await lab.lab.directory()
    const before = await lab.node('one', { at: { directory } })
    await (await before.downloads.open(ask(file))).whole
    const { packFd } = before.store.get(file.id(0))!.shared()
    await until('it is proved', () => before.store.get(file.id(0))!.proved)
    const { writeSync } = await import('node:fs')
    writeSync(packFd, Buffer.from('rotten'), 0, 6, 500_000)
    await before.downloads.stop()
    await before.stop()
    const after = await lab.node('one', { at: { directory } })
    const resource = after.store.get(file.id(0))!
    await resource.check(7)
    const download = await after.downloads.open(ask(file, { local: file.id(0) }))
    expectFile(await readAll(download), file)
  })

  test('a supernode that tells nonsense is refused', async () => {
    const file = lab.files.publish(new TestFile('http://source/a', randomBytes(300_000)))
    const { downloads } = await lab.node('one')
    const grant = (remote: string, id: string): string => lab.supernode.grant(remote, [id])
    const part = { offset: 0, length: 300_000, blockBytes: 65_536, last: true }
    const head = { head: { version: '1', length: 300_000 } }
    const tell = async (what: (remote: string) => object[]): Promise<unknown> => {
      lab.supernode.handlers['file.open'] = async (_, call) => {
        for (const progress of what(call.remote)) call.progress(progress as never)
        return { length: 300_000, parts: 1 }
      }
      return await downloads.open(ask(file)).then(download => download.whole.finally(() => download.release()))
    }
    await expect(tell(remote => [head, { part: { ...part, resource: `layer:sha256:${'0'.repeat(64)}`, grant: grant(remote, 'file:x') } }])).rejects.toMatchObject({ code: 'INVALID_DATA' })
    await expect(tell(remote => [head, { part: { ...part, resource: 'file:x1', offset: 5, grant: grant(remote, 'file:x') } }])).rejects.toMatchObject({ code: 'INVALID_DATA' })
    await expect(tell(remote => [head, { part: { ...part, resource: 'file:x2', length: 2 ** 50, blockBytes: 1, grant: grant(remote, 'file:x') } }])).rejects.toMatchObject({ code: 'LIMIT_EXCEEDED' })
    await expect(tell(() => [head, { hashes: { resource: 'file:x', from: 0, hashes: randomBytes(32).toString('base64') } }])).rejects.toMatchObject({ code: 'INVALID_DATA' })
    await expect(tell(remote => [head, { part: { ...part, resource: 'file:x3', grant: grant(remote, 'file:x') } }])).rejects.toMatchObject({ code: 'INVALID_DATA' })
    await expect(tell(() => [head])).rejects.toMatchObject({ code: 'INVALID_DATA' })
  })
})
