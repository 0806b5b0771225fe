// A file by several connections at once: whole, resumable by its parts, and in order where a server cannot do better.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { createHash, randomBytes } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { doneBytes, parallelRanges, partCount, partIsDone } from '../../source/parallel-ranges.ts'
import type { ParallelOptions, PartsState } from '../../source/parallel-ranges.ts'
import type { Source } from '../../source/source.ts'
import { haveNginx, startNginx } from './nginx-fixture.ts'
import type { RunningNginx } from './nginx-fixture.ts'
import { host, rangeStart, source } from './reading.ts'

const describeNginx = haveNginx ? describe : describe.skip
const bytes = randomBytes(5_000_001)
const partBytes = 256 * 1024

async function download(from: Source, options: ParallelOptions = {}, into = Buffer.alloc(bytes.length)): Promise<{ into: Buffer; length: number; state?: PartsState }> {
  let state: PartsState | undefined
  const { length } = await parallelRanges(from, (position, chunk) => void chunk.copy(into, position), {
    partBytes, backoffMs: 2, ...options,
    onHead: (_head, kept) => (state = kept),
  })
  return { into, length, state }
}

describeNginx('from nginx', () => {
  let nginx: RunningNginx
  beforeAll(async () => {
    nginx = await startNginx({ server: 'location /whole { max_ranges 0; }\nlocation /bare { etag off; add_header Last-Modified ""; }' })
    for (const name of ['file', 'whole', 'bare']) await writeFile(join(nginx.root, name), bytes)
    await writeFile(join(nginx.root, 'empty'), '')
    await writeFile(join(nginx.root, 'small'), 'small')
  })
  afterAll(() => nginx?.stop())

  test('every byte comes once, over several connections', async () => {
    const { into, length, state } = await download(source(`${nginx.url}/file?all`))
    expect([into.equals(bytes), length]).toEqual([true, bytes.length])
    expect(doneBytes(state!)).toBe(bytes.length)
    const requests = await nginx.requests(({ url }) => url === '/file?all', 2)
    expect(requests.every(({ status }) => status === 206)).toBe(true)
    expect(requests.reduce((sum, request) => sum + request.bytes, 0)).toBeLessThanOrEqual(bytes.length)
  })

  test.each(['/whole', '/bare'])('%s: in order by one connection, where parts cannot be had or trusted', async (path) => {
    const { into, state } = await download(source(nginx.url + path))
    expect(into.equals(bytes)).toBe(true)
    expect(state).toBeUndefined()
  })

  test('small and empty files take one request', async () => {
    expect((await download(source(`${nginx.url}/small?one`))).into.subarray(0, 5).toString()).toBe('small')
    expect((await nginx.requests(({ url }) => url === '/small?one')).length).toBe(1)
    expect((await download(source(`${nginx.url}/empty`))).length).toBe(0)
  })

  test('a window of the file', async () => {
    const { into, length } = await download(source(`${nginx.url}/file`), { range: { from: 1_000_000, to: 3_000_000 } })
    expect([into.subarray(0, length).equals(bytes.subarray(1_000_000, 3_000_000)), length]).toEqual([true, 2_000_000])
    const rest = await download(source(`${nginx.url}/whole`), { range: { from: 4_000_000 } })
    expect(rest.into.subarray(0, rest.length).equals(bytes.subarray(4_000_000))).toBe(true)
  })

  test('what was interrupted goes on with the parts that are missing, and only those', async () => {
    const into = Buffer.alloc(bytes.length)
    const stop = new AbortController()
    let state: PartsState | undefined
    let parts = 0
    const interrupted = parallelRanges(source(`${nginx.url}/file`), (position, chunk) => void chunk.copy(into, position), {
      partBytes, signal: stop.signal, connections: 2,
      onHead: (_head, kept) => (state = kept),
      onPart: () => ++parts === 5 && stop.abort(new Error('enough')),
    })
    await expect(interrupted).rejects.toMatchObject({ code: 'ABORTED' })
    const kept = { ...state!, done: Uint8Array.from(state!.done) }
    expect(doneBytes(kept)).toBeGreaterThanOrEqual(5 * partBytes)
    const missing = bytes.length - doneBytes(kept)
    // What is not done may be anything.
    for (let part = 0; part < partCount(kept); part++) if (!partIsDone(kept, part)) into.fill(0, part * partBytes, Math.min(bytes.length, (part + 1) * partBytes))
    await download(source(`${nginx.url}/file?rest`), { resume: kept }, into)
    expect(into.equals(bytes)).toBe(true)
    const requests = await nginx.requests(({ url }) => url === '/file?rest', 1)
    expect(requests.reduce((sum, request) => sum + request.bytes, 0)).toBeLessThanOrEqual(missing)
    // Nothing is missing any more: one byte is asked for, to know that it is still the same.
    await download(source(`${nginx.url}/file?none`), { resume: kept }, into)
    expect((await nginx.requests(({ url }) => url === '/file?none')).map((request) => request.bytes)).toEqual([1])
  })

  test('a file that changed since is a conflict, before a byte of it is written', async () => {
    await writeFile(join(nginx.root, 'changing'), bytes)
    const { state } = await download(source(`${nginx.url}/changing`))
    state!.done[0] = 0
    await writeFile(join(nginx.root, 'changing'), bytes.subarray(1))
    const into = Buffer.alloc(bytes.length)
    await expect(download(source(`${nginx.url}/changing`), { resume: state }, into)).rejects.toMatchObject({ code: 'CONFLICT' })
    expect(into.every((byte) => byte === 0)).toBe(true)
    await expect(download(source(`${nginx.url}/changing`), { resume: { ...state!, done: new Uint8Array(1) } })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  })

  test('a slow writer slows the network down, an error of it ends everything', async () => {
    const hash = createHash('sha256')
    const pieces: [number, Buffer][] = []
    await parallelRanges(source(`${nginx.url}/file`), async (position, chunk) => {
      await new Promise((resolve) => setImmediate(resolve))
      pieces.push([position, chunk])
    }, { partBytes })
    for (const [, chunk] of pieces.toSorted(([a], [b]) => a - b)) hash.update(chunk)
    expect(hash.digest().equals(createHash('sha256').update(bytes).digest())).toBe(true)
    const full = Object.assign(new Error('disk full'), { code: 'ENOSPC' })
    await expect(parallelRanges(source(`${nginx.url}/file`), () => Promise.reject(full), { partBytes })).rejects.toBe(full)
  })
})

describe('from a server that breaks', () => {
  test('each part is gone on with on its own', async () => {
    let broken = 0
    const server = await host((request, response, count) => {
      const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range!)!.map(Number)
      const end = Math.min(to, bytes.length - 1)
      response.writeHead(206, { etag: '"x"', 'content-range': `bytes ${from}-${end}/${bytes.length}`, 'content-length': end - from + 1 })
      if (count % 3 === 0 && end - from > 1000) {
        broken++
        response.write(bytes.subarray(from, from + 1000), () => response.destroy())
      } else response.end(bytes.subarray(from, end + 1))
    })
    expect((await download(source(server.url))).into.equals(bytes)).toBe(true)
    expect(broken).toBeGreaterThan(2)
  })

  test('a server that says it gives parts, and then sends everything', async () => {
    const server = await host((request, response) => {
      response.writeHead(200, { etag: '"x"', 'accept-ranges': 'bytes', 'content-length': bytes.length })
      expect(rangeStart(request.headers.range)).toBe(0)
      response.end(bytes)
    })
    expect((await download(source(server.url))).into.equals(bytes)).toBe(true)
    expect(server.requests.length).toBe(1)
  })

  test('one that changes the file between two parts', async () => {
    const server = await host((request, response, count) => {
      const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range!)!.map(Number)
      const end = Math.min(to, bytes.length - 1)
      response.writeHead(206, { etag: count > 4 ? '"y"' : '"x"', 'content-range': `bytes ${from}-${end}/${bytes.length}` }).end(bytes.subarray(from, end + 1))
    })
    await expect(download(source(server.url))).rejects.toMatchObject({ code: 'CONFLICT' })
  })
})
