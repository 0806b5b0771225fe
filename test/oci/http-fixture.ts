// A small HTTP(S) server for what a real registry cannot be made to do. Records the requests it gets.
import { createServer } from 'node:http'
import type { IncomingMessage, RequestListener, ServerResponse } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import { execFileSync } from 'node:child_process'
import { join } from 'node:path'

export interface FakeHost {
  /** `127.0.0.1:<port>` */
  readonly host: string
  readonly url: string
  readonly requests: { method: string; url: string; headers: IncomingMessage['headers']; body: string }[]
  stop(): Promise<void>
}

export type Answer = (request: IncomingMessage & { body: string }, response: ServerResponse, count: number) => void

export async function startHost(answer: Answer, tls?: { key: string; cert: string }): Promise<FakeHost> {
  const requests: FakeHost['requests'] = []
  const listener: RequestListener = (request, response) => {
    const chunks: Buffer[] = []
    request.on('data', (chunk: Buffer) => chunks.push(chunk))
    request.on('end', () => {
      const body = Buffer.concat(chunks).toString('utf8')
      requests.push({ method: request.method!, url: request.url!, headers: request.headers, body })
      answer(Object.assign(request, { body }), response, requests.length)
    })
  }
  const server = tls === undefined ? createServer(listener) : createTlsServer(tls, listener)
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  const host = `127.0.0.1:${port}`
  return {
    host, url: `http${tls === undefined ? '' : 's'}://${host}`, requests,
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve())
        server.closeAllConnections()
      }),
  }
}

const openssl = (...words: string[]): void => void execFileSync('openssl', words, { stdio: 'ignore' })

/** A private authority and a certificate of it for 127.0.0.1, made by openssl. Returns paths. */
export function makeCertificates(directory: string): { ca: string; certificate: string; key: string } {
  const path = (name: string): string => join(directory, name)
  openssl('req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2', '-subj', '/CN=a private authority', '-keyout', path('ca.key'), '-out', path('ca.crt'))
  openssl('req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', '/CN=127.0.0.1', '-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', path('host.key'), '-out', path('host.csr'))
  openssl('x509', '-req', '-in', path('host.csr'), '-CA', path('ca.crt'), '-CAkey', path('ca.key'), '-CAcreateserial', '-days', '2', '-copy_extensions', 'copy', '-out', path('host.crt'))
  return { ca: path('ca.crt'), certificate: path('host.crt'), key: path('host.key') }
}
