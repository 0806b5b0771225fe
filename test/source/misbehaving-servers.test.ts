// What servers do wrong, and what is promised then: the right bytes or a clear error, never a short file, never two versions in one.
import { describe, expect, test } from '@jest/globals'
import { randomBytes } from 'node:crypto'
import { resumable } from '../../source/resumable.ts'
import { bytesOf, host, rangeStart, read, source } from './reading.ts'

const bytes = randomBytes(900_000)
const etag = '"one"'

describe('a download that breaks', () => {
  test('goes on where it broke, with the validator of what it has', async () => {
    const server = await host((request, response, count) => {
      const from = rangeStart(request.headers.range)
      response.writeHead(from === 0 ? 200 : 206, { etag, 'content-length': bytes.length - from, ...(from > 0 && { 'content-range': `bytes ${from}-${bytes.length - 1}/${bytes.length}` }) })
      if (count <= 3) response.write(bytes.subarray(from, from + 200_000), () => response.destroy())
      else response.end(bytes.subarray(from))
    })
    expect((await bytesOf(resumable(source(server.url), { backoffMs: 2 }))).equals(bytes)).toBe(true)
    expect(server.requests.slice(1).every(({ headers }) => rangeStart(headers.range) > 0 && headers['if-range'] === etag)).toBe(true)
  })

  test('is an error that says trying again helps, when it is read only once', async () => {
    for (const chunked of [false, true]) {
      const server = await host((_request, response) => {
        response.writeHead(200, { etag, ...(!chunked && { 'content-length': bytes.length }) })
        response.write(bytes.subarray(0, 100_000), () => response.destroy())
      })
      await expect(read(source(server.url))).rejects.toMatchObject({ code: 'UNAVAILABLE', details: { transient: true } })
    }
  })

  test('is passed over to where it was when the server ignores Range', async () => {
    const server = await host((_request, response, count) => {
      response.writeHead(200, { etag, 'content-length': bytes.length })
      if (count <= 2) response.write(bytes.subarray(0, 300_000 * count), () => response.destroy())
      else response.end(bytes)
    })
    expect((await bytesOf(resumable(source(server.url), { backoffMs: 2 }))).equals(bytes)).toBe(true)
    expect((await read(source(server.url), { offset: 123_456, length: 1000 })).bytes.equals(bytes.subarray(123_456, 124_456))).toBe(true)
  })

  test('without any validator is read again, and compared with what was read before', async () => {
    for (const changed of [false, true]) {
      const other = Buffer.from(bytes)
      if (changed) other[1000] ^= 1
      const server = await host((_request, response, count) => {
        response.writeHead(200, { 'content-length': bytes.length })
        if (count === 1) response.write(bytes.subarray(0, 400_000), () => response.destroy())
        else response.end(other)
      })
      const got = bytesOf(resumable(source(server.url), { backoffMs: 2 }))
      if (changed) await expect(got).rejects.toMatchObject({ code: 'CONFLICT' })
      else expect((await got).equals(bytes)).toBe(true)
      expect(server.requests.length).toBe(2)
    }
  })

  test('changed at the source meanwhile is a conflict, whatever the server answers', async () => {
    const answers = [
      { status: 200, headers: { etag: '"two"', 'content-length': bytes.length } },
      { status: 206, headers: { etag: '"two"', 'content-range': `bytes 200000-${bytes.length - 1}/${bytes.length}` } },
      { status: 206, headers: { etag, 'content-range': `bytes 200000-${bytes.length - 2}/${bytes.length - 1}` } },
      { status: 206, headers: { etag, 'content-range': `bytes 100000-${bytes.length - 1}/${bytes.length}` } },
      { status: 416, headers: { 'content-range': 'bytes */1000' } },
    ]
    for (const { status, headers } of answers) {
      const server = await host((_request, response, count) => {
        if (count === 1) {
          response.writeHead(200, { etag, 'content-length': bytes.length })
          response.write(bytes.subarray(0, 200_000), () => response.destroy())
        } else response.writeHead(status, headers as never).end(status === 206 ? bytes.subarray(200_000) : bytes)
      })
      let error: unknown
      let length = 0
      try {
        for await (const chunk of resumable(source(server.url), { backoffMs: 2 })) {
          expect(chunk.equals(bytes.subarray(length, length + chunk.length))).toBe(true)
          length += chunk.length
        }
      } catch (failure) {
        error = failure
      }
      expect(error).toMatchObject({ code: 'CONFLICT' })
      expect(length).toBeLessThanOrEqual(200_000)
    }
  })

  test('is given up when nothing comes any more, in bounded time', async () => {
    const server = await host((_request, response, count) => {
      response.writeHead(200, { etag, 'content-length': bytes.length })
      if (count === 1) response.write(bytes.subarray(0, 1000), () => response.destroy())
      else response.destroy()
    })
    await expect(bytesOf(resumable(source(server.url, { attempts: 1 }), { backoffMs: 5, stallMs: 150 }))).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    expect(server.requests.length).toBeGreaterThan(2)
  })

  test('a silent server is noticed', async () => {
    const server = await host((_request, response) => {
      response.writeHead(200, { 'content-length': bytes.length })
      response.write(bytes.subarray(0, 1000))
    })
    await expect(read(source(server.url, { bodyIdleTimeoutMs: 100 }))).rejects.toMatchObject({ code: 'TIMEOUT', details: { transient: true } })
    const mute = await host(() => {})
    await expect(source(mute.url, { headersTimeoutMs: 100, attempts: 1 }).open()).rejects.toMatchObject({ code: 'TIMEOUT' })
  })

  test('a reader that pauses is no silent server', async () => {
    const large = randomBytes(12_000_000)
    const server = await host((_request, response) => response.writeHead(200, { 'content-length': large.length }).end(large))
    const { body } = await source(server.url, { bodyIdleTimeoutMs: 150 }).open()
    const got: Buffer[] = []
    for await (const chunk of body!) {
      if (got.length === 3) await new Promise((resolve) => setTimeout(resolve, 1500))
      got.push(chunk)
    }
    expect(Buffer.concat(got).equals(large)).toBe(true)
  })

  test('a reader that leaves frees the connection, also before the first byte', async () => {
    const closed: Promise<unknown>[] = []
    const server = await host((request, response) => {
      closed.push(new Promise((resolve) => request.socket.once('close', resolve)))
      response.writeHead(200, { 'content-length': 1e9 }).write(bytes)
    })
    const from = source(server.url)
    const untouched = await from.open()
    await untouched.body!.return!()
    for await (const _chunk of (await from.open()).body!) break
    expect(closed.length).toBe(2)
    await Promise.all(closed)
  })
})

describe('answers that cannot be', () => {
  test.each([
    ['a part nobody asked for', 206, { 'content-range': 'bytes 0-9/10' }, {}, 'INVALID_DATA'],
    ['a part that does not say which', 206, {}, { offset: 5 }, 'INVALID_DATA'],
    ['several parts', 206, { 'content-type': 'multipart/byteranges; boundary=x' }, { offset: 5 }, 'INVALID_DATA'],
    ['another part', 206, { 'content-range': 'bytes 0-9/10' }, { offset: 5 }, 'CONFLICT'],
    ['a part of another length than it says', 206, { 'content-range': 'bytes 5-9/10', 'content-length': '3' }, { offset: 5 }, 'CONFLICT'],
    ['an impossible part', 206, { 'content-range': 'bytes 5-9/8' }, { offset: 5 }, 'INVALID_DATA'],
    ['unchanged, though nobody asked', 304, {}, {}, 'INVALID_DATA'],
    ['nothing', 204, {}, {}, 'INVALID_DATA'],
    ['a refusal', 403, {}, {}, 'FORBIDDEN'],
    ['gone', 410, {}, {}, 'NOT_FOUND'],
    ['no such method', 405, {}, {}, 'UNSUPPORTED'],
  ] as const)('%s', async (_name, status, headers, options, code) => {
    const server = await host((_request, response) => {
      response.writeHead(status, headers as never)
      response.end('12345'.slice(0, Number((headers as Record<string, string>)['content-length'] ?? 5)))
    })
    await expect(read(source(server.url), options)).rejects.toMatchObject({ code })
  })

  test('a server that ignores conditions: the same version is dropped unread', async () => {
    const server = await host((_request, response) => response.writeHead(200, { etag, 'content-length': bytes.length }).end(bytes))
    const from = source(server.url)
    const { head } = await read(from)
    expect(await from.open({ ifNot: head.version })).toMatchObject({ unchanged: true, head: { version: head.version } })
  })

  test('a weak ETag that stays while Last-Modified and length change is another version', async () => {
    const server = await host((request, response, count) => {
      if (request.headers['if-none-match'] !== undefined) response.writeHead(304, { etag: 'W/"x"', 'last-modified': 'Wed, 15 Nov 2023 00:00:00 GMT' }).end()
      else response.writeHead(200, { etag: 'W/"x"', 'last-modified': `${count === 1 ? 'Tue, 14' : 'Wed, 15'} Nov 2023 00:00:00 GMT`, 'content-length': 4 + count }).end('x'.repeat(4 + count))
    })
    const from = source(server.url)
    const { head } = await read(from)
    const again = await read(from, { ifNot: head.version })
    expect([again.unchanged, again.bytes.length]).toEqual([false, 7])
    expect(server.requests[0].headers['if-range']).toBeUndefined()
  })

  test('Last-Modified in the very second of the answer tells no versions apart', async () => {
    const now = new Date().toUTCString()
    const server = await host((_request, response) => response.writeHead(200, { 'last-modified': now, date: now }).end('x'))
    expect((await read(source(server.url))).head.validated).toBe(false)
  })
})

describe('a busy source', () => {
  test('is asked again after the time it wants, if that is bearable', async () => {
    const server = await host((_request, response, count) => (count < 3 ? response.writeHead(503, { 'retry-after': '0' }).end() : response.end('here')))
    expect((await read(source(server.url))).bytes.toString()).toBe('here')
    const hours = await host((_request, response) => response.writeHead(429, { 'retry-after': '7200' }).end())
    await expect(source(hours.url).open()).rejects.toMatchObject({ code: 'UNAVAILABLE', details: { retryAfterSeconds: 7200, status: 429 } })
    expect(hours.requests.length).toBe(1)
  })
})

describe('redirects', () => {
  test('secrets and unknown headers stay with the first host', async () => {
    const other = await host((_request, response) => response.end('body'))
    const first = await host((request, response) => response.writeHead(302, { location: `${other.url.replace('127.0.0.1', 'localhost')}${request.url}` }).end())
    const headers = { Authorization: 'Bearer s3cret', Cookie: 'a=b', 'X-Custom': 'mine', 'User-Agent': 'someone', Accept: 'text/plain' }
    expect((await read(source(`${first.url}/x`, { headers }), { offset: 1 }).catch((error: unknown) => error))).toMatchObject({ bytes: Buffer.from('ody') })
    expect(first.requests[0].headers).toMatchObject({ authorization: 'Bearer s3cret', cookie: 'a=b', 'x-custom': 'mine', 'user-agent': 'someone' })
    const seen = other.requests[0].headers
    expect([seen.authorization, seen.cookie, seen['x-custom']]).toEqual([undefined, undefined, undefined])
    expect(seen).toMatchObject({ 'user-agent': 'someone', accept: 'text/plain', range: 'bytes=1-' })
  })

  test('ten are followed, loops are not', async () => {
    const server = await host((request, response) => {
      const left = Number(request.url!.slice(1))
      if (left === 0) response.end('there')
      else response.writeHead(307, { location: `/${left - 1}` }).end()
    })
    expect((await read(source(`${server.url}/10`))).bytes.toString()).toBe('there')
    await expect(source(`${server.url}/11`).open()).rejects.toMatchObject({ code: 'INVALID_DATA' })
  })

  test('never to other protocols', async () => {
    for (const location of ['file:///etc/passwd', 'ftp://127.0.0.1/x', 'http://user:word@127.0.0.1/', 'gopher://x']) {
      const server = await host((_request, response) => response.writeHead(302, { location }).end())
      await expect(source(server.url).open()).rejects.toMatchObject({ code: 'INVALID_DATA' })
    }
  })
})

describe('addresses that are not allowed', () => {
  const allow = (address: string): boolean => !/^(?:127\.|0\.|::1$)/.test(address)

  test('are refused however they are written, before a connection is made', async () => {
    const server = await host((_request, response) => response.end('secret'))
    const port = server.host.split(':')[1]
    for (const name of ['127.0.0.1', '2130706433', '0x7f.1', '017700000001', '127.1', 'localhost', '[::ffff:127.0.0.1]', '[::ffff:7f00:1]', '[64:ff9b::7f00:1]', '[::1]', '0.0.0.0']) {
      await expect(source(`http://${name}:${port}/`, { allow }).open()).rejects.toMatchObject({ code: 'FORBIDDEN' })
    }
    expect(server.requests.length).toBe(0)
  })

  test('neither by a redirect', async () => {
    const inner = await host((_request, response) => response.end('secret'))
    const port = inner.host.split(':')[1]
    let first = true
    // The first address is let through, as a public one would be.
    const once = (address: string): boolean => (first ? !(first = false) : allow(address))
    for (const name of ['127.0.0.1', 'localhost', '[::ffff:7f00:1]', '2130706433']) {
      const outer = await host((_request, response) => response.writeHead(302, { location: `http://${name}:${port}/` }).end())
      first = true
      await expect(source(outer.url, { allow: once, attempts: 1 }).open()).rejects.toMatchObject({ code: 'FORBIDDEN' })
    }
    expect(inner.requests.length).toBe(0)
  })
})

describe('what a caller may ask', () => {
  test('headers that are none, or not the caller\'s, are refused without repeating their values', () => {
    for (const headers of [{ 'a b': 'hush' }, { a: 'hush\r\nb: c' }, { Range: 'bytes=1-' }, { 'If-None-Match': 'hush' }, { a: 'hush', A: 'hush' }, { a: 'hush\u0000' }, { a: '→hush' }]) {
      expect(() => source('http://127.0.0.1/', { headers: headers as never })).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.not.stringContaining('hush') }))
    }
  })

  test('schemes', () => {
    for (const [url, code] of [['ftp://x/y', 'INVALID_ARGUMENT'], ['nonsense', 'INVALID_ARGUMENT'], ['file:///etc/passwd', 'FORBIDDEN'], ['s3://bucket/key', 'UNSUPPORTED'], ['oci://host', 'INVALID_ARGUMENT']]) {
      expect(() => source(url)).toThrow(expect.objectContaining({ code }))
    }
  })
})
