// Sources by URL: which protocol, whose certificates, whose credentials; connections are pooled over all sources with the same settings.
import { pino } from 'pino'
import type { Logger } from 'pino'
import { anonymous, staticCredentials } from '../oci/credentials.ts'
import type { CredentialSource } from '../oci/credentials.ts'
import type { RegistryClientOptions } from '../oci/defaults.ts'
import { SkimmerError } from '../oci/errors.ts'
import { RegistryClient } from '../oci/registry-client.ts'
import { RegistryHosts } from '../oci/registry-hosts.ts'
import type { HostsConfig } from '../oci/registry-hosts.ts'
import { Transport } from '../oci/transport.ts'
import { FileSource, listDirectory } from './file-source.ts'
import { HttpSource } from './http-source.ts'
import type { ListedEntry } from './index-page.ts'
import { OciSource, credentialsOf, parseOciUrl } from './oci-source.ts'
import { normalizeHeaders } from './request-headers.ts'
import type { Headers } from './request-headers.ts'
import { S3Signer } from './s3-signer.ts'
import type { S3Settings, SignedUrl } from './s3-signer.ts'
import { S3Source } from './s3-source.ts'
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
  /** s3:// may be signed with this machine's own credentials; else only with those that a request brings. Default false. */
  readonly s3Credentials?: boolean
}

export interface SourceRequest {
  readonly headers?: Headers
  /** PEM text; trusted besides the system's authorities. */
  readonly ca?: string
  /** Certificates are not checked. */
  readonly insecure?: boolean
  readonly s3?: S3Settings
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
  readonly #s3 = new S3Signer()

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
    if (target.protocol === 'oci:') return this.#oci(target, headers, request)
    if (target.protocol === 'file:') {
      if (this.#options.files !== true) throw new SkimmerError('FORBIDDEN', 'file:// is read only on the machine of who asks for it')
      return new FileSource(target)
    }
    if (target.protocol === 's3:') {
      this.#checkS3(request)
      return new S3Source({ url: target, signer: this.#s3, settings: request.s3, openHttp: (url, signed) => this.#overHttp({ target: signed, url }, headers, request) })
    }
    throw new SkimmerError('INVALID_ARGUMENT', `${target.protocol}// is no source that can be read; http, https, oci, s3 and file are`)
  }

  /** What lies below a URL whose protocol has lists of its own; undefined for http(s), whose lists are pages. See `listIndex`. */
  async list(url: URL, request: SourceRequest, options: { maxEntries: number; signal?: AbortSignal }): Promise<ListedEntry[] | undefined> {
    if (url.protocol === 'http:' || url.protocol === 'https:') return undefined
    const source = this.open(url, request)
    try {
      if (source instanceof OciSource || source instanceof S3Source) return await source.list(options)
      return await listDirectory(url, options.maxEntries)
    } finally {
      await source.close()
    }
  }

  /** An s3:// URL as a signed https one, which needs no credentials where it is read: for handing to another machine. */
  async signS3(url: string | URL, request: SourceRequest = {}, options: { expiresSeconds?: number } = {}): Promise<SignedUrl> {
    this.#checkS3(request)
    const target = parseSourceUrl(url)
    if (target.protocol !== 's3:') throw new SkimmerError('INVALID_ARGUMENT', 'only s3:// URLs are signed')
    return await this.#s3.sign(target, request.s3, options)
  }

  #checkS3({ s3 }: SourceRequest): void {
    if (this.#options.s3Credentials === true || (s3?.accessKeyId !== undefined && s3.secretAccessKey !== undefined)) return
    throw new SkimmerError('UNSUPPORTED', 's3:// is read only with the credentials of who asks; give a presigned https URL instead')
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
    return this.#overHttp({ target }, headers, request)
  }

  #overHttp(where: { target: URL; url?: undefined } | { target: () => Promise<URL>; url: URL }, headers: Headers, request: SourceRequest): Source {
    const { pool, release } = this.#pool(request)
    return new HttpSource({ ...where, transport: pool.transport }, { ...this.#options, headers, onClose: release })
  }

  #oci(target: URL, headers: Record<string, string>, request: SourceRequest): Source {
    checkCa(request.ca)
    const { credentials: configured = anonymous, hosts, logger } = this.#components
    const given = credentialsOf(headers.authorization ?? basicAuthorization(target))
    const { reference } = parseOciUrl(target)
    const tls = { ...(request.ca !== undefined && { ca: request.ca }), ...(request.insecure === true && { insecureSkipVerify: true }) }
    const host = new RegistryHosts(hosts).configOf(reference.registry)
    const client = new RegistryClient(
      { credentials: given === undefined ? configured : staticCredentials({ [reference.registry]: given }), hosts: { ...hosts, [reference.registry]: { ...host, ...tls } }, logger },
      this.#options,
    )
    return new OciSource({ url: target, client })
  }

  #pool({ ca, insecure }: SourceRequest): { pool: Pool; release: () => Promise<void> } {
    checkCa(ca)
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

/** Text, never a path: requests come from other machines too. */
function checkCa(ca: string | undefined): void {
  if (ca !== undefined && (ca.length > MAX_CA_BYTES || !ca.includes('-----BEGIN CERTIFICATE-----'))) {
    throw new SkimmerError('INVALID_ARGUMENT', `the certificate authority given for a source is not PEM text of at most ${MAX_CA_BYTES} bytes`)
  }
}

/** One source with connections of its own, which end with it. */
export function openSource(url: string | URL, request: SourceRequest & SourcesOptions & { credentials?: CredentialSource; hosts?: HostsConfig; logger?: Logger } = {}): Source {
  const { headers, ca, insecure, s3, credentials, hosts, logger, ...options } = request
  const sources = new Sources({ credentials, hosts, logger }, options)
  const source = sources.open(url, { headers, ca, insecure, s3 })
  return { url: source.url, open: (how) => source.open(how), close: () => source.close().then(() => sources.close()) }
}
