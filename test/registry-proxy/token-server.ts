// A token server as registries with bearer tokens have one (docs/spec/auth/token.md of the distribution project): it signs what docker-registry accepts.
import { execFileSync } from 'node:child_process'
import { createPrivateKey, sign } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { startHost } from '../oci/http-fixture.ts'
import type { FakeHost } from '../oci/http-fixture.ts'

export interface TokenServer {
  readonly host: FakeHost
  /** What a registry is configured with. */
  readonly token: { readonly realm: string; readonly service: string; readonly issuer: string; readonly rootCertificate: string }
  stop(): Promise<void>
}

/** `public/…` may be pulled by anyone; everything may be pulled and pushed by the user. */
export async function startTokenServer(directory: string, user: { username: string; password: string }): Promise<TokenServer> {
  const keyFile = join(directory, 'token.key')
  const rootCertificate = join(directory, 'token.crt')
  execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2', '-subj', '/CN=a token server', '-keyout', keyFile, '-out', rootCertificate], { stdio: 'ignore' })
  const key = createPrivateKey(readFileSync(keyFile))
  const certificate = readFileSync(rootCertificate, 'utf8').replaceAll(/-----[^-]+-----|\s/g, '')
  const service = 'a registry'
  const issuer = 'a token server'
  const expected = `Basic ${Buffer.from(`${user.username}:${user.password}`).toString('base64')}`

  const signed = (claims: object): string => {
    const encode = (value: object): string => Buffer.from(JSON.stringify(value)).toString('base64url')
    const body = `${encode({ typ: 'JWT', alg: 'ES256', x5c: [certificate] })}.${encode(claims)}`
    return `${body}.${sign('sha256', Buffer.from(body), { key, dsaEncoding: 'ieee-p1363' }).toString('base64url')}`
  }
  const host = await startHost((request, response) => {
    const url = new URL(request.url!, 'http://token')
    const form = new URLSearchParams(request.body)
    const known = request.headers.authorization === expected || (form.get('username') === user.username && form.get('password') === user.password)
    if (!known && (request.headers.authorization !== undefined || form.get('password') !== null)) {
      response.writeHead(401).end('{"details":"wrong password"}')
      return
    }
    const scopes = [...url.searchParams.getAll('scope'), ...form.getAll('scope')].flatMap((scope) => scope.split(' '))
    const access = scopes.flatMap((scope) => {
      const [, type, name, actions] = /^(repository):([^:]+):([\w,*]+)$/.exec(scope) ?? []
      const allowed = (actions ?? '').split(',').filter((action) => known || (action === 'pull' && name.startsWith('public/')))
      return type === undefined || allowed.length === 0 ? [] : [{ type, name, actions: allowed }]
    })
    const now = Math.floor(Date.now() / 1000)
    const token = signed({ iss: issuer, sub: known ? user.username : '', aud: service, exp: now + 300, nbf: now - 30, iat: now, jti: String(Math.random()), access })
    response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify({ token, access_token: token, expires_in: 300 }))
  })
  return { host, token: { realm: `${host.url}/token`, service, issuer, rootCertificate }, stop: () => host.stop() }
}
