// Sources by URL: which protocol, whose certificates, whose credentials; connections are pooled over all sources with the same settings.
import { pino } from 'pino'
import type { Logger } from 'pino'
import type { CredentialSource } from '../oci/credentials.ts'
import type { RegistryClientOptions } from '../oci/defaults.ts'
import { SkimmerError } from '../oci/errors.ts'
import { RegistryHosts } from '../oci/registry-hosts.ts'
import type { HostsConfig } from '../oci/registry-hosts.ts'
import { Transport } from '../oci/transport.ts'
import { HttpSource } from './http-source.ts'
import { normalizeHeaders } from './request-headers.ts'
import type { Headers } from './request-headers.ts'
import type { Source } from './source.ts'
import { basicAuthorization, parseSourceUrl } from './source-url.ts'

const MAX_CA_BYTES = 256 * 1024
const MAX_REDIRECTS = 10
/** Downloads are long: a pool that is too small makes the next one wait for a whole file. */
const CONNECTIONS = 64
/** Pools that nobody uses are kept for a while, for their TLS sessions and open connections. */
const MAX_IDLE_POOLS = 8

export interface SourcesOptions extends RegistryClientOptions {
  /** file:// may be read: only where the URL is the user's own. Default false. */
  readonly files?: boolean
}

export interface SourceRequest {
  readonly headers?: Headers
  /** PEM text; trusted besides the system's authorities. */
  readonly ca?: string
  /** Certificates are not checked. */
  readonly insecure?: boolean
}

interface Pool {
  readonly transport: Transport
  users: number
}

/** Safe for any number of sources at once. */
export class Sources {
  readonly #components: { credentials?: CredentialSource; hosts?: HostsConfig; logger: Logger }
  readonly #options: SourcesOptions
  readonly #pools = new Map<string, Pool>()

  /** `hosts` and `credentials` are for oci://; http(s) sources use `hosts` when a request brings no settings of its own. */
  constructor(components: { credentials?: CredentialSource; hosts?: HostsConfig; logger?: Logger } = {}, options: SourcesOptions = {}) {
    this.#components = { ...components, logger: components.logger ?? pino({ level: 'silent' }) }
    this.#options = { connections: CONNECTIONS, maxRedirects: MAX_REDIRECTS, ...options }
  }

  /** No request is sent yet. Throws INVALID_ARGUMENT for a URL or header that is none, UNSUPPORTED for a scheme. */
  open(url: string | URL, request: SourceRequest = {}): Source {
    const target = parseSourceUrl(url)
    const headers = normalizeHeaders(request.headers)
    if (target.protocol === 'http:' || target.protocol === 'https:') return this.#http(target, headers, request)
    throw new SkimmerError('UNSUPPORTED', `${target.protocol}// is no source that can be read; http, https and oci can`)
  }

  async close(): Promise<void> {
    const pools = [...this.#pools.values()]
    this.#pools.clear()
    await Promise.all(pools.map(({ transport }) => transport.close()))
  }

  #http(target: URL, headers: Record<string, string>, request: SourceRequest): Source {
    const basic = basicAuthorization(target)
    if (basic !== undefined) headers.authorization ??= basic
    target.username = target.password = ''
    const { pool, release } = this.#pool(request)
    return new HttpSource({ target, transport: pool.transport }, { ...this.#options, headers, onClose: release })
  }

  #pool({ ca, insecure }: SourceRequest): { pool: Pool; release: () => Promise<void> } {
    if (ca !== undefined && (ca.length > MAX_CA_BYTES || !ca.includes('-----BEGIN CERTIFICATE-----'))) {
      throw new SkimmerError('INVALID_ARGUMENT', `the certificate authority given for a source is not PEM text of at most ${MAX_CA_BYTES} bytes`)
    }
    const own = ca !== undefined || insecure === true
    const name = own ? JSON.stringify([insecure === true, ca]) : ''
    let pool = this.#pools.get(name)
    if (pool === undefined) {
      const hosts = own ? { '*': { ...(ca !== undefined && { ca }), ...(insecure === true && { insecureSkipVerify: true }) } } : this.#components.hosts
      pool = { transport: new Transport(new RegistryHosts(hosts), this.#options), users: 0 }
    }
    const held = pool
    held.users++
    // The last one used stands last.
    this.#pools.delete(name)
    this.#pools.set(name, held)
    let released = false
    const release = async (): Promise<void> => {
      if (released) return
      released = true
      held.users--
      await this.#trim()
    }
    return { pool, release }
  }

  async #trim(): Promise<void> {
    const idle = [...this.#pools].filter(([, { users }]) => users === 0)
    for (const [name, { transport }] of idle.slice(0, Math.max(0, idle.length - MAX_IDLE_POOLS))) {
      this.#pools.delete(name)
      await transport.close()
    }
  }
}

/** One source with connections of its own, which end with it. */
export function openSource(url: string | URL, request: SourceRequest & SourcesOptions & { credentials?: CredentialSource; hosts?: HostsConfig; logger?: Logger } = {}): Source {
  const { headers, ca, insecure, credentials, hosts, logger, ...options } = request
  const sources = new Sources({ credentials, hosts, logger }, options)
  const source = sources.open(url, { headers, ca, insecure })
  return { url: source.url, open: (how) => source.open(how), close: () => source.close().then(() => sources.close()) }
}
