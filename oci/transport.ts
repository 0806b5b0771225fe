// One HTTP request over pooled connections: timeouts, TLS per host, and redirects that never carry credentials elsewhere.
import { connect as connectTls } from 'node:tls'
import type { SecureContext } from 'node:tls'
import type { LookupFunction } from 'node:net'
import type { IncomingHttpHeaders } from 'node:http'
import { Agent, EnvHttpProxyAgent } from 'undici'
import type { Dispatcher } from 'undici'
import { addressClass, hostClass } from './address-class.ts'
import type { AddressClass } from './address-class.ts'
import { assertAllowed, guardedLookup } from './address-guard.ts'
import type { AllowAddress } from './address-guard.ts'
import {
  DEFAULT_BODY_IDLE_TIMEOUT_MS, DEFAULT_CONNECTIONS, DEFAULT_CONNECT_TIMEOUT_MS, DEFAULT_HEADERS_TIMEOUT_MS, DEFAULT_KEEP_ALIVE_MS,
  DEFAULT_MIRROR_CONNECT_TIMEOUT_MS, MAX_REDIRECTS,
} from './defaults.ts'
import type { RegistryClientOptions } from './defaults.ts'
import { SkimmerError, hasCode } from './errors.ts'
import { abortedError, isCertificateError, isTransient, networkCode, networkError, shownUrl } from './network-errors.ts'
import { isLoopback } from './registry-hosts.ts'
import type { Endpoint, RegistryHosts } from './registry-hosts.ts'

/** A body that can be sent again is bytes; a stream goes out once. */
export type RequestBody = Uint8Array | { readonly stream: AsyncIterable<Uint8Array>; readonly size: number }

export interface HttpRequest {
  readonly method: 'GET' | 'HEAD' | 'POST' | 'PUT' | 'DELETE'
  readonly url: URL
  /** What is being done, for messages: `pulling manifest … from …`. */
  readonly what: string
  readonly headers?: Readonly<Record<string, string>>
  /** Sent to the URL's own origin only. */
  readonly authorization?: string
  /** More headers that are the business of the URL's own origin only: cookies, tokens. */
  readonly ownHeaders?: Readonly<Record<string, string>>
  /** Bytes of the answer's body that are read ahead of whoever reads it; undici's default is 64 KiB. */
  readonly readAhead?: number
  readonly body?: RequestBody
  readonly signal?: AbortSignal
  /** To the answer's head, when that is less than what holds for all requests. */
  readonly headersTimeoutMs?: number
  /** Mirrors are given up sooner. */
  readonly hurry?: boolean
}

export interface HttpResponse {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  readonly body: Dispatcher.ResponseData['body']
  /** After redirects. */
  readonly url: URL
}

const REDIRECTS = new Set([301, 302, 303, 307, 308])

export class Transport {
  readonly #hosts: RegistryHosts
  readonly #options: RegistryClientOptions
  readonly #agents = new Map<string, Dispatcher>()
  readonly #secureContexts = new Map<string, { secureContext: SecureContext; rejectUnauthorized: boolean }>()
  readonly #schemes = new Map<string, Promise<'http' | 'https'>>()

  constructor(hosts: RegistryHosts, options: RegistryClientOptions = {}) {
    this.#hosts = hosts
    this.#options = options
  }

  async close(): Promise<void> {
    const agents = [...this.#agents.values()]
    this.#agents.clear()
    await Promise.all(agents.map((agent) => agent.destroy()))
  }

  /**
   * Sends, and follows up to five (`maxRedirects`) redirects of GET and HEAD. Any status is an answer; throws SkimmerError UNAVAILABLE, TIMEOUT
   * or ABORTED when there is none, and INVALID_DATA for a redirect that must not be followed. `details.transient` tells
   * whether trying again can help.
   */
  async send(request: HttpRequest): Promise<HttpResponse> {
    let { url, authorization, ownHeaders } = request
    const maxRedirects = this.#options.maxRedirects ?? MAX_REDIRECTS
    let guarded = false
    let home: AddressClass | undefined
    for (let hop = 0; ; hop++) {
      const response = await this.#once(request, url, guarded ? { home } : undefined, { ...ownHeaders, ...(authorization !== undefined && { authorization }) })
      const location = response.headers.location
      if (!REDIRECTS.has(response.statusCode) || (request.method !== 'GET' && request.method !== 'HEAD') || typeof location !== 'string') {
        return { status: response.statusCode, headers: response.headers, body: response.body, url }
      }
      await discard(response.body)
      if (hop === maxRedirects) throw new SkimmerError('INVALID_DATA', `${request.what}: ${request.url.host} redirects more than ${maxRedirects} times`)
      const next = redirectTarget(url, location, request.what)
      // Once credentials were left behind they stay behind, even if a later hop leads back.
      if (next.origin !== url.origin) authorization = ownHeaders = undefined
      if (this.#options.guardRedirects === true && next.host !== request.url.host) {
        if (!guarded) home = await hostClass(request.url)
        guarded = true
      }
      url = next
    }
  }

  /** `guard`: a redirect to another host led here, from a registry in the class `home`. */
  async #once(request: HttpRequest, url: URL, guard: { home: AddressClass | undefined } | undefined, own: Readonly<Record<string, string>>): Promise<Dispatcher.ResponseData> {
    const { method, body, signal, what } = request
    const headers: Record<string, string> = {
      'user-agent': this.#options.userAgent ?? 'skimmer',
      // Blobs are what their digest says: nothing on the way may re-encode them.
      'accept-encoding': 'identity',
      ...request.headers,
      ...own,
    }
    if (body !== undefined) headers['content-length'] = String(body instanceof Uint8Array ? body.length : body.size)
    try {
      signal?.throwIfAborted()
      const allow = this.#allow(guard)
      if (allow !== undefined) assertAllowed(url, allow, what)
      return await this.#agent(url, request.hurry === true, guard).request({
        origin: url.origin,
        path: url.pathname + url.search,
        method,
        headers,
        signal,
        ...(request.headersTimeoutMs !== undefined && { headersTimeout: Math.min(request.headersTimeoutMs, this.#options.headersTimeoutMs ?? DEFAULT_HEADERS_TIMEOUT_MS) }),
        ...(request.readAhead !== undefined && { highWaterMark: request.readAhead }),
        ...(body === undefined ? {} : { body: body instanceof Uint8Array ? body : (body.stream as never) }),
      })
    } catch (error) {
      const failure = networkError(error, url, what, signal)
      if (guard !== undefined && hasCode(failure, 'FORBIDDEN')) throw new SkimmerError('INVALID_DATA', `${what}: ${request.url.host} redirects to a place that it has no business with: ${failure.message}`, { cause: failure })
      failure.details.transient = !signal?.aborted && isTransient(error)
      throw failure
    }
  }

  #allow(guard: { home: AddressClass | undefined } | undefined): AllowAddress | undefined {
    const { allow } = this.#options
    if (guard === undefined) return allow
    return (address) => {
      const where = addressClass(address)
      return (where === undefined || where === guard.home) && (allow === undefined || allow(address))
    }
  }

  #agent(url: URL, hurry: boolean, guard?: { home: AddressClass | undefined }): Dispatcher {
    const direct = isLoopback(url.host) || this.#options.proxyFromEnvironment === false
    const tls = url.protocol === 'https:'
    const name = `${guard === undefined ? '' : `guarded ${guard.home} `}${hurry} ${direct} ${tls} ${tls ? this.#hosts.tlsName(url.host) : ''}`
    const known = this.#agents.get(name)
    if (known !== undefined) return known
    const connect = { timeout: this.#connectTimeout(hurry), keepAlive: true, ...this.#guard(guard), ...(tls ? this.#tls(url.host) : {}) }
    const options = {
      connect,
      connections: this.#options.connections ?? DEFAULT_CONNECTIONS,
      pipelining: 1,
      allowH2: false,
      headersTimeout: this.#options.headersTimeoutMs ?? DEFAULT_HEADERS_TIMEOUT_MS,
      bodyTimeout: this.#options.bodyIdleTimeoutMs ?? DEFAULT_BODY_IDLE_TIMEOUT_MS,
      keepAliveTimeout: DEFAULT_KEEP_ALIVE_MS,
    }
    const agent = direct ? new Agent(options) : new EnvHttpProxyAgent({ ...options, ...(tls ? { requestTls: connect } : {}) })
    this.#agents.set(name, agent)
    return agent
  }

  #guard(guard?: { home: AddressClass | undefined }): { lookup?: LookupFunction } {
    const allow = this.#allow(guard)
    return allow === undefined ? {} : { lookup: guardedLookup(allow) }
  }

  #connectTimeout(hurry: boolean): number {
    return hurry ? (this.#options.mirrorConnectTimeoutMs ?? DEFAULT_MIRROR_CONNECT_TIMEOUT_MS) : (this.#options.connectTimeoutMs ?? DEFAULT_CONNECT_TIMEOUT_MS)
  }

  /** Reading the system's authorities takes tens of milliseconds: once for each set of settings. */
  #tls(host: string): { secureContext: SecureContext; rejectUnauthorized: boolean } {
    const name = this.#hosts.tlsName(host)
    let settings = this.#secureContexts.get(name)
    if (settings === undefined) {
      settings = this.#hosts.tls(host)
      this.#secureContexts.set(name, settings)
    }
    return settings
  }

  /** The endpoint's scheme. A loopback host without settings is tried with TLS once; what does not speak it gets HTTP. */
  async scheme(endpoint: Endpoint, what: string, signal?: AbortSignal): Promise<'http' | 'https'> {
    if (endpoint.scheme !== undefined) return endpoint.scheme
    if (this.#options.allow !== undefined) assertAllowed(new URL(`https://${endpoint.host}/`), this.#options.allow, what)
    let probe = this.#schemes.get(endpoint.host)
    if (probe === undefined) {
      probe = this.#probe(new URL(`https://${endpoint.host}/`), what)
      this.#schemes.set(endpoint.host, probe)
      probe.catch(() => this.#schemes.delete(endpoint.host)) // nothing listened: it may be something else next time
    }
    return await withSignal(probe, what, signal)
  }

  #probe(url: URL, what: string): Promise<'http' | 'https'> {
    return new Promise((resolve, reject) => {
      const host = url.hostname.replace(/^\[|\]$/g, '')
      const socket = connectTls({ host, port: Number(url.port || 443), ...this.#guard(), ...this.#tls(url.host), ...(/^[\d.:]+$/.test(host) ? {} : { servername: host }) })
      let connected = false
      socket.setTimeout(this.#connectTimeout(false), () => socket.destroy(Object.assign(new Error('no answer'), { code: 'ETIMEDOUT' })))
      socket.once('connect', () => (connected = true))
      socket.once('secureConnect', () => {
        socket.destroy()
        resolve('https')
      })
      socket.once('error', (error) => {
        socket.destroy()
        if (isCertificateError(networkCode(error))) resolve('https')
        else if (connected) resolve('http')
        else {
          const failure = networkError(error, url, what)
          failure.details.transient = isTransient(error)
          reject(failure)
        }
      })
      socket.once('close', () => resolve('http')) // closed without a word: not TLS; too late to matter otherwise
    })
  }
}

/** Waits for a shared promise, but only as long as the caller cares. */
export async function withSignal<Value>(shared: Promise<Value>, what: string, signal?: AbortSignal): Promise<Value> {
  if (signal === undefined) return await shared
  if (signal.aborted) throw abortedError(what, signal.reason)
  const { promise: aborted, reject } = Promise.withResolvers<never>()
  const onAbort = (): void => reject(abortedError(what, signal.reason))
  signal.addEventListener('abort', onAbort, { once: true })
  try {
    return await Promise.race([shared, aborted])
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
}

function redirectTarget(from: URL, location: string, what: string): URL {
  const next = location.length > 16_384 ? null : URL.parse(location, from.href)
  if (next === null || (next.protocol !== 'https:' && next.protocol !== 'http:') || next.username !== '' || next.password !== '') {
    throw new SkimmerError('INVALID_DATA', `${what}: ${from.host} redirects to something that is no plain http(s) address`)
  }
  if (from.protocol === 'https:' && next.protocol === 'http:') {
    throw new SkimmerError('INVALID_DATA', `${what}: ${from.host} redirects from HTTPS to plain HTTP (${shownUrl(next)}), which is refused`)
  }
  return next
}

/** Frees the connection: small rests are read so that it can be used again, large ones end it. */
export async function discard(body: Dispatcher.ResponseData['body']): Promise<void> {
  await body.dump({ limit: 64 * 1024 }).catch(() => {})
}

/** The whole body, at most `limit` bytes. Throws LIMIT_EXCEEDED, and what the connection throws. */
export async function readBody(response: HttpResponse, limit: number, what: string, signal?: AbortSignal): Promise<Buffer> {
  const tooLarge = (): SkimmerError => new SkimmerError('LIMIT_EXCEEDED', `${what}: ${response.url.host} answers with more than the ${limit} bytes that are allowed`)
  const announced = Number(response.headers['content-length'] ?? 0)
  const chunks: Buffer[] = []
  let length = 0
  try {
    if (announced > limit) throw tooLarge()
    for await (const chunk of response.body as AsyncIterable<Buffer>) {
      length += chunk.length
      if (length > limit) throw tooLarge()
      chunks.push(chunk)
    }
  } catch (error) {
    response.body.on('error', () => {}).destroy()
    const failure = networkError(error, response.url, what, signal)
    if (!(error instanceof SkimmerError)) failure.details.transient = !signal?.aborted && isTransient(error)
    throw failure
  }
  return Buffer.concat(chunks, length)
}
