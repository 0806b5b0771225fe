// Requests to the registry itself, on behalf of one caller: its credentials go there and nowhere else, and a loop of proxies ends.
import { randomUUID } from 'node:crypto'
import type { IncomingHttpHeaders } from 'node:http'
import type { Logger } from 'pino'
import { Authenticator } from '../oci/auth.ts'
import { anonymous } from '../oci/credentials.ts'
import type { CredentialSource } from '../oci/credentials.ts'
import { SkimmerError, hasCode } from '../oci/errors.ts'
import type { ErrorCode } from '../oci/errors.ts'
import { RegistryHosts } from '../oci/registry-hosts.ts'
import type { Endpoint, HostsConfig } from '../oci/registry-hosts.ts'
import { sendPersistently } from '../oci/retry.ts'
import { Transport, discard, readBody } from '../oci/transport.ts'
import type { HttpResponse } from '../oci/transport.ts'
import type { Caller } from './caller.ts'
import { LOOK_UP_MS, MAX_MIRROR_HOPS, UPSTREAM_ATTEMPTS, UPSTREAM_CONNECT_TIMEOUT_MS, UPSTREAM_PAUSE_MS } from './proxy-options.ts'
import type { UpstreamOptions } from './proxy-options.ts'
import type { Upstream } from './upstream-choice.ts'

export const MIRRORED_HEADER = 'x-skimmer-mirrored'

export interface UpstreamRequest {
  readonly method: 'GET' | 'HEAD'
  readonly upstream: Upstream
  readonly caller: Caller
  /** After `/v2/<repository>/`; empty for `/v2/` itself. */
  readonly path: string
  readonly query?: URLSearchParams
  readonly headers?: Readonly<Record<string, string>>
  /** Who sent the request here, if a proxy did: it goes on with the request. */
  readonly mirrored?: string | undefined
  readonly signal?: AbortSignal
  /** For the head of each answer. */
  readonly headersTimeoutMs?: number
}

/** Any status. `asked` is the registry's own URL, before redirects. */
export interface UpstreamAnswer extends HttpResponse {
  readonly asked: URL
}

/** An answer that was read to its end. */
export interface SmallAnswer {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  readonly bytes: Buffer
  readonly asked: URL
}

/** What a registry says when it is in trouble, and not when it answers the question. */
export const isTrouble = (status: number): boolean => status === 429 || status === 408 || status >= 500

export class UpstreamRequests {
  /** Names this proxy in the header by which a loop is seen. */
  readonly self = randomUUID()
  readonly #hosts: RegistryHosts
  readonly #transport: Transport
  readonly #flows: { readonly anonymous: Authenticator; readonly own: Authenticator }
  readonly #logger: Logger
  readonly #options: UpstreamOptions
  /** Registries that could not be reached a moment ago, and why. */
  readonly #paused = new Map<string, { until: number; failure: ErrorCode }>()

  constructor(components: { hosts?: HostsConfig; credentials?: CredentialSource; logger: Logger }, options: UpstreamOptions = {}) {
    this.#options = { attempts: UPSTREAM_ATTEMPTS, connectTimeoutMs: UPSTREAM_CONNECT_TIMEOUT_MS, guardRedirects: true, ...options }
    this.#hosts = new RegistryHosts(components.hosts)
    this.#transport = new Transport(this.#hosts, this.#options)
    this.#flows = {
      anonymous: new Authenticator({ transport: this.#transport, credentials: anonymous }, this.#options),
      own: new Authenticator({ transport: this.#transport, credentials: components.credentials ?? anonymous }, this.#options),
    }
    this.#logger = components.logger
  }

  async close(): Promise<void> {
    await this.#transport.close()
  }

  /**
   * Any status is an answer; the caller reads its body or lets go of it. UNAVAILABLE, TIMEOUT: none came. Credentials of a client go to
   * the registry alone; who brings none is served by the configured mirrors too, which come first.
   */
  async send(request: UpstreamRequest): Promise<UpstreamAnswer> {
    const { registry } = request.upstream
    if (request.caller.authorization === undefined) {
      for (const mirror of this.#hosts.endpoints(registry).filter((endpoint) => endpoint.mirror)) {
        const answer = await this.#mirror(mirror, request)
        if (answer !== undefined) return answer
      }
    }
    return await this.#at(this.#hosts.upstream(registry), request)
  }

  /** The answer with its body, of which there may be `limit` bytes: LIMIT_EXCEEDED. */
  async small(request: UpstreamRequest, limit: number): Promise<SmallAnswer> {
    const answer = await this.send({ headersTimeoutMs: this.#options.lookUpMs ?? LOOK_UP_MS, ...request })
    const { status, headers, asked } = answer
    if (request.method === 'HEAD') {
      await discard(answer.body)
      return { status, headers, bytes: Buffer.alloc(0), asked }
    }
    return { status, headers, asked, bytes: await readBody(answer, limit, whatOf(request), request.signal) }
  }

  async #mirror(mirror: Endpoint, request: UpstreamRequest): Promise<UpstreamAnswer | undefined> {
    try {
      const answer = await this.#at(mirror, request)
      // What a mirror lacks or refuses, the registry may give: only good answers count.
      if (answer.status < 400) return answer
      await discard(answer.body)
    } catch (error) {
      if (request.signal?.aborted) throw error
      this.#logger.info({ mirror: mirror.host, registry: request.upstream.registry, error: (error as Error).message }, 'a mirror of a registry did not answer')
    }
    return undefined
  }

  async #at(endpoint: Endpoint, request: UpstreamRequest): Promise<UpstreamAnswer> {
    const key = `${endpoint.host}${endpoint.prefix}`
    const paused = this.#paused.get(key)
    // It failed another request, perhaps another client's: what that was about is nobody else's business.
    if (paused !== undefined && paused.until > Date.now()) throw new SkimmerError(paused.failure, `${endpoint.host} did not answer a moment ago, and is not asked again for ${UPSTREAM_PAUSE_MS / 1000} s`)
    try {
      const answer = await this.#authorized(endpoint, request)
      this.#paused.delete(key)
      return answer
    } catch (error) {
      if (hasCode(error, 'UNAVAILABLE', 'TIMEOUT') && !request.signal?.aborted) this.#paused.set(key, { until: Date.now() + UPSTREAM_PAUSE_MS, failure: error.code })
      throw error
    }
  }

  async #authorized(endpoint: Endpoint, request: UpstreamRequest): Promise<UpstreamAnswer> {
    const asked = await this.#url(endpoint, request)
    const flow = request.caller.kind === 'client' ? undefined : this.#flows[request.caller.kind]
    const { repository } = request.upstream
    const target = { registry: endpoint.registry, origin: asked.origin, actions: 'pull' as const, ...(repository !== '' && { repository }) }
    let authorization = flow === undefined ? request.caller.authorization : await flow.header(target, request.signal)
    for (let renewals = 0; ; renewals++) {
      const response = await this.#persistently(endpoint, request, asked, authorization)
      // After a redirect it is not the registry that refuses.
      if (flow === undefined || response.status !== 401 || renewals === 2 || response.url.origin !== asked.origin) return { ...response, asked }
      const renewed = await flow.renew(target, response.headers['www-authenticate'], authorization, request.signal).catch((error: unknown) => {
        if (hasCode(error, 'UNAUTHORIZED')) return undefined
        response.body.on('error', () => {}).destroy()
        throw error
      })
      if (renewed === undefined || renewed === authorization) return { ...response, asked }
      await discard(response.body)
      authorization = renewed
    }
  }

  #persistently(endpoint: Endpoint, request: UpstreamRequest, url: URL, authorization: string | undefined): Promise<HttpResponse> {
    const { method, signal, headersTimeoutMs } = request
    const headers = { ...request.headers, [MIRRORED_HEADER]: request.mirrored === undefined ? this.self : `${request.mirrored}, ${this.self}` }
    const options = endpoint.mirror ? { ...this.#options, attempts: 1 } : this.#options
    return sendPersistently(this.#transport, { method, url, what: whatOf(request), headers, signal, authorization, headersTimeoutMs, hurry: endpoint.mirror }, options)
  }

  async #url(endpoint: Endpoint, request: UpstreamRequest): Promise<URL> {
    const scheme = await this.#transport.scheme(endpoint, whatOf(request), request.signal)
    const { repository, registry } = request.upstream
    const url = new URL(`${scheme}://${endpoint.host}/v2${endpoint.prefix}/${repository === '' ? '' : `${repository}/`}${request.path}`)
    for (const [name, value] of request.query ?? []) url.searchParams.append(name, value)
    if (endpoint.mirror) url.searchParams.set('ns', registry)
    return url
  }

  /** The request came by way of this proxy, or of too many: it must not go round. */
  isLoop(mirrored: string | undefined): boolean {
    const hops = (mirrored ?? '').split(',').map((hop) => hop.trim()).filter(Boolean)
    return hops.includes(this.self) || hops.length > MAX_MIRROR_HOPS
  }
}

const whatOf = ({ method, upstream, path }: UpstreamRequest): string => `${method === 'HEAD' ? 'looking up' : 'pulling'} ${path === '' ? '/v2/' : path} of ${upstream.registry}${upstream.repository === '' ? '' : `/${upstream.repository}`}`
