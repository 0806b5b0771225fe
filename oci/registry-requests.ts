// Requests to a registry, whichever place answers them: mirrors first, then the registry; authorization renewed, failures tried again.
import { performance } from 'node:perf_hooks'
import type { Logger } from 'pino'
import type { Authenticator, AuthTarget } from './auth.ts'
import { DEFAULT_MIRROR_PAUSE_MS } from './defaults.ts'
import type { RegistryClientOptions } from './defaults.ts'
import { SkimmerError, hasCode } from './errors.ts'
import { answerError } from './registry-answer.ts'
import type { Endpoint, RegistryHosts } from './registry-hosts.ts'
import type { RegistryMetrics } from './registry-metrics.ts'
import { sendPersistently } from './retry.ts'
import { discard } from './transport.ts'
import type { HttpRequest, HttpResponse, RequestBody, Transport } from './transport.ts'

export interface RegistryRequest {
  readonly method: HttpRequest['method']
  readonly registry: string
  readonly repository?: string
  /** After `/v2/<repository>/` (or `/v2/` without one); or a whole URL that the registry gave (next page, upload). */
  readonly path: string | URL
  readonly what: string
  readonly query?: Readonly<Record<string, string>>
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: RequestBody
  readonly push?: boolean
  /** Statuses that are answers and not errors, besides 2xx. */
  readonly accept?: readonly number[]
  readonly signal?: AbortSignal
}

export interface RegistryResponse extends HttpResponse {
  readonly endpoint: Endpoint
  /** The registry's own URL that was asked, before redirects: the base of relative links. */
  readonly asked: URL
}

export class RegistryRequests {
  readonly #hosts: RegistryHosts
  readonly #auth: Authenticator
  readonly #transport: Transport
  readonly #logger: Logger
  readonly #metrics: RegistryMetrics
  readonly #options: RegistryClientOptions
  readonly #pausedUntil = new Map<string, number>()

  constructor(components: { hosts: RegistryHosts; auth: Authenticator; transport: Transport; logger: Logger; metrics: RegistryMetrics }, options: RegistryClientOptions) {
    this.#hosts = components.hosts
    this.#auth = components.auth
    this.#transport = components.transport
    this.#logger = components.logger
    this.#metrics = components.metrics
    this.#options = options
  }

  /** The first good answer. Throws the registry's own error when no mirror answers and it does not either. */
  async send(request: RegistryRequest): Promise<RegistryResponse> {
    const started = performance.now()
    let outcome = 'failed'
    try {
      const response = await this.#anywhere(request)
      outcome = 'ok'
      return response
    } catch (error) {
      if (hasCode(error, 'UNAUTHORIZED', 'NOT_FOUND')) outcome = 'refused'
      throw error
    } finally {
      this.#metrics.request(request.method, outcome, (performance.now() - started) / 1000)
    }
  }

  /** For a mirror whose bytes were wrong, or that keeps breaking: pass it over for a while. */
  avoid(endpoint: Endpoint): void {
    if (endpoint.mirror) this.#pausedUntil.set(mirrorKey(endpoint), performance.now() + (this.#options.mirrorPauseMs ?? DEFAULT_MIRROR_PAUSE_MS))
  }

  async #anywhere(request: RegistryRequest): Promise<RegistryResponse> {
    const reading = request.push !== true && !(request.path instanceof URL)
    const endpoints = reading ? this.#hosts.endpoints(request.registry) : [this.#hosts.upstream(request.registry)]
    for (const endpoint of endpoints) {
      if (!endpoint.mirror) return await this.#at(endpoint, request)
      if ((this.#pausedUntil.get(mirrorKey(endpoint)) ?? 0) > performance.now()) continue
      try {
        const response = await this.#at(endpoint, request)
        // What a mirror lacks, the registry may have: only its good answers count.
        if (response.status < 400) return response
        await discard(response.body)
      } catch (error) {
        if (request.signal?.aborted) throw error
        if (!hasCode(error, 'NOT_FOUND')) {
          this.avoid(endpoint)
          this.#logger.warn({ mirror: endpoint.host, registry: request.registry, error: (error as Error).message }, 'a registry mirror failed and is passed over for a while')
        }
      }
    }
    throw new SkimmerError('INTERNAL', `${request.what}: the registry ${request.registry} has no endpoint`)
  }

  async #at(endpoint: Endpoint, request: RegistryRequest): Promise<RegistryResponse> {
    const asked = request.path instanceof URL ? request.path : await this.#url(endpoint, request)
    const own = request.path instanceof URL ? await this.#url(endpoint, { ...request, path: '' }) : asked
    const target: AuthTarget = {
      registry: endpoint.registry,
      origin: own.origin,
      actions: request.push === true ? 'pull,push' : 'pull',
      repository: request.repository,
    }
    // A URL that the registry gave may lead elsewhere (upload to a storage service): no credentials there.
    const { response, authorization } = await (asked.origin === own.origin
      ? this.#authorized(endpoint, request, asked, target)
      : this.#persistently(endpoint, request, asked, undefined).then((answer) => ({ response: answer, authorization: undefined })))
    if ((response.status >= 200 && response.status < 300) || request.accept?.includes(response.status)) return { ...response, endpoint, asked }
    throw await answerError(response, {
      what: request.what,
      registry: endpoint.registry,
      secrets: authorization === undefined ? [] : [authorization, authorization.slice(authorization.indexOf(' ') + 1)],
      anonymous: authorization === undefined,
    })
  }

  async #authorized(endpoint: Endpoint, request: RegistryRequest, url: URL, target: AuthTarget): Promise<{ response: HttpResponse; authorization: string | undefined }> {
    const replayable = request.body === undefined || request.body instanceof Uint8Array
    let authorization = await this.#auth.header(target, request.signal)
    for (let renewals = 0; ; renewals++) {
      const response = await this.#persistently(endpoint, request, url, authorization)
      // 403 is what some registries say to expired credentials: worth another try when there were any.
      const refused = response.status === 401 || (response.status === 403 && authorization !== undefined)
      // After a redirect it is not the registry that refuses.
      if (!refused || !replayable || renewals === 2 || response.url.origin !== url.origin) return { response, authorization }
      const renewed = await this.#auth.renew(target, response.headers['www-authenticate'], authorization, request.signal).catch(async (error: unknown) => {
        await discard(response.body)
        throw error
      })
      if (renewed === undefined || renewed === authorization) return { response, authorization }
      await discard(response.body)
      authorization = renewed
    }
  }

  async #url(endpoint: Endpoint, request: RegistryRequest): Promise<URL> {
    const scheme = await this.#transport.scheme(endpoint, request.what, request.signal)
    const url = new URL(`${scheme}://${endpoint.host}/v2${endpoint.prefix}/${request.repository === undefined ? '' : `${request.repository}/`}${request.path}`)
    for (const [name, value] of Object.entries(request.query ?? {})) url.searchParams.set(name, value)
    // As containerd does: a mirror that serves several registries learns which one is meant.
    if (endpoint.mirror) url.searchParams.set('ns', request.registry)
    return url
  }

  #persistently(endpoint: Endpoint, request: RegistryRequest, url: URL, authorization: string | undefined): Promise<HttpResponse> {
    const { method, what, headers, body, signal } = request
    return sendPersistently(
      this.#transport,
      { method, url, what, hurry: endpoint.mirror, headers, body, signal, authorization },
      {
        ...this.#options,
        ...(endpoint.mirror ? { attempts: 1 } : {}),
        onRetry: (why, waitMs) => {
          this.#metrics.retry()
          this.#logger.info({ host: endpoint.host, why, waitMs: Math.round(waitMs) }, 'a request to a registry is sent again')
        },
      },
    )
  }
}

const mirrorKey = (endpoint: Endpoint): string => `${endpoint.host}${endpoint.prefix}`
