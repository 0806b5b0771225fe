// How each registry host is reached: plain HTTP or TLS, whose certificates are trusted, which mirrors come first.
import { readFileSync } from 'node:fs'
import { createSecureContext, getCACertificates } from 'node:tls'
import type { SecureContext } from 'node:tls'
import { z } from 'zod'
import { SkimmerError } from './errors.ts'

const MIRROR = /^(?:https?:\/\/)?[^\s/?#@]+(?:\/[^\s?#@]*)?$/i

/** One host's settings. Certificates and keys are PEM text or paths of PEM files. */
export const hostConfigSchema = z.strictObject({
  /** Speak HTTP. Unset: HTTPS, except that a loopback host without TLS is spoken to in HTTP, as docker does. */
  plainHttp: z.boolean().optional(),
  /** Trusted in addition to the system's certificate authorities. */
  ca: z.string().optional(),
  insecureSkipVerify: z.boolean().optional(),
  clientCertificate: z.strictObject({ cert: z.string(), key: z.string() }).optional(),
  /** Asked before the registry itself, in order: `https://mirror.example[:port][/prefix]` or `host[:port]`. */
  mirrors: z.array(z.string().regex(MIRROR, 'must be a host or an http(s) URL without user, query or fragment')).max(32).optional(),
  /** Follow the `urls` of foreign layers when the registry does not hold them. */
  allowForeignUrls: z.boolean().optional(),
})
export type HostConfig = z.infer<typeof hostConfigSchema>

/** By host with port, as in references; `*` is for every host that has no entry of its own. */
export const hostsConfigSchema = z.record(z.string(), hostConfigSchema)
export type HostsConfig = z.infer<typeof hostsConfigSchema>

/** One place to ask. */
export interface Endpoint {
  /** Host with port as in the configuration; also the key of its credentials. */
  readonly registry: string
  /** Where it really is. */
  readonly host: string
  /** undefined: find out (loopback only). */
  readonly scheme: 'http' | 'https' | undefined
  /** `/prefix` of a mirror that serves under a namespace, or ''. */
  readonly prefix: string
  readonly mirror: boolean
}

const LOOPBACK = /^(?:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]+)?$/i
export const isLoopback = (host: string): boolean => LOOPBACK.test(host)

function pem(value: string, what: string): string {
  if (value.includes('-----BEGIN ')) return value
  try {
    return readFileSync(value, 'utf8')
  } catch (cause) {
    throw new SkimmerError('INVALID_ARGUMENT', `${what} ${value} cannot be read: ${(cause as NodeJS.ErrnoException).code}`, { cause })
  }
}

export class RegistryHosts {
  readonly #byHost: ReadonlyMap<string, HostConfig>

  /** Throws INVALID_ARGUMENT when the configuration does not fit its schema. */
  constructor(config: HostsConfig = {}) {
    const parsed = hostsConfigSchema.safeParse(config)
    if (!parsed.success) {
      const [issue] = parsed.error.issues
      throw new SkimmerError('INVALID_ARGUMENT', `the registry hosts configuration is wrong at ${issue.path.map(String).join('.')}: ${issue.message}`)
    }
    this.#byHost = new Map(Object.entries(parsed.data).map(([host, settings]) => [host.toLowerCase(), settings]))
  }

  configOf(host: string): HostConfig {
    return this.#byHost.get(host.toLowerCase()) ?? this.#byHost.get('*') ?? {}
  }

  /** Where to ask for what `registry` holds, best first: its mirrors, then itself. */
  endpoints(registry: string): Endpoint[] {
    return [...(this.configOf(registry).mirrors ?? []).map((mirror) => this.#mirror(mirror)), this.upstream(registry)]
  }

  upstream(registry: string): Endpoint {
    // Docker Hub's name is not its address; it is the only registry where they differ.
    return { registry, host: registry === 'docker.io' ? 'registry-1.docker.io' : registry, scheme: this.#scheme(registry), prefix: '', mirror: false }
  }

  #mirror(text: string): Endpoint {
    const match = /^(?:(https?):\/\/)?([^/]+)(\/.*)?$/i.exec(text)!
    const host = match[2]
    // `…/v2` is written by people used to containerd's override_path: the API root is implied.
    const prefix = (match[3] ?? '').replace(/\/+$/, '').replace(/^\/v2(?=\/|$)/, '')
    return { registry: host, host, scheme: (match[1]?.toLowerCase() as 'http' | 'https' | undefined) ?? this.#scheme(host), prefix, mirror: true }
  }

  #scheme(host: string): 'http' | 'https' | undefined {
    const { plainHttp, ca, clientCertificate } = this.configOf(host)
    if (plainHttp !== undefined) return plainHttp ? 'http' : 'https'
    return isLoopback(host) && ca === undefined && clientCertificate === undefined ? undefined : 'https'
  }

  /** Names the TLS settings of a host: hosts with the same name can share a connection pool. */
  tlsName(host: string): string {
    const key = host.toLowerCase()
    return this.#byHost.has(key) ? key : this.#byHost.has('*') ? '*' : ''
  }

  /** Throws INVALID_ARGUMENT when a certificate file cannot be read or is none. */
  tls(host: string): { secureContext: SecureContext; rejectUnauthorized: boolean } {
    const { ca, clientCertificate, insecureSkipVerify } = this.configOf(host)
    // Node trusts its bundled authorities only; what the host's administrator installed counts too, as for every Go program.
    const trusted = new Set([...getCACertificates('default'), ...getCACertificates('system')])
    if (ca !== undefined) trusted.add(pem(ca, `the certificate authority (ca) of ${host}`))
    const own = clientCertificate && {
      cert: pem(clientCertificate.cert, `the client certificate of ${host}`),
      key: pem(clientCertificate.key, `the client key of ${host}`),
    }
    try {
      return { secureContext: createSecureContext({ ca: [...trusted], ...own }), rejectUnauthorized: insecureSkipVerify !== true }
    } catch (cause) {
      throw new SkimmerError('INVALID_ARGUMENT', `the certificates configured for ${host} are not usable: ${(cause as Error).message}`, { cause })
    }
  }
}
