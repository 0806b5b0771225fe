// On whose behalf a registry is asked: a client with what it sent, or the proxy itself.
import type { IncomingMessage } from 'node:http'
import type { Credentials, CredentialSource } from '../oci/credentials.ts'
import type { Upstream } from './upstream-choice.ts'

export interface Caller {
  /** Sent to the registry as it is; undefined for `own`, which logs in by itself. */
  readonly authorization: string | undefined
  /** `client`: what it sent, and nothing else. `anonymous`: the proxy asks for tokens without credentials. `own`: with the proxy's credentials. */
  readonly kind: 'client' | 'anonymous' | 'own'
  /** What remembered answers hang on. */
  readonly identity: string
}

/** Whoever asks the registry's token server for a token without a login. */
export const ANYONE: Caller = { kind: 'anonymous', authorization: undefined, identity: 'anonymous' }

const LOOPBACK = /^(?:127\.|::1$|::ffff:127\.)/

/**
 * A client that names the registry by the path got its challenge from another registry's `/v2/`: what it sends is not meant for this
 * one, and is not sent there. `own`: the proxy's credentials, when clients of this machine that bring none may use them.
 */
export async function callerOf(request: IncomingMessage, upstream: Upstream, own: CredentialSource | undefined): Promise<Caller> {
  const authorization = upstream.named === 'path' ? undefined : request.headers.authorization
  if (authorization !== undefined) return { kind: 'client', authorization, identity: `client ${authorization}` }
  if (own !== undefined && LOOPBACK.test(request.socket.remoteAddress ?? '')) {
    const credentials = await own.get(upstream.registry, { repository: upstream.repository }).catch(() => undefined)
    if (credentials !== undefined) return { kind: 'own', authorization, identity: 'own' }
  }
  return upstream.named === 'path' ? ANYONE : { kind: 'client', authorization, identity: 'client' }
}

type Handed = { username: string; secret: string } | { token: string }

/** What a supernode is told, so that it asks the registry as this client. */
export async function handedCredentials(caller: Caller, upstream: Upstream, own: CredentialSource | undefined): Promise<Handed | undefined> {
  if (caller.kind === 'own') return handed(await own?.get(upstream.registry, { repository: upstream.repository }))
  const [, scheme, value] = /^(basic|bearer)\s+(\S+)\s*$/i.exec(caller.authorization ?? '') ?? []
  if (value === undefined) return undefined
  if (scheme.toLowerCase() === 'bearer') return { token: value }
  const text = Buffer.from(value, 'base64').toString('utf8')
  const colon = text.indexOf(':')
  return colon === -1 ? undefined : { username: text.slice(0, colon), secret: text.slice(colon + 1) }
}

function handed(credentials: Credentials | undefined): Handed | undefined {
  if (credentials === undefined || 'identityToken' in credentials) return undefined
  return 'registryToken' in credentials ? { token: credentials.registryToken } : { username: credentials.username, secret: credentials.password }
}
