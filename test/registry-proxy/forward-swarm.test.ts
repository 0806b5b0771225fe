// Rules that send requests through the swarm: files as downloads of the node, and what goes to the server itself all the same.
import { gzipSync } from 'node:zlib'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { CONTENT, until } from './forward-lab.ts'
import { SwarmLab } from './forward-swarm-lab.ts'

let lab: SwarmLab
beforeEach(() => {
  lab = new SwarmLab()
})
afterEach(() => lab.end())

const SWARM = { rules: [{ match: '/files/' }] }
const ways = async (way: string, outcome = 'ok'): Promise<number> => await lab.counted('skimmer_forward_requests_total', { way, outcome })

test('a blob that was broken off because it is wrong has failed; one whose client went is gone', async () => {
  let held = 0
  const origin = await lab.origin({
    answer: (request, response) => {
      response.writeHead(200, { 'content-length': CONTENT.length })
      if (request.method === 'HEAD') response.end()
      else if (request.url!.includes('/slow/')) held = Number(response.write(CONTENT.subarray(0, 2_000_000)) || true)
      else response.end(CONTENT)
    },
  })
  await lab.startSwarm({ rules: [{ match: '/v2/' }] })
  expect((await lab.curl(`http://127.0.0.1:${origin.port}/v2/app/blobs/sha256:${'0'.repeat(64)}`)).code).not.toBe(0)
  await until(async () => (await ways('blob', 'failed')) === 1)
  expect((await lab.curl(`http://127.0.0.1:${origin.port}/v2/slow/blobs/sha256:${'1'.repeat(64)}`, '--max-time', '1')).code).not.toBe(0)
  await until(async () => (await ways('blob', 'gone')) === 1)
  expect([held, await ways('blob', 'failed'), await ways('blob')]).toEqual([1, 1, 0])
})

describe('files through the swarm', () => {
  test('come as the server has them, in one download for all who ask at once', async () => {
    const waiting: (() => void)[] = []
    const origin = await lab.origin({
      answer: (_, response) => {
        response.writeHead(200, { 'content-type': 'application/x-thing', 'content-length': CONTENT.length, etag: '"one"', 'last-modified': 'Sat, 01 Jan 2022 00:00:00 GMT' })
        response.write(CONTENT.subarray(0, 1_500_000))
        waiting.push(() => response.end(CONTENT.subarray(1_500_000)))
      },
    })
    await lab.startSwarm(SWARM)
    const clients = Array.from({ length: 4 }, () => lab.curl(`http://localhost:${origin.port}/files/a?x=1`, '-D', '-'))
    await until(() => waiting.length > 0)
    // All four joined the download before it could end.
    await until(async () => (await lab.counted('skimmer_forward_sent_bytes', { way: 'file' })) >= 4 * 1_000_000)
    for (const finish of waiting) finish()
    for (const { body, stdout } of await Promise.all(clients)) {
      expect(body.equals(CONTENT)).toBe(true)
      expect(stdout).toMatch(/content-type: application\/x-thing\r\n/i)
      expect(stdout).toMatch(new RegExp(`content-length: ${CONTENT.length}\r\n`, 'i'))
      expect(stdout).toMatch(/etag: "one"\r\n/i)
    }
    expect(origin.requests).toHaveLength(1)
    expect(await ways('file')).toBe(4)
  })

  test('a part of them', async () => {
    const origin = await lab.origin()
    await lab.startSwarm(SWARM)
    const part = await lab.curl(`http://localhost:${origin.port}/files/a`, '-r', '1000000-1999999', '-D', '-')
    expect(part.status).toBe(206)
    expect(part.body.equals(CONTENT.subarray(1_000_000, 2_000_000))).toBe(true)
    expect(part.stdout).toMatch(/content-range: bytes 1000000-1999999\/3000000\r\n/i)
    expect(await lab.curl(`http://localhost:${origin.port}/files/a`, '-r', '5000000-')).toMatchObject({ status: 416 })
  })

  test('of unknown length too', async () => {
    const origin = await lab.origin({
      answer: (_, response) => {
        response.write(CONTENT)
        response.end('the end')
      },
    })
    await lab.startSwarm(SWARM)
    expect((await lab.curl(`http://localhost:${origin.port}/files/a`)).body.equals(Buffer.concat([CONTENT, Buffer.from('the end')]))).toBe(true)
    expect(await ways('file')).toBe(1)
  })

  test('one that is stored encoded says so', async () => {
    const stored = gzipSync(CONTENT)
    const origin = await lab.origin({ answer: (_, response) => void response.writeHead(200, { 'content-length': stored.length, 'content-encoding': 'gzip', etag: '"one"' }).end(stored) })
    await lab.startSwarm(SWARM)
    const { body, stdout } = await lab.curl(`http://localhost:${origin.port}/files/a`, '-D', '-')
    expect(stdout).toMatch(/content-encoding: gzip\r\n/i)
    expect(body.equals(stored)).toBe(true)
    expect(await ways('file')).toBe(1)
  })

  test('an empty one', async () => {
    const origin = await lab.origin({ answer: (_, response) => void response.writeHead(200, { 'content-length': 0 }).end() })
    await lab.startSwarm(SWARM)
    expect(await lab.curl(`http://localhost:${origin.port}/files/a`)).toMatchObject({ status: 200, body: Buffer.alloc(0) })
  })

  test('what proves who asks reaches the server, what only names the client does not', async () => {
    const origin = await lab.origin()
    await lab.startSwarm(SWARM)
    await lab.curl(`http://localhost:${origin.port}/files/a`, '-H', 'Authorization: Bearer t', '-H', 'X-Custom: 1', '-A', 'odd/1', '-H', 'Cookie: a=b')
    expect(origin.requests[0].headers).toMatchObject({ authorization: 'Bearer t', 'x-custom': '1', cookie: 'a=b' })
    expect(origin.requests[0].headers['user-agent']).not.toBe('odd/1')
  })

  test("when the swarm cannot give it the client gets the server's own answer", async () => {
    const origin = await lab.origin({
      answer: (request, response) => {
        response.writeHead(request.url!.includes('private') ? 401 : 404, { 'www-authenticate': 'Basic realm="theirs"', 'x-own': 'yes' })
        response.end('their own words')
      },
    })
    await lab.startSwarm(SWARM)
    const missing = await lab.curl(`http://localhost:${origin.port}/files/missing`, '-D', '-')
    expect([missing.status, missing.body.toString()]).toEqual([404, 'their own words'])
    const asked = await lab.curl(`http://localhost:${origin.port}/files/private`, '-D', '-')
    expect(asked.stdout).toMatch(/WWW-Authenticate: Basic realm="theirs"\r\n/i)
    expect(await lab.counted('skimmer_forward_fallbacks_total', {})).toBe(2)
    expect(await ways('direct')).toBe(2)
  })

  test('a file whose server breaks off for good is broken towards the client', async () => {
    const origin = await lab.origin({
      answer: (_, response) => {
        response.writeHead(200, { 'content-length': CONTENT.length, etag: '"one"' })
        response.write(CONTENT.subarray(0, 2_500_000), () => response.destroy())
      },
    })
    await lab.startSwarm(SWARM)
    const ended = lab.curl(`http://localhost:${origin.port}/files/a`, '--max-time', '2')
    const { code, body } = await ended
    expect(code).not.toBe(0)
    expect(body.equals(CONTENT.subarray(0, body.length))).toBe(true)
    expect(body.length).toBeLessThan(CONTENT.length)
  })

  test('only GET, without a body and without conditions', async () => {
    const origin = await lab.origin({ answer: (request, response) => void request.resume().on('end', () => response.writeHead(request.headers['if-none-match'] ? 304 : 200).end()) })
    await lab.startSwarm(SWARM)
    const url = `http://localhost:${origin.port}/files/a`
    expect((await lab.curl(url, '-X', 'POST', '-d', 'x')).status).toBe(200)
    expect((await lab.curl(url, '-I')).status).toBe(200)
    expect((await lab.curl(url, '-H', 'If-None-Match: "x"')).status).toBe(304)
    expect((await lab.curl(url, '-X', 'DELETE')).status).toBe(200)
    expect(await ways('direct')).toBe(4)
    expect(await ways('file')).toBe(0)
  })

  test('inside opened TLS, by a rule that names the host', async () => {
    const authority = lab.certificate('authority', { authority: true })
    const server = lab.certificate('server')
    const origin = await lab.origin({ tls: server })
    await lab.startSwarm({
      rules: [{ match: '^https://files\\.example/', redirect: `localhost:${origin.port}` }],
      'connect-ports': 'any',
      intercept: { cert: authority.cert, key: authority.key, hosts: [{ match: '\\.example$', ca: server.cert }] },
    })
    const { body, status } = await lab.curl('https://files.example/a', '--cacert', authority.certFile)
    expect(status).toBe(200)
    expect(body.equals(CONTENT)).toBe(true)
    expect(origin.requests[0].headers.host).toBe(`localhost:${origin.port}`)
    expect(await ways('file')).toBe(1)
  })

  test('plain HTTP from the client, TLS to the server', async () => {
    const server = lab.certificate('server')
    const origin = await lab.origin({ tls: server })
    await lab.startSwarm({ rules: [{ match: '^http://files\\.example/', through: 'direct', 'use-https': true, redirect: `localhost:${origin.port}` }] }, { [`localhost:${origin.port}`]: { ca: server.cert } })
    expect((await lab.curl('http://files.example/a')).body.equals(CONTENT)).toBe(true)
  })
})
