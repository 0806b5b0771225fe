// Requests that a rule sends through the swarm: blobs of registries to the registry proxy, other files to the downloads of this node.
import type { IncomingMessage, ServerResponse } from 'node:http'
import { pipeline } from 'node:stream/promises'
import type { Logger } from 'pino'
import { SkimmerError } from '../../oci/errors.ts'
import { type HostsConfig, isLoopback, RegistryHosts } from '../../oci/registry-hosts.ts'
import { wantedRange } from '../byte-range.ts'
import type { InterceptHost } from './forward-config.ts'
import { fileHeaders, hasBody } from './forward-headers.ts'
import type { ForwardMetrics, ForwardOutcome } from './forward-metrics.ts'
import type { FileRequest, ForwardedFile, ForwardLimits, OpenFile, RegistryHandler } from './forward-options.ts'

const BLOB = /^\/v2\/.+\/blobs\/sha256(?::|%3A)[0-9a-f]{64}$/i
/** What the control protocol takes. */
const MAX_HEADERS = 64
const MAX_HEADER_LENGTH = 8192
const CONDITIONS = ['if-none-match', 'if-match', 'if-modified-since', 'if-unmodified-since']

/** `undefined`: not for the swarm, or not now. */
export type SwarmAnswer = { readonly way: 'blob' | 'file'; readonly outcome: ForwardOutcome } | undefined

export class SwarmRequests {
  readonly #registry: RegistryHandler | undefined
  readonly #files: OpenFile | undefined
  readonly #hosts: RegistryHosts
  readonly #logger: Logger
  readonly #metrics: ForwardMetrics
  readonly #limits: ForwardLimits

  constructor(components: { registry?: RegistryHandler; files?: OpenFile; hosts?: HostsConfig; logger: Logger; metrics: ForwardMetrics }, limits: ForwardLimits) {
    this.#registry = components.registry
    this.#files = components.files
    this.#hosts = new RegistryHosts(components.hosts)
    this.#logger = components.logger
    this.#metrics = components.metrics
    this.#limits = limits
  }

  /** Answers the request through the swarm if it is one of those that can be, and the swarm can begin to. */
  async answer(request: IncomingMessage, response: ServerResponse, url: URL, intercept: InterceptHost | undefined, signal: AbortSignal): Promise<SwarmAnswer> {
    if ((request.method !== 'GET' && request.method !== 'HEAD') || hasBody(request)) return undefined
    if (this.#registry !== undefined && BLOB.test(url.pathname) && url.search === '' && this.#spokenToAs(url)) {
      return { way: 'blob', outcome: await this.#blob(this.#registry, request, response, url) }
    }
    if (this.#files === undefined || request.method !== 'GET' || CONDITIONS.some((name) => request.headers[name] !== undefined)) return undefined
    const headers = fileHeaders(request)
    if (Object.keys(headers).length > MAX_HEADERS || Object.values(headers).some((value) => value.length > MAX_HEADER_LENGTH)) return undefined
    const fresh = /\bno-(?:cache|store)\b/i.test(`${request.headers['cache-control'] ?? ''} ${request.headers.pragma ?? ''}`)
    const trust = { ...(intercept?.ca !== undefined && { ca: intercept.ca }), ...(intercept?.insecure === true && { insecure: true }) }
    return await this.#file(this.#files, { url: url.href, headers, fresh, ...trust }, request, response, signal)
  }

  /** The registry client speaks HTTP or TLS by its own configuration; a URL that says otherwise is another server. */
  #spokenToAs(url: URL): boolean {
    const plain = this.#hosts.configOf(url.host).plainHttp ?? (isLoopback(url.host) ? url.protocol === 'http:' : false)
    return plain === (url.protocol === 'http:')
  }

  async #blob(registry: RegistryHandler, request: IncomingMessage, response: ServerResponse, url: URL): Promise<ForwardOutcome> {
    request.url = `${url.pathname}?ns=${encodeURIComponent(url.host)}`
    delete request.headers['proxy-authorization']
    const closed = response.closed ? undefined : new Promise((resolve) => response.once('close', resolve))
    const outcome = await registry.handle(request, response)
    await closed
    if (response.writableFinished) return 'ok'
    // Both break off: the client that went, and the registry proxy where the bytes were wrong.
    return outcome === 'failed' ? 'failed' : 'gone'
  }

  async #file(open: OpenFile, wish: Omit<FileRequest, 'signal'>, request: IncomingMessage, response: ServerResponse, gone: AbortSignal): Promise<SwarmAnswer> {
    let file: ForwardedFile | undefined
    const first = new AbortController()
    const timer = setTimeout(() => first.abort(new SkimmerError('TIMEOUT', `the swarm did not begin within ${this.#limits.swarmMs / 1000} s`)), this.#limits.swarmMs)
    const signal = AbortSignal.any([gone, first.signal])
    try {
      file = await open({ ...wish, signal })
      const { head } = file
      const length = file.length ?? head.length
      const range = length === undefined ? ({ kind: 'whole' } as const) : wantedRange(request.headers, length, head.etag ?? '')
      const headers = {
        ...(head.contentType !== undefined && { 'content-type': head.contentType }),
        ...(head.contentEncoding !== undefined && { 'content-encoding': head.contentEncoding }),
        ...(head.etag !== undefined && { etag: head.etag }),
        ...(head.lastModified !== undefined && { 'last-modified': head.lastModified }),
        ...(length !== undefined && { 'accept-ranges': 'bytes' }),
      }
      if (range.kind === 'unsatisfiable') {
        response.writeHead(416, { ...headers, 'content-range': `bytes */${length}`, 'content-length': '0' }).end()
        return { way: 'file', outcome: 'ok' }
      }
      const [from, to] = range.kind === 'part' ? [range.from, range.to] : [0, length]
      const body = file.read({ from, ...(to !== undefined && { to }) }, { signal })[Symbol.asyncIterator]()
      // Only with the first bytes in hand is the swarm's answer better than the server's own.
      const beginning = await body.next()
      clearTimeout(timer)
      if (range.kind === 'part') response.writeHead(206, { ...headers, 'content-range': `bytes ${from}-${to! - 1}/${length}`, 'content-length': String(to! - from) })
      else response.writeHead(200, { ...headers, ...(length !== undefined && { 'content-length': String(length) }) })
      await pipeline(this.#counted(beginning, body), response)
      return { way: 'file', outcome: 'ok' }
    } catch (error) {
      if (gone.aborted) return { way: 'file', outcome: 'gone' }
      if (response.headersSent) {
        this.#logger.warn({ code: (error as SkimmerError).code, reason: (error as Error).message }, 'a file broke off')
        response.destroy()
        return { way: 'file', outcome: 'failed' }
      }
      this.#logger.info({ code: (error as SkimmerError).code, reason: (error as Error).message }, 'the swarm could not give a file: it is fetched directly')
      this.#metrics.fellBack()
      return undefined
    } finally {
      clearTimeout(timer)
      file?.release()
    }
  }

  async *#counted(beginning: IteratorResult<Buffer, unknown>, rest: AsyncIterator<Buffer>): AsyncGenerator<Buffer, void, undefined> {
    try {
      for (let next = beginning; next.done !== true; next = await rest.next()) {
        this.#metrics.sent('file', next.value.length)
        yield next.value
      }
    } finally {
      await rest.return?.()
    }
  }
}
