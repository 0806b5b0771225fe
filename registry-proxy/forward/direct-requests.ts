// Requests that are passed on to their server as they are, and its answers back.
import http, { type ClientRequest, type IncomingMessage, type ServerResponse } from 'node:http'
import https from 'node:https'
import { isIP } from 'node:net'
import type { Duplex } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import type { SecureContext } from 'node:tls'
import { SkimmerError } from '../../oci/errors.ts'
import { type HostsConfig, RegistryHosts } from '../../oci/registry-hosts.ts'
import { unreachable } from './forward-answers.ts'
import type { InterceptHost } from './forward-config.ts'
import { endToEnd, hasBody, requestHeaders } from './forward-headers.ts'
import type { ForwardMetrics, ForwardOutcome } from './forward-metrics.ts'
import type { ForwardLimits } from './forward-options.ts'
import { joinStreams } from './joined-streams.ts'

/** How long an idle connection to a server is kept. */
const KEPT_MS = 30_000

interface TlsOptions {
  readonly secureContext: SecureContext
  readonly rejectUnauthorized: boolean
}

export class DirectRequests {
  readonly #http: http.Agent
  readonly #https: https.Agent
  readonly #hosts: RegistryHosts
  readonly #limits: ForwardLimits
  readonly #via: string
  readonly #metrics: ForwardMetrics
  readonly #tls = new Map<string | InterceptHost, TlsOptions>()

  /** `via`: how this proxy names itself to servers. */
  constructor(components: { hosts?: HostsConfig; metrics: ForwardMetrics }, options: { limits: ForwardLimits; via: string }) {
    this.#hosts = new RegistryHosts(components.hosts)
    this.#metrics = components.metrics
    this.#limits = options.limits
    this.#via = options.via
    // The timeout ends connections that nobody uses; those in use have times of their own.
    const keeping = { keepAlive: true, maxFreeSockets: 16, timeout: KEPT_MS, scheduling: 'lifo' as const }
    this.#http = new http.Agent(keeping)
    this.#https = new https.Agent(keeping)
  }

  stop(): void {
    this.#http.destroy()
    this.#https.destroy()
  }

  /** UNAVAILABLE, TIMEOUT: no answer began. An answer that breaks later is broken towards the client too. */
  async forward(request: IncomingMessage, response: ServerResponse, url: URL, intercept?: InterceptHost): Promise<ForwardOutcome> {
    const body = hasBody(request)
    for (let attempt = 1; ; attempt++) {
      const outgoing = this.#request(request, url, intercept)
      try {
        return await this.#exchange(request, response, url, outgoing, body)
      } catch (error) {
        outgoing.destroy()
        if (response.destroyed) return 'gone'
        if (response.headersSent) {
          response.destroy()
          return 'failed'
        }
        // A server may close an idle connection at the moment it is used again.
        if (attempt === 1 && outgoing.reusedSocket && !body && ['ECONNRESET', 'EPIPE'].includes((error as NodeJS.ErrnoException).code ?? '')) continue
        throw unreachable(url.host, error)
      }
    }
  }

  /** WebSockets and other upgrades: the connection becomes a tunnel when the server agrees. */
  upgrade(request: IncomingMessage, client: Duplex, head: Buffer, url: URL, intercept?: InterceptHost): Promise<ForwardOutcome> {
    const outgoing = this.#request(request, url, intercept, { Connection: 'Upgrade', Upgrade: request.headers.upgrade! })
    client.once('close', () => outgoing.destroy())
    return new Promise((resolve, reject) => {
      this.#bound(outgoing, url)
      outgoing.once('error', (error) => reject(unreachable(url.host, error)))
      outgoing.once('response', (answer) => {
        client.write(answerHead(answer, [['Connection', 'close']]))
        void joinStreams(answer, client, { idleMs: this.#limits.idleMs }).then(({ outcome }) => resolve(outcome))
      })
      outgoing.once('upgrade', (answer, server, serverHead) => {
        client.write(answerHead(answer, [['Connection', 'Upgrade'], ['Upgrade', answer.headers.upgrade ?? '']]))
        if (serverHead.length > 0) client.write(serverHead)
        if (head.length > 0) server.write(head)
        this.#metrics.tunnel(1)
        void joinStreams(server, client, { idleMs: this.#limits.tunnelIdleMs, both: true }).then(({ outcome, sent }) => {
          this.#metrics.tunnel(-1)
          this.#metrics.sent('tunnel', sent)
          resolve(outcome)
        })
      })
      outgoing.end()
    })
  }

  #request(request: IncomingMessage, url: URL, intercept: InterceptHost | undefined, extra: Record<string, string> = {}): ClientRequest {
    const secure = url.protocol === 'https:'
    const hostname = url.hostname.replace(/^\[(.*)\]$/, '$1')
    const headers = [...requestHeaders(request, url.host, this.#via), ...Object.entries(extra)]
    const options: https.RequestOptions = {
      method: request.method,
      hostname,
      port: url.port === '' ? (secure ? 443 : 80) : url.port,
      path: url.pathname + url.search,
      headers: headers.flat() as unknown as http.OutgoingHttpHeaders,
      maxHeaderSize: 256 * 1024,
      ...(secure ? { ...this.#tlsFor(url.host, intercept), servername: isIP(hostname) === 0 ? hostname : '' } : {}),
    }
    return secure ? https.request({ ...options, agent: this.#https }) : http.request({ ...options, agent: this.#http })
  }

  #tlsFor(host: string, intercept: InterceptHost | undefined): TlsOptions {
    const own = intercept !== undefined && (intercept.insecure || intercept.ca !== undefined)
    const key = own ? intercept : this.#hosts.tlsName(host)
    let found = this.#tls.get(key)
    if (found === undefined) {
      const hosts = own ? new RegistryHosts({ '*': { ca: intercept.ca, insecureSkipVerify: intercept.insecure } }) : this.#hosts
      found = hosts.tls(host)
      this.#tls.set(key, found)
    }
    return found
  }

  async #exchange(request: IncomingMessage, response: ServerResponse, url: URL, outgoing: ClientRequest, body: boolean): Promise<ForwardOutcome> {
    const gone = (): void => void outgoing.destroy()
    response.once('close', gone)
    try {
      const answered = new Promise<IncomingMessage>((resolve, reject) => {
        outgoing.once('response', resolve)
        outgoing.on('error', reject)
      })
      this.#bound(outgoing, url, body)
      if (body) {
        request.pipe(outgoing)
        request.once('aborted', gone)
      } else outgoing.end()
      const answer = await answered
      const { idleMs } = this.#limits
      outgoing.setTimeout(idleMs, () => answer.destroy(new SkimmerError('TIMEOUT', `${url.host} sent nothing for ${idleMs / 1000} s`)))
      response.sendDate = false
      // What is left of a body that the server did not want must not be taken for the next request.
      if (!request.complete) response.shouldKeepAlive = false
      response.writeHead(answer.statusCode!, answer.statusMessage, endToEnd(answer).flat())
      let bytes = 0
      answer.on('data', (chunk: Buffer) => (bytes += chunk.length))
      try {
        await pipeline(answer, response)
      } finally {
        this.#metrics.sent('direct', bytes)
      }
      return 'ok'
    } finally {
      response.off('close', gone)
    }
  }

  /** Ends a request whose server does not connect or answer in time; a body that is still on its way has as long as it moves. */
  #bound(outgoing: ClientRequest, url: URL, body = false): void {
    const { connectMs, answerMs, idleMs } = this.#limits
    const end = (what: string, ms: number) => (): void => void outgoing.destroy(new SkimmerError('TIMEOUT', `${url.host} ${what} within ${ms / 1000} s`))
    let timer = setTimeout(end('did not connect', connectMs), connectMs)
    const connected = (): void => {
      clearTimeout(timer)
      if (body) outgoing.setTimeout(idleMs, end('took or sent nothing', idleMs))
      else timer = setTimeout(end('did not answer', answerMs), answerMs)
    }
    outgoing.once('socket', (socket) => {
      if (!socket.connecting) connected()
      else socket.once('encrypted' in socket ? 'secureConnect' : 'connect', connected)
    })
    for (const event of ['response', 'upgrade', 'close']) outgoing.once(event, () => clearTimeout(timer))
  }
}

function answerHead(answer: IncomingMessage, extra: [string, string][]): string {
  const lines = [...endToEnd(answer), ...extra].map(([name, value]) => `${name}: ${value}`)
  return `HTTP/1.1 ${answer.statusCode} ${answer.statusMessage}\r\n${lines.join('\r\n')}\r\n\r\n`
}
