// What a real web server answers: one GET for head and body, versions, parts, conditions, encodings, credentials, TLS.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { mkdtemp, rm, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { execFileSync } from 'node:child_process'
import { gzipSync } from 'node:zlib'
import { resumable } from '../../source/resumable.ts'
import { makeCertificates } from '../oci/http-fixture.ts'
import { haveNginx, startNginx } from './nginx-fixture.ts'
import type { RunningNginx } from './nginx-fixture.ts'
import { afterTest, bytesOf, read, source } from './reading.ts'

const describeNginx = haveNginx ? describe : describe.skip
const bytes = randomBytes(2_000_003)

describeNginx('files of nginx', () => {
  let nginx: RunningNginx
  let directory: string
  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'skimmer-source-'))
    await writeFile(join(directory, 'htpasswd'), `me:${execFileSync('perl', ['-e', 'print crypt($ARGV[0], q($1$abcdefgh))', 'p@ss word'], { encoding: 'utf8' })}\n`)
    nginx = await startNginx({
      server: [
        'location /dated/ { etag off; }',
        'location /bare/ { etag off; add_header Last-Modified ""; }',
        'location /zipped/ { gzip_static on; }',
        'location /weak/ { gzip on; gzip_types *; gzip_min_length 1; }',
        'location /whole/ { max_ranges 0; }',
        `location /private/ { auth_basic on; auth_basic_user_file ${directory}/htpasswd; }`,
        'location /moved/ { rewrite ^/moved/(.*)$ /$1 redirect; }',
      ].join('\n').replaceAll(/location (\/\w+\/) \{(?! rewrite)/g, (_, path: string) => `location ${path} { alias ${directory}/;`),
      root: directory,
    })
    await writeFile(join(directory, 'file'), bytes)
    await utimes(join(directory, 'file'), 1_700_000_000, 1_700_000_000)
    await writeFile(join(directory, 'empty'), '')
  })
  afterAll(async () => {
    await nginx?.stop()
    await rm(directory, { recursive: true, force: true })
  })
  test('come with their head in one GET', async () => {
    const { head, bytes: got } = await read(source(`${nginx.url}/file?once`))
    expect(got.equals(bytes)).toBe(true)
    expect(head).toMatchObject({ length: bytes.length, ranges: true, validated: true, contentType: 'application/octet-stream' })
    expect(head.etag).toMatch(/^"/)
    expect((await nginx.requests(({ url }) => url === '/file?once')).map(({ method, status }) => [method, status])).toEqual([['GET', 200]])
  })

  test.each(['/file', '/dated/file', '/whole/file'])('%s: a part of the version that was seen is exactly that part', async (path) => {
    const from = source(nginx.url + path)
    const { head } = await read(from)
    for (const [offset, length] of [[0, 1], [1000, 5000], [bytes.length - 1, 1], [bytes.length - 10, 1000], [5, undefined]] as const) {
      const part = await read(from, { offset, length, version: head.version })
      expect(part.bytes.equals(bytes.subarray(offset, length === undefined ? undefined : offset + length))).toBe(true)
      expect(part.head).toMatchObject({ version: head.version, length: bytes.length })
    }
    expect((await read(from, { offset: bytes.length, version: head.version }).catch((error: unknown) => error))).toMatchObject({ bytes: Buffer.alloc(0) })
  })

  test.each(['/file', '/dated/file'])('%s: an unchanged one is not sent again, a changed one comes at once', async (path) => {
    const from = source(nginx.url + path)
    const { head } = await read(from)
    expect(await read(from, { ifNot: head.version })).toMatchObject({ unchanged: true, head: { version: head.version } })
    expect(await nginx.requests(({ url, status }) => url === path && status === 304)).toMatchObject([{ bytes: 0 }])
    const changed = randomBytes(1000)
    await writeFile(join(directory, 'file'), changed)
    await utimes(join(directory, 'file'), 1_700_000_500, 1_700_000_500)
    try {
      const again = await read(from, { ifNot: head.version })
      expect(again.unchanged).toBe(false)
      expect(again.bytes.equals(changed)).toBe(true)
      expect(again.head.version).not.toBe(head.version)
      await expect(read(from, { offset: 10, version: head.version })).rejects.toMatchObject({ code: 'CONFLICT' })
    } finally {
      await writeFile(join(directory, 'file'), bytes)
      await utimes(join(directory, 'file'), 1_700_000_000, 1_700_000_000)
    }
  })

  test('without ETag and Last-Modified every answer is a version of its own', async () => {
    const from = source(`${nginx.url}/bare/file`)
    const first = await read(from)
    expect(first.head.validated).toBe(false)
    const second = await read(from, { ifNot: first.head.version })
    expect(second.unchanged).toBe(false)
    expect(second.head.version).not.toBe(first.head.version)
    await expect(from.open({ offset: 3, version: first.head.version })).rejects.toMatchObject({ code: 'CONFLICT' })
    expect((await nginx.requests(({ url }) => url === '/bare/file', 2)).length).toBe(2)
  })

  test('an encoded answer stays as it is on the wire, and is another version', async () => {
    await writeFile(join(directory, 'text'), 'some text '.repeat(1000))
    await writeFile(join(directory, 'text.gz'), gzipSync('some text '.repeat(1000)))
    const plain = await read(source(`${nginx.url}/zipped/text`))
    expect(plain.bytes.toString()).toBe('some text '.repeat(1000))
    const packed = await read(source(`${nginx.url}/zipped/text`, { headers: { 'Accept-Encoding': 'gzip' } }))
    expect(packed.bytes.equals(readFileSync(join(directory, 'text.gz')))).toBe(true)
    expect(packed.head).toMatchObject({ contentEncoding: 'gzip', length: packed.bytes.length })
    expect(packed.head.version).not.toBe(plain.head.version)
    // Packed on the fly: chunked, with a weak ETag.
    const weak = source(`${nginx.url}/weak/text`, { headers: { 'Accept-Encoding': 'gzip' } })
    const flying = await read(weak)
    expect(flying.head).toMatchObject({ contentEncoding: 'gzip', validated: true })
    expect(flying.head.length).toBeUndefined()
    expect(flying.head.etag).toMatch(/^W\//)
    expect((await weak.open({ ifNot: flying.head.version })).unchanged).toBe(true)
    expect((await bytesOf(resumable(weak))).equals(flying.bytes)).toBe(true)
  })

  test('an empty file is one', async () => {
    const from = source(`${nginx.url}/empty`)
    const { head, bytes: got } = await read(from)
    expect([head.length, got.length]).toEqual([0, 0])
    expect((await read(from, { length: 100 })).bytes.length).toBe(0)
  })

  test('credentials in the URL or in a header open what is private, and never show in an error', async () => {
    const url = nginx.url.replace('//', '//me:p%40ss%20word@')
    expect((await read(source(`${url}/private/file`))).bytes.equals(bytes)).toBe(true)
    const authorization = `Basic ${Buffer.from('me:p@ss word').toString('base64')}`
    expect((await read(source(`${nginx.url}/private/file`, { headers: { Authorization: authorization } }))).bytes.equals(bytes)).toBe(true)
    const wrong = source(`${nginx.url.replace('//', '//me:wr0ng-secret@')}/private/file?signature=t0psecret`, { headers: { Cookie: 'session=hidden' } })
    const error = await wrong.open().catch((failure: unknown) => failure as Error)
    expect(error).toMatchObject({ code: 'UNAUTHORIZED' })
    expect(`${JSON.stringify(error)} ${String((error as Error).stack)} ${wrong.url.href}`).not.toMatch(/wr0ng|t0psecret|hidden|d3IwbmctY/)
  })

  test('redirects are followed, also for a part', async () => {
    const from = source(`${nginx.url}/moved/file`)
    const { head } = await read(from)
    expect((await read(from, { offset: 100, length: 50, version: head.version })).bytes.equals(bytes.subarray(100, 150))).toBe(true)
  })

  test('what is not there, and what is no position in it, are told apart', async () => {
    await expect(source(`${nginx.url}/nothing?token=abc`).open()).rejects.toMatchObject({ code: 'NOT_FOUND', message: expect.not.stringContaining('abc') })
    await expect(source(`${nginx.url}/file`).open({ offset: bytes.length + 1 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    await expect(source(`${nginx.url}/whole/file`).open({ offset: bytes.length + 1 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
    await expect(source('http://127.0.0.1:1/').open()).rejects.toMatchObject({ code: 'UNAVAILABLE' })
  })

  test('a server that dies in the middle and comes back is read on', async () => {
    const root = await mkdtemp(join(tmpdir(), 'skimmer-source-'))
    afterTest(() => rm(root, { recursive: true, force: true }))
    const large = randomBytes(6_000_000)
    await writeFile(join(root, 'large'), large)
    const first = await startNginx({ root, location: 'limit_rate 8m; limit_rate_after 1m;' })
    afterTest(() => first.stop())
    const got: Buffer[] = []
    let length = 0
    let second: RunningNginx | undefined
    afterTest(() => second?.stop())
    for await (const chunk of resumable(source(`${first.url}/large`, { attempts: 1 }), { backoffMs: 10, stallMs: 20_000 })) {
      got.push(chunk)
      length += chunk.length
      if (second === undefined && length > 1_500_000) {
        await first.kill()
        second = await startNginx({ root, port: first.port })
      }
    }
    expect(Buffer.concat(got).equals(large)).toBe(true)
    expect((await second!.requests(() => true)).map(({ status }) => status)).toEqual([206])
  })

  test('a private authority is trusted when it is given, and only then', async () => {
    const certificates = makeCertificates(directory)
    const secure = await startNginx({ root: directory, tls: certificates })
    afterTest(() => secure.stop())
    await expect(source(`${secure.url}/file`).open()).rejects.toMatchObject({ code: 'UNAVAILABLE', message: expect.stringContaining('not trusted') })
    expect((await read(source(`${secure.url}/file`, { ca: readFileSync(certificates.ca, 'utf8') }))).bytes.equals(bytes)).toBe(true)
    expect((await read(source(`${secure.url}/file`, { insecure: true }))).bytes.equals(bytes)).toBe(true)
    // A path is never read for a request that may come from elsewhere.
    expect(() => source(`${secure.url}/file`, { ca: certificates.ca })).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
  })
})
