// TLS that the forward proxy opens, with a certificate authority of the user's own.
import { X509Certificate } from 'node:crypto'
import net from 'node:net'
import tls from 'node:tls'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { run } from '../../bench/lab/process.ts'
import { LeafCertificates } from '../../registry-proxy/forward/leaf-certificates.ts'
import { CONTENT, ForwardLab, until } from './forward-lab.ts'

let lab: ForwardLab
beforeEach(() => {
  lab = new ForwardLab()
})
afterEach(() => lab.end())

const RSA = ['-newkey', 'rsa:2048']
const P384 = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-384']

/** A proxy that opens TLS to localhost, and a TLS server there. */
async function opening(rules: { match: string; through?: 'swarm' | 'direct' | 'refuse' }[] = []): Promise<{ port: number; origin: Awaited<ReturnType<ForwardLab['origin']>>; ca: string; serverCa: string }> {
  const authority = lab.certificate('authority', { authority: true })
  const server = lab.certificate('server')
  const origin = await lab.origin({ tls: server })
  await lab.start({ rules, 'connect-ports': 'any', intercept: { cert: authority.cert, key: authority.key, hosts: [{ match: '^localhost$', ca: server.cert }] } })
  return { port: origin.port, origin, ca: authority.certFile, serverCa: server.certFile }
}

describe('opened TLS', () => {
  test('curl and wget trust the authority and get the file', async () => {
    const { port, origin, ca } = await opening()
    const got = await lab.curl(`https://localhost:${port}/a?b=c`, '--cacert', ca)
    expect(got.body.equals(CONTENT)).toBe(true)
    expect(origin.requests[0]).toMatchObject({ url: '/a?b=c', headers: { host: `localhost:${port}`, via: expect.stringMatching(/^1\.1 skimmer-/) } })
    await run(['wget', '-q', '-O', `${lab.directory}/wget`, `--ca-certificate=${ca}`, `https://localhost:${port}/`], { env: { https_proxy: lab.url, no_proxy: '' } })
    await run(['cmp', `${lab.directory}/wget`, lab.file('content', CONTENT)])
    expect(await lab.counted('skimmer_forward_requests_total', { way: 'direct', outcome: 'ok' })).toBe(2)
    expect(await lab.counted('skimmer_forward_certificates_total', {})).toBe(1)
  })

  test('who does not trust it gets nothing', async () => {
    const { port, serverCa } = await opening()
    expect((await lab.curl(`https://localhost:${port}/`, '--cacert', serverCa)).code).toBe(60)
    await until(() => lab.logged.some((line) => line.includes('did not accept the certificate')))
  })

  test('other hosts are passed on untouched: the client sees their own certificate', async () => {
    const { port, serverCa } = await opening()
    expect((await lab.curl(`https://127.0.0.1:${port}/`, '--cacert', serverCa)).body.equals(CONTENT)).toBe(true)
    expect(await lab.counted('skimmer_forward_certificates_total', {})).toBe(0)
  })

  test('rules see every request', async () => {
    const { port, ca } = await opening([{ match: '/secret', through: 'refuse' }])
    expect((await lab.curl(`https://localhost:${port}/secret`, '--cacert', ca)).status).toBe(403)
    expect((await lab.curl(`https://localhost:${port}/open`, '--cacert', ca)).status).toBe(200)
  })

  test('a server whose certificate is not trusted: 502 that says so', async () => {
    const authority = lab.certificate('authority', { authority: true })
    const origin = await lab.origin({ tls: lab.certificate('server') })
    await lab.start({ 'connect-ports': 'any', intercept: { cert: authority.cert, key: authority.key, hosts: [{ match: 'localhost' }] } })
    const { status, body } = await lab.curl(`https://localhost:${origin.port}/`, '--cacert', authority.certFile)
    expect([status, body.toString()]).toEqual([502, `skimmer: localhost:${origin.port} cannot be reached: DEPTH_ZERO_SELF_SIGNED_CERT\n`])
    await lab.proxy.stop()
    lab.metrics.clear()
    await lab.start({ 'connect-ports': 'any', intercept: { cert: authority.cert, key: authority.key, hosts: [{ match: 'localhost', insecure: true }] } })
    expect((await lab.curl(`https://localhost:${origin.port}/`, '--cacert', authority.certFile)).status).toBe(200)
  })

  test('plain HTTP in a CONNECT to such a host is passed on', async () => {
    await opening()
    const plain = await lab.origin()
    expect((await lab.curl(`http://localhost:${plain.port}/`, '-p')).body.equals(CONTENT)).toBe(true)
  })

  test('the name that is greeted must be one of those hosts', async () => {
    const { port } = await opening()
    const greeted = (servername: string): Promise<string> =>
      new Promise((resolve) => {
        const socket = net.connect(Number(lab.proxy.address.split(':')[1]), '127.0.0.1', () => socket.write(`CONNECT localhost:${port} HTTP/1.1\r\n\r\n`))
        socket.once('data', () => {
          const secure = tls.connect({ socket, servername, rejectUnauthorized: false }, () => {
            resolve((secure.getPeerX509Certificate()?.subjectAltName) ?? '')
            secure.destroy()
          })
          secure.once('error', (error) => resolve(`error ${(error as NodeJS.ErrnoException).code}`))
        })
      })
    expect(await greeted('localhost')).toBe('DNS:localhost')
    expect(await greeted('LOCALHOST')).toBe('DNS:localhost')
    expect(await greeted('bank.example')).toMatch(/^error/)
    expect(await greeted('')).toBe('DNS:localhost')
  })

  test('a WebSocket inside it', async () => {
    const authority = lab.certificate('authority', { authority: true })
    const server = lab.certificate('server')
    const echo = tls.createServer(server, (socket) => {
      socket.on('error', () => {})
      socket.once('data', () => {
        socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n')
        socket.pipe(socket)
      })
    })
    const port = await lab.listen(echo)
    await lab.start({ 'connect-ports': 'any', intercept: { cert: authority.cert, key: authority.key, hosts: [{ match: 'localhost', ca: server.cert }] } })
    const socket = net.connect(Number(lab.proxy.address.split(':')[1]), '127.0.0.1', () => socket.write(`CONNECT localhost:${port} HTTP/1.1\r\n\r\n`))
    await new Promise((resolve) => socket.once('data', resolve))
    const secure = tls.connect({ socket, servername: 'localhost', ca: authority.cert }, () => secure.write('GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n'))
    let got = ''
    secure.on('data', (chunk) => {
      got += chunk.toString()
      if (got.endsWith('\r\n\r\n')) secure.write('hello')
      if (got.endsWith('hello')) secure.destroy()
    })
    await new Promise((resolve) => secure.once('close', resolve))
    expect(got).toMatch(/^HTTP\/1\.1 101 [^]*hello$/)
  })

  test('a client that sends nothing after CONNECT is let go when the proxy stops', async () => {
    const { port } = await opening()
    const socket = net.connect(Number(lab.proxy.address.split(':')[1]), '127.0.0.1', () => socket.write(`CONNECT localhost:${port} HTTP/1.1\r\n\r\n`))
    await new Promise((resolve) => socket.once('data', resolve))
    const ended = new Promise((resolve) => socket.once('close', resolve))
    await lab.proxy.stop()
    await ended
  })
})

describe('certificates made on the fly', () => {
  const contextOf = async (authority: { cert: string; key: string }, host: string): Promise<tls.PeerCertificate & { pem: string }> => {
    const certificates = await LeafCertificates.open(authority)
    const secureContext = await certificates.context(host)
    const port = await lab.listen(net.createServer((socket) => void new tls.TLSSocket(socket, { isServer: true, secureContext }).on('error', () => {})))
    return await new Promise((resolve, reject) => {
      const socket = tls.connect({ port, host: '127.0.0.1', servername: net.isIP(host) ? '' : host, rejectUnauthorized: false }, () => {
        const found = socket.getPeerX509Certificate()!
        resolve({ ...(found.toLegacyObject() as tls.PeerCertificate), pem: found.toString() })
        socket.destroy()
      })
      socket.once('error', reject)
    })
  }

  test.each([['RSA', RSA], ['P-256', undefined], ['P-384', P384], ['Ed25519', ['-newkey', 'ed25519']]])('openssl verifies them against an authority with a %s key', async (_, key) => {
    const authority = lab.certificate('authority', { authority: true, key: key as string[] | undefined })
    const { pem } = await contextOf(authority, 'registry.example')
    const leaf = lab.file('leaf.pem', pem)
    await run(['openssl', 'verify', '-x509_strict', '-purpose', 'sslserver', '-verify_hostname', 'registry.example', '-CAfile', authority.certFile, leaf])
    const certificate = new X509Certificate(pem)
    expect(certificate.ca).toBe(false)
    expect(certificate.issuer).toBe(new X509Certificate(authority.cert).subject)
    expect(certificate.validToDate.getTime()).toBeLessThanOrEqual(new X509Certificate(authority.cert).validToDate.getTime())
  })

  test('for addresses and long names', async () => {
    const authority = lab.certificate('authority', { authority: true })
    await run(['openssl', 'verify', '-x509_strict', '-verify_ip', '10.1.2.3', '-CAfile', authority.certFile, lab.file('ip.pem', (await contextOf(authority, '10.1.2.3')).pem)])
    await run(['openssl', 'verify', '-x509_strict', '-verify_ip', 'fd00::1', '-CAfile', authority.certFile, lab.file('ip6.pem', (await contextOf(authority, '[fd00::1]')).pem)])
    const long = `${'a'.repeat(60)}.${'b'.repeat(60)}.example`
    await run(['openssl', 'verify', '-x509_strict', '-verify_hostname', long, '-CAfile', authority.certFile, lab.file('long.pem', (await contextOf(authority, long)).pem)])
  })

  test('one a host, also for many at once', async () => {
    let made = 0
    const certificates = await LeafCertificates.open(lab.certificate('authority', { authority: true }), { onMade: () => made++ })
    const contexts = await Promise.all(Array.from({ length: 50 }, (_, index) => certificates.context(index % 2 === 0 ? 'a.example' : 'A.Example.')))
    expect(new Set(contexts).size).toBe(1)
    expect(made).toBe(1)
  })

  test.each(['', 'a b', 'a/b', '*.example', `${'a'.repeat(64)}.example`, 'a..b', `${'a.'.repeat(150)}b`, 'x\0y'])('%j is no name of a host', async (name) => {
    const certificates = await LeafCertificates.open(lab.certificate('authority', { authority: true }))
    await expect(certificates.context(name)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  })

  test('what cannot sign is refused at the start', async () => {
    const authority = lab.certificate('authority', { authority: true })
    const other = lab.certificate('other', { authority: true })
    const server = lab.certificate('server')
    await expect(LeafCertificates.open({ cert: authority.cert, key: other.key })).rejects.toThrow(/key does not belong to cert/)
    await expect(LeafCertificates.open(server)).rejects.toThrow(/not the certificate of an authority/)
    await expect(LeafCertificates.open({ cert: 'x', key: authority.key })).rejects.toThrow(/cert is not a PEM/)
    await expect(LeafCertificates.open({ cert: authority.cert, key: 'x' })).rejects.toThrow(/key is not a PEM/)
    await expect(LeafCertificates.open(lab.certificate('weak', { authority: true, key: ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:secp256k1'] }))).rejects.toThrow(/P-256/)
  })
})
