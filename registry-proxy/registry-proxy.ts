// The registry proxy: a pull-through mirror over HTTP for everything that pulls images, in front of any number of registries.
import { createServer } from 'node:http'
import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import { performance } from 'node:perf_hooks'
import type { Logger } from 'pino'
import type { Registry } from 'prom-client'
import type { CredentialSource } from '../oci/credentials.ts'
import { SkimmerError, hasCode } from '../oci/errors.ts'
import type { HostsConfig } from '../oci/registry-hosts.ts'
import type { BlockStore } from '../peer/block-store.ts'
import type { Downloads } from '../peer/downloads.ts'
import { answerError, answerProblem, prepare } from './answers.ts'
import type { Outcome } from './answers.ts'
import { Blobs } from './blobs.ts'
import { callerOf } from './caller.ts'
import { ClientAccess } from './client-access.ts'
import type { AccessFact } from './client-access.ts'
import { Listings } from './listings.ts'
import { ManifestCache } from './manifest-cache.ts'
import { Manifests } from './manifests.ts'
import { Ping } from './ping.ts'
import { ProxyMetrics } from './proxy-metrics.ts'
import { DEFAULT_CLIENT_CONNECTIONS, DEFAULT_PROXY_REGISTRY, KEEP_ALIVE_MS, MAX_REQUEST_HEADER_BYTES, REQUEST_TIMEOUT_MS } from './proxy-options.ts'
import type { RegistryProxyOptions } from './proxy-options.ts'
import { headerOf } from './proxy-request.ts'
import type { ProxyRequest } from './proxy-request.ts'
import { PublicRepositories } from './public-repositories.ts'
import { routeOf } from './routes.ts'
import type { Route } from './routes.ts'
import { chooseUpstream, upstreamRules } from './upstream-choice.ts'
import type { UpstreamRules } from './upstream-choice.ts'
import { MIRRORED_HEADER, UpstreamRequests } from './upstream-requests.ts'

export interface RegistryProxyComponents {
  readonly downloads: Downloads
  readonly store: BlockStore
  readonly logger: Logger
  readonly metrics: Registry
  /** How registries are reached. */
  readonly hosts?: HostsConfig
  /** Used for local clients without credentials when `ownCredentials` is set, and never otherwise. */
  readonly credentials?: CredentialSource
}

export class RegistryProxy {
  readonly server: Server
  readonly #logger: Logger
  readonly #metrics: ProxyMetrics
  readonly #rules: UpstreamRules
  readonly #own: CredentialSource | undefined
  readonly #upstream: UpstreamRequests
  readonly #access: ClientAccess
  readonly #cache: ManifestCache
  readonly #manifests: Manifests
  readonly #public: PublicRepositories
  readonly #blobs: Blobs
  readonly #listings: Listings
  readonly #ping: Ping
  readonly #options: RegistryProxyOptions
  readonly #running = new Set<Promise<Outcome>>()
  #pruned: Promise<void> = Promise.resolve()

  /** Listens when this resolves. INVALID_ARGUMENT: an option is wrong; CONFLICT: the address is taken. */
  static async start(components: RegistryProxyComponents, options: RegistryProxyOptions): Promise<RegistryProxy> {
    const proxy = new RegistryProxy(components, options)
    try {
      await proxy.#start()
    } catch (error) {
      await proxy.stop()
      throw error
    }
    return proxy
  }

  private constructor(components: RegistryProxyComponents, options: RegistryProxyOptions) {
    const { store, downloads, metrics } = components
    const logger = components.logger.child({ room: 'registry-proxy' })
    this.#logger = logger
    this.#options = options
    this.#rules = upstreamRules({ registry: options.registry ?? DEFAULT_PROXY_REGISTRY, registries: options.registries, hosts: options.hosts })
    this.#own = options.ownCredentials === true ? components.credentials : undefined
    this.#upstream = new UpstreamRequests({ hosts: components.hosts, credentials: this.#own, logger }, options.upstream)
    this.#access = new ClientAccess({ space: store.sublevel<AccessFact>('proxy-access', { valueEncoding: 'json' }), logger }, options)
    this.#cache = new ManifestCache({ store, logger })
    this.#public = new PublicRepositories({ upstream: this.#upstream, access: this.#access, logger }, options)
    this.#manifests = new Manifests({ upstream: this.#upstream, cache: this.#cache, access: this.#access, publicRepositories: this.#public, logger }, options)
    this.#metrics = new ProxyMetrics(metrics, () => new Promise((resolve) => this.server.getConnections((error, count) => resolve(error === null ? count : 0))))
    this.#blobs = new Blobs({ upstream: this.#upstream, access: this.#access, downloads, store, credentials: this.#own, logger, onBytes: (bytes) => this.#metrics.sent(bytes) }, options)
    this.#listings = new Listings({ upstream: this.#upstream })
    this.#ping = new Ping({ upstream: this.#upstream })
    const limits = { maxHeaderSize: MAX_REQUEST_HEADER_BYTES, headersTimeout: REQUEST_TIMEOUT_MS, requestTimeout: REQUEST_TIMEOUT_MS, keepAliveTimeout: KEEP_ALIVE_MS }
    const handle = (request: IncomingMessage, response: ServerResponse): void => void this.handle(request, response)
    this.server = options.tls === undefined ? createServer(limits, handle) : createTlsServer({ ...limits, ...options.tls }, handle)
    this.server.maxConnections = options.connections ?? DEFAULT_CLIENT_CONNECTIONS
  }

  /** `127.0.0.1:4001` */
  get address(): string {
    const { address, port, family } = this.server.address() as AddressInfo
    return family === 'IPv6' ? `[${address}]:${port}` : `${address}:${port}`
  }

  async #start(): Promise<void> {
    await this.#access.open()
    const { host, port } = this.#options.listen
    await new Promise<void>((resolve, reject) => {
      this.server.once('error', (cause: NodeJS.ErrnoException) => reject(new SkimmerError(cause.code === 'EADDRINUSE' ? 'CONFLICT' : 'INVALID_ARGUMENT', `the registry proxy cannot listen on ${host}:${port}: ${cause.code}`, { cause })))
      this.server.listen(port, host, resolve)
    })
    this.#pruned = this.#cache.prune().catch((error: unknown) => this.#logger.warn({ err: error }, 'old notes about manifests could not be dropped'))
    this.#logger.info({ address: this.address, registry: this.#rules.registry, tls: this.#options.tls !== undefined }, 'the registry proxy listens')
  }

  /** Ends every connection; running answers break off. */
  async stop(): Promise<void> {
    const closed = new Promise((resolve) => (this.server.listening ? this.server.close(resolve) : resolve(undefined)))
    this.server.closeAllConnections()
    await closed
    await Promise.all(this.#running)
    this.#blobs.stop()
    await this.#public.stop()
    await this.#pruned
    await this.#upstream.close()
  }

  /** Answers one request, whichever server it came to. */
  handle(incoming: IncomingMessage, response: ServerResponse): Promise<Outcome> {
    const answering = this.#handle(incoming, response)
    this.#running.add(answering)
    void answering.finally(() => this.#running.delete(answering))
    return answering
  }

  async #handle(incoming: IncomingMessage, response: ServerResponse): Promise<Outcome> {
    const started = performance.now()
    const gone = new AbortController()
    response.once('close', () => gone.abort())
    response.on('error', () => {}) // the client went away: 'close' says so too
    incoming.resume()
    let kind: Route['kind'] = 'refused'
    let outcome: Outcome = 'failed'
    try {
      prepare(response)
      const url = URL.parse(incoming.url ?? '', 'http://proxy/')
      const route = url === null ? routeOf('GET', '') : routeOf(incoming.method ?? '', url.pathname)
      kind = route.kind
      outcome = await this.#route(route, url ?? new URL('http://proxy/'), incoming, response, gone.signal)
    } catch (error) {
      outcome = this.#failed(kind, error, response, gone.signal)
    } finally {
      const label = kind === 'refused' || kind === 'health' ? 'other' : kind
      this.#metrics.answered(label, outcome, (performance.now() - started) / 1000)
    }
    return outcome
  }

  async #route(route: Route, url: URL, incoming: IncomingMessage, response: ServerResponse, signal: AbortSignal): Promise<Outcome> {
    if (route.kind === 'refused') {
      if (route.allow !== undefined) response.setHeader('allow', route.allow)
      // A body that nobody reads must not be taken for the next request.
      if (incoming.method !== 'GET' && incoming.method !== 'HEAD') response.setHeader('connection', 'close')
      answerProblem(response, route.status, route.code, route.message)
      return 'invalid'
    }
    if (route.kind === 'health') {
      response.writeHead(200, { 'content-type': 'application/json' })
      response.end('{"ok":true}\n')
      return 'hit'
    }
    const mirrored = headerOf(incoming.headers[MIRRORED_HEADER])
    if (this.#upstream.isLoop(mirrored)) {
      answerProblem(response, 508, 'UNSUPPORTED', 'this request came through this proxy before: it is named as a registry or as a mirror of itself')
      return 'invalid'
    }
    const upstream = chooseUpstream(this.#rules, 'name' in route ? route.name : undefined, url.searchParams, incoming.headers)
    const caller = await callerOf(incoming, upstream, this.#own)
    const request: ProxyRequest = { incoming, response, method: incoming.method as 'GET' | 'HEAD', path: url.pathname, query: url.searchParams, upstream, caller, mirrored, signal }
    switch (route.kind) {
      case 'ping': return await this.#ping.answer(request)
      case 'manifest': return await this.#manifests.answer(request, route.reference)
      case 'blob': return await this.#blobs.answer(request, route.reference)
      case 'tags': return await this.#listings.tags(request)
      case 'referrers': return await this.#listings.referrers(request, route.reference)
    }
  }

  #failed(kind: Route['kind'], error: unknown, response: ServerResponse, gone: AbortSignal): Outcome {
    if (gone.aborted && !response.writableFinished) return 'gone'
    const known = error instanceof SkimmerError ? error : new SkimmerError('INTERNAL', 'the proxy has a bug; its log says more', { cause: error })
    const facts = { kind, code: known.code, err: known.code === 'INTERNAL' ? error : undefined, reason: known.message }
    if (hasCode(known, 'ABORTED')) this.#logger.debug(facts, 'an answer was given up')
    else if (hasCode(known, 'INTERNAL')) this.#logger.error(facts, 'a request could not be answered')
    else this.#logger.warn(facts, 'a request could not be answered')
    if (response.headersSent) {
      // What was sent must not look whole.
      response.destroy()
      return hasCode(known, 'ABORTED') ? 'gone' : 'failed'
    }
    return answerError(response, known, kind === 'manifest' || kind === 'blob' ? kind : 'other')
  }
}
