// Plain requests and CONNECT through the forward proxy: what passes, what is refused, and what is said then.
import http from 'node:http'
import net from 'node:net'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { run } from '../../bench/lab/process.ts'
import { CONTENT, ForwardLab, until } from './forward-lab.ts'

let lab: ForwardLab
beforeEach(() => {
  lab = new ForwardLab()
})
afterEach(() => lab.end())

describe('requests that are passed on', () => {
  test('curl and wget get a file as the server gives it', async () => {
    const origin = await lab.origin()
    await lab.start()
    const { body, status } = await lab.curl(`http://localhost:${origin.port}/a%20b?q=1`)
    expect(status).toBe(200)
    expect(body.equals(CONTENT)).toBe(true)
    expect(origin.requests[0]).toMatchObject({ method: 'GET', url: '/a%20b?q=1', headers: { host: `localhost:${origin.port}`, via: expect.stringMatching(/^1\.1 skimmer-/) } })
    const wgot = `${lab.directory}/wget`
    await run(['wget', '-q', '-O', wgot, `http://localhost:${origin.port}/x`], { env: { http_proxy: lab.url, no_proxy: '' } })
    await run(['cmp', wgot, lab.file('content', CONTENT)])
    expect(await lab.counted('skimmer_forward_requests_total', { way: 'direct', outcome: 'ok' })).toBe(2)
    expect(await lab.counted('skimmer_forward_sent_bytes', { way: 'direct' })).toBe(2 * CONTENT.length)
  })

  test('through CONNECT too', async () => {
    const origin = await lab.origin()
    await lab.start({ 'connect-ports': 'any' })
    const { body } = await lab.curl(`http://localhost:${origin.port}/`, '-p')
    expect(body.equals(CONTENT)).toBe(true)
    expect(origin.requests[0].headers.via).toBeUndefined()
    await until(async () => (await lab.counted('skimmer_forward_requests_total', { way: 'tunnel', outcome: 'ok' })) === 1)
  })

  test('an upload reaches the server whole, with its length or chunked', async () => {
    const got: Buffer[] = []
    const origin = await lab.origin({
      answer: (request, response) => {
        const chunks: Buffer[] = []
        request.on('data', (chunk: Buffer) => chunks.push(chunk)).on('end', () => {
          got.push(Buffer.concat(chunks))
          response.writeHead(201).end('kept')
        })
      },
    })
    await lab.start()
    const file = lab.file('upload', CONTENT)
    expect((await lab.curl(`http://localhost:${origin.port}/`, '-T', file)).status).toBe(201)
    expect((await lab.curl(`http://localhost:${origin.port}/`, '--data-binary', `@${file}`, '-H', 'Transfer-Encoding: chunked')).status).toBe(201)
    expect(got.every((body) => body.equals(CONTENT))).toBe(true)
    expect(origin.requests.map(({ headers }) => headers['transfer-encoding'])).toEqual([undefined, 'chunked'])
  })

  test('a GET with a body smuggles no second request', async () => {
    const origin = await lab.origin({ answer: (request, response) => void request.resume().on('end', () => response.end('ok')) })
    await lab.start()
    const inner = 'GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n'
    await lab.raw(`GET http://localhost:${origin.port}/a HTTP/1.1\r\nHost: y\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n${inner.length.toString(16)}\r\n${inner}\r\n0\r\n\r\n`)
    expect(origin.requests.map(({ url }) => url)).toEqual(['/a'])
    expect(await lab.raw(`POST http://localhost:${origin.port}/b HTTP/1.1\r\nHost: y\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`)).toMatch(/^HTTP\/1\.1 400 /)
    expect(origin.requests).toHaveLength(1)
  })

  test('what belongs to one connection stays behind, the rest keeps its order and spelling', async () => {
    const origin = await lab.origin({
      answer: (_, response) => {
        response.writeHead(200, ['X-Kept', '1', 'X-Kept', '2', 'Connection', 'close, X-Dropped', 'X-Dropped', '1', 'Proxy-Authenticate', 'Basic', 'Content-Length', '2'])
        response.end('ok')
      },
    })
    await lab.start({}, {}, { users: ['ann:secret-of-ann'] })
    const { stdout } = await run(['curl', '-sS', '-i', '-x', lab.url, '-U', 'ann:secret-of-ann', '-H', 'X-Odd-CASE: a', '-H', 'TE: trailers', '-H', 'Connection: X-Mine', '-H', 'X-Mine: 1', `http://localhost:${origin.port}/`])
    expect(stdout).toMatch(/X-Kept: 1\r\nX-Kept: 2\r\n/)
    expect(stdout).not.toMatch(/X-Dropped|Proxy-Authenticate/i)
    const [{ headers, raw }] = origin.requests
    expect(raw).toContain('X-Odd-CASE')
    for (const name of ['proxy-authorization', 'proxy-connection', 'te', 'x-mine']) expect(headers[name]).toBeUndefined()
    expect(lab.logged.join('')).not.toMatch(/secret-of-ann|YW5uOnNlY3JldC/)
  })

  test('a server that ends in the middle looks broken to the client', async () => {
    const origin = await lab.origin({
      answer: (_, response) => {
        response.writeHead(200, { 'content-length': CONTENT.length })
        response.write(CONTENT.subarray(0, 1_000_000), () => response.destroy())
      },
    })
    const chunked = await lab.origin({ answer: (_, response) => void response.write(CONTENT.subarray(0, 1_000_000), () => response.destroy()) })
    await lab.start()
    expect((await lab.curl(`http://localhost:${origin.port}/`)).code).toBe(18)
    expect((await lab.curl(`http://localhost:${chunked.port}/`)).code).not.toBe(0)
  })

  test('a client that goes away is not read for any longer', async () => {
    let ended = false
    const origin = await lab.origin({
      answer: (_, response) => {
        response.on('close', () => (ended = true))
        response.writeHead(200)
        const more = (): void => void (response.destroyed || response.write(CONTENT, more))
        more()
      },
    })
    await lab.start()
    const socket = net.connect(Number(lab.proxy.address.split(':')[1]), '127.0.0.1', () => socket.write(`GET http://localhost:${origin.port}/ HTTP/1.1\r\nHost: x\r\n\r\n`))
    await new Promise((resolve) => socket.once('data', resolve))
    socket.destroy()
    await until(() => ended)
    await until(async () => (await lab.counted('skimmer_forward_requests_total', { way: 'direct', outcome: 'gone' })) === 1)
  })

  test('a slow client holds back the server instead of filling memory', async () => {
    let written = 0
    const origin = await lab.origin({
      answer: (_, response) => {
        response.writeHead(200)
        const more = (): void => {
          while (!response.destroyed && response.write(CONTENT)) written += CONTENT.length
          written += CONTENT.length
          response.once('drain', more)
        }
        more()
      },
    })
    await lab.start({}, {}, { limits: { idleMs: 500 } })
    const socket = net.connect(Number(lab.proxy.address.split(':')[1]), '127.0.0.1', () => socket.write(`GET http://localhost:${origin.port}/ HTTP/1.1\r\nHost: x\r\n\r\n`))
    socket.pause()
    // It takes nothing: the proxy lets go after the idle time.
    await until(async () => (await lab.counted('skimmer_forward_requests_total', { way: 'direct', outcome: 'gone' })) + (await lab.counted('skimmer_forward_requests_total', { way: 'direct', outcome: 'failed' })) === 1)
    expect(written).toBeLessThan(100 * CONTENT.length)
    socket.destroy()
  })

  test('a server that stops in the middle of an answer, or of taking an upload, is not waited for for ever', async () => {
    const origin = await lab.origin({
      answer: (request, response) => {
        if (request.method === 'PUT') return // Reads nothing, says nothing.
        response.writeHead(200, { 'content-length': 10 })
        response.write('half')
      },
    })
    await lab.start({}, {}, { limits: { idleMs: 200 } })
    const got = await lab.curl(`http://localhost:${origin.port}/`)
    expect([got.code, got.body.toString()]).toEqual([18, 'half'])
    const put = await lab.curl(`http://localhost:${origin.port}/`, '-T', lab.file('upload', Buffer.concat(Array.from({ length: 10 }, () => CONTENT))))
    expect(put.status === 504 || put.code !== 0).toBe(true)
  })

  test('many uploads over one connection', async () => {
    const warnings: Error[] = []
    const note = (warning: Error): void => void warnings.push(warning)
    process.on('warning', note)
    const origin = await lab.origin({ answer: (request, response) => void request.resume().on('end', () => response.end('ok')) })
    await lab.start()
    for (let time = 0; time < 30; time++) expect((await lab.curl(`http://localhost:${origin.port}/`, '-d', 'x')).status).toBe(200)
    process.off('warning', note)
    expect(warnings).toEqual([])
  })

  test('an idle connection that the server closed is not the client\'s trouble', async () => {
    const origin = await lab.origin({
      answer: (request, response) => {
        // Gone right after the answer, without saying so.
        response.end('ok', () => setImmediate(() => request.socket.destroy()))
      },
    })
    await lab.start()
    for (let time = 0; time < 20; time++) expect((await lab.curl(`http://localhost:${origin.port}/`)).body.toString()).toBe('ok')
  })
})

describe('upgrades', () => {
  const echoing = (): http.Server =>
    http.createServer((_, response) => void response.writeHead(426).end('no')).on('upgrade', (request: http.IncomingMessage, socket: net.Socket) => {
      if (request.url === '/refused') return void socket.end('HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nno!\n')
      socket.write(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${request.headers.upgrade}\r\n\r\n`)
      socket.pipe(socket)
    })
  const ask = (port: number, path: string, protocol = 'websocket'): string => `GET http://127.0.0.1:${port}${path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: ${protocol}\r\n\r\n`

  test('a WebSocket is passed on both ways', async () => {
    const port = await lab.listen(echoing())
    await lab.start()
    const socket = net.connect(Number(lab.proxy.address.split(':')[1]), '127.0.0.1', () => socket.write(ask(port, '/')))
    let got = ''
    socket.on('data', (chunk) => {
      got += chunk.toString()
      if (got.endsWith('\r\n\r\n')) socket.write('hello')
      if (got.endsWith('hello')) socket.end()
    })
    await new Promise((resolve) => socket.once('close', resolve))
    expect(got).toMatch(/^HTTP\/1\.1 101 Switching Protocols\r\n[^]*Upgrade: websocket\r\n\r\nhello$/)
    await until(async () => (await lab.counted('skimmer_forward_requests_total', { way: 'upgrade', outcome: 'ok' })) === 1)
  })

  test("a server's no is the answer, and h2c is an ordinary request", async () => {
    const port = await lab.listen(echoing())
    await lab.start()
    expect(await lab.raw(ask(port, '/refused'))).toMatch(/^HTTP\/1\.1 403 Forbidden\r\n[^]*no!\n$/)
    expect((await lab.curl(`http://127.0.0.1:${port}/`, '--http2')).status).toBe(426)
  })
})

describe('tunnels', () => {
  test('a side that ended can still be sent to', async () => {
    // The server answers only when the client has ended its side: half-closed.
    const server = net.createServer({ allowHalfOpen: true }, (socket) => {
      let got = 0
      socket.on('data', (chunk) => (got += chunk.length)).on('end', () => socket.end(`got ${got}`))
    })
    const port = await lab.listen(server)
    await lab.start({ 'connect-ports': 'any' })
    const client = net.connect({ port: Number(lab.proxy.address.split(':')[1]), host: '127.0.0.1', allowHalfOpen: true })
    client.write(`CONNECT 127.0.0.1:${port} HTTP/1.1\r\nHost: x\r\n\r\n`)
    await new Promise((resolve) => client.once('data', resolve))
    client.end(CONTENT)
    let answer = ''
    client.on('data', (chunk) => (answer += chunk.toString()))
    await new Promise((resolve) => client.once('end', resolve))
    expect(answer).toBe(`got ${CONTENT.length}`)
  })

  test('one side that is torn down tears the other down', async () => {
    let closed = false
    const port = await lab.listen(net.createServer((socket) => void socket.once('close', () => (closed = true))))
    await lab.start({ 'connect-ports': 'any' })
    const client = net.connect(Number(lab.proxy.address.split(':')[1]), '127.0.0.1', () => client.write(`CONNECT 127.0.0.1:${port} HTTP/1.1\r\n\r\n`))
    await new Promise((resolve) => client.once('data', resolve))
    client.resetAndDestroy()
    await until(() => closed)
    await until(async () => (await lab.counted('skimmer_forward_tunnels', {})) === 0)
  })

  test('one in which nothing moves is ended', async () => {
    const port = await lab.listen(net.createServer())
    await lab.start({ 'connect-ports': 'any' }, {}, { limits: { tunnelIdleMs: 100 } })
    expect(await lab.raw(`CONNECT 127.0.0.1:${port} HTTP/1.1\r\n\r\n`)).toBe('HTTP/1.1 200 Connection Established\r\n\r\n')
  })

  test('stopping the proxy ends them', async () => {
    const port = await lab.listen(net.createServer())
    const proxy = await lab.start({ 'connect-ports': 'any' })
    const ended = lab.raw(`CONNECT 127.0.0.1:${port} HTTP/1.1\r\n\r\n`)
    await until(async () => (await lab.counted('skimmer_forward_tunnels', {})) === 1)
    await proxy.stop()
    await ended
  })
})

describe('what is refused, and how', () => {
  test('by a rule, the first that matches', async () => {
    const origin = await lab.origin()
    await lab.start({ rules: [{ match: '/allowed$', through: 'direct' }, { match: `^http://localhost:${origin.port}/`, through: 'refuse' }] })
    expect((await lab.curl(`http://localhost:${origin.port}/allowed`)).status).toBe(200)
    const { status, body } = await lab.curl(`http://localhost:${origin.port}/x?token=hidden`)
    expect([status, body.toString()]).toEqual([403, `skimmer: a rule of this proxy refuses requests to localhost:${origin.port}\n`])
    expect(lab.logged.join('')).not.toMatch(/hidden/)
  })

  test('everything but what is allowed', async () => {
    const origin = await lab.origin()
    await lab.start({ rules: [{ match: '^http://localhost:\\d+/ok$', through: 'direct' }], otherwise: 'refuse', 'connect-ports': 'any' })
    expect((await lab.curl(`http://localhost:${origin.port}/ok`)).status).toBe(200)
    expect((await lab.curl(`http://localhost:${origin.port}/no`)).status).toBe(403)
    expect((await lab.curl(`https://localhost:${origin.port}/ok`)).stderr).toMatch(/403/)
  })

  test('CONNECT to other ports', async () => {
    await lab.start()
    expect(await lab.raw('CONNECT localhost:22 HTTP/1.1\r\n\r\n')).toMatch(/^HTTP\/1\.1 403 [^]*connect-ports/)
  })

  test('a server that is not there: 502 with the reason; one that does not answer: 504', async () => {
    const silent = await lab.listen(net.createServer())
    const gone = await lab.origin()
    await lab.start({ 'connect-ports': 'any' }, {}, { limits: { answerMs: 100 } })
    expect(await lab.curl('http://localhost:1/')).toMatchObject({ status: 502, body: Buffer.from('skimmer: localhost:1 cannot be reached: ECONNREFUSED\n') })
    expect((await lab.curl('http://no-such-host.invalid/')).body.toString()).toMatch(/no-such-host\.invalid cannot be reached: E(?:NOTFOUND|AI_AGAIN)/)
    const late = await lab.curl(`http://localhost:${silent}/`)
    expect([late.status, late.body.toString()]).toEqual([504, `skimmer: localhost:${silent} did not answer within 0.1 s\n`])
    expect(await lab.raw('CONNECT localhost:1 HTTP/1.1\r\n\r\n')).toMatch(/^HTTP\/1\.1 502 Bad Gateway\r\n[^]*X-Skimmer-Error: UNAVAILABLE\r\n[^]*ECONNREFUSED\n$/)
    expect(gone.requests).toHaveLength(0)
  })

  test('itself', async () => {
    await lab.start()
    const { status, body } = await lab.curl(`${lab.url}/x`)
    expect([status, body.toString()]).toEqual([508, 'skimmer: this request came through this proxy before\n'])
  })

  test.each([
    ['a path', 'GET / HTTP/1.1\r\nHost: x\r\n\r\n', 400],
    ['another scheme', 'GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n', 400],
    ['a user in the URL', 'GET http://a:b@localhost/ HTTP/1.1\r\nHost: x\r\n\r\n', 400],
    ['a URL that is too long', `GET http://localhost/${'a'.repeat(9000)} HTTP/1.1\r\nHost: x\r\n\r\n`, 414],
    ['headers that are too large', `GET http://localhost/ HTTP/1.1\r\nHost: x\r\nA: ${'a'.repeat(80_000)}\r\n\r\n`, 431],
    ['no HTTP at all', '\x16\x03\x01\x00\x05hello\r\n\r\n', 400],
    ['CONNECT to a path', 'CONNECT /etc/passwd HTTP/1.1\r\n\r\n', 400],
    ['CONNECT without a port', 'CONNECT localhost HTTP/1.1\r\n\r\n', 400],
    ['CONNECT to port 0', 'CONNECT localhost:0 HTTP/1.1\r\n\r\n', 400],
  ])('%s', async (_, bytes, status) => {
    await lab.start()
    expect(await lab.raw(bytes.includes('CONNECT') ? bytes : bytes.replace('\r\n\r\n', '\r\nConnection: close\r\n\r\n'))).toMatch(new RegExp(`^HTTP/1\\.1 ${status} `))
  })
})

describe('who may use it', () => {
  test('only who knows a password, and nobody learns which part was wrong', async () => {
    const origin = await lab.origin()
    await lab.start({ 'connect-ports': 'any' }, {}, { users: ['ann:one two', 'bob:three'] })
    for (const user of [[], ['-U', 'ann:three'], ['-U', 'carl:three'], ['-U', 'ann:']]) {
      expect((await lab.curl(`http://localhost:${origin.port}/`, ...user)).status).toBe(407)
    }
    expect(await lab.raw('CONNECT localhost:443 HTTP/1.1\r\n\r\n')).toMatch(/^HTTP\/1\.1 407 [^]*Proxy-Authenticate: Basic/)
    expect(origin.requests).toHaveLength(0)
    expect((await lab.curl(`http://localhost:${origin.port}/`, '-U', 'ann:one two')).status).toBe(200)
    expect((await lab.curl(`http://localhost:${origin.port}/`, '-p', '-U', 'bob:three')).status).toBe(200)
  })

  test('only from where it is allowed', async () => {
    const origin = await lab.origin()
    await lab.start({ 'allow-clients': ['10.0.0.0/8', 'fd00::/8'] })
    expect((await lab.curl(`http://localhost:${origin.port}/`)).status).toBe(403)
    expect(await lab.raw('CONNECT localhost:443 HTTP/1.1\r\n\r\n')).toMatch(/^HTTP\/1\.1 403 [^]*allow-clients/)
    expect(origin.requests).toHaveLength(0)
  })
})
