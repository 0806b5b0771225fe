// The forward proxy: what HTTP_PROXY and HTTPS_PROXY point at. Rules say what goes through the swarm, directly, or nowhere.
import { randomBytes } from 'node:crypto'
import { createServer, type IncomingMessage, type Server, type ServerOptions, type ServerResponse } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import type { Logger } from 'pino'
import type { Registry } from 'prom-client'
import { SkimmerError } from '../../oci/errors.ts'
import type { HostsConfig } from '../../oci/registry-hosts.ts'
import { DirectRequests } from './direct-requests.ts'
import { ForwardAccess } from './forward-access.ts'
import { answerError, answerErrorOn } from './forward-answers.ts'
import type { ForwardConfig } from './forward-config.ts'
import { ForwardMetrics, type ForwardOutcome, type Way } from './forward-metrics.ts'
import { FORWARD_LIMITS, type ForwardLimits, HEAD_TIMEOUT_MS, MAX_HEADER_BYTES, type OpenFile, type RegistryHandler } from './forward-options.ts'
import { absoluteUrl, connectAuthority, ForwardRules } from './forward-target.ts'
import { Interception } from './interception.ts'
import { SwarmRequests } from './swarm-requests.ts'
import { ESTABLISHED, firstBytes, openTunnel } from './tunnel.ts'

/** The first byte of a TLS record that greets (RFC 8446 section 5.1). */
const TLS_HANDSHAKE = 0x16

export interface ForwardProxyComponents {
  readonly logger: Logger
  readonly metrics: Registry
  /** Answers blobs of registries; RegistryProxy is one. Left out: blobs are files like others. */
  readonly registry?: RegistryHandler
  /** Opens files through the swarm. Left out: they are fetched directly. */
  readonly files?: OpenFile
  /** How registries are reached: their certificate authorities are trusted for direct requests too. */
  readonly hosts?: HostsConfig
}

export interface ForwardProxyOptions {
  readonly listen: { readonly host: string; readonly port: number }
  /** From forwardConfig(), with `intercept.cert` and `intercept.key` as PEM text. */
  readonly config: ForwardConfig
  /** `name:password` each; none: nobody is asked. */
  readonly users?: readonly string[]
  readonly limits?: Partial<ForwardLimits>
}

export class ForwardProxy {
  readonly server: Server
  readonly #options: ForwardProxyOptions
  readonly #logger: Logger
  readonly #limits: ForwardLimits
  readonly #rules: ForwardRules
  readonly #access: ForwardAccess
  readonly #metrics: ForwardMetrics
  readonly #direct: DirectRequests
  readonly #swarm: SwarmRequests
  readonly #sockets = new Set<Socket>()
  readonly #running = new Set<Promise<unknown>>()
  readonly #name = `skimmer-${randomBytes(4).toString('hex')}`
  #interception: Interception | undefined

  /** Listens when this resolves. INVALID_ARGUMENT: an option is wrong; CONFLICT: the address is taken. */
  static async start(components: ForwardProxyComponents, options: ForwardProxyOptions): Promise<ForwardProxy> {
    const proxy = new ForwardProxy(components, options)
    try {
      await proxy.#start()
    } catch (error) {
      await proxy.stop()
      throw error
    }
    return proxy
  }

  private constructor(components: ForwardProxyComponents, options: ForwardProxyOptions) {
    this.#options = options
    this.#logger = components.logger.child({ room: 'forward-proxy' })
    this.#limits = { ...FORWARD_LIMITS, ...options.limits }
    this.#rules = new ForwardRules(options.config)
    this.#access = new ForwardAccess({ networks: options.config['allow-clients'], users: options.users })
    this.#metrics = new ForwardMetrics(components.metrics)
    this.#direct = new DirectRequests({ hosts: components.hosts, metrics: this.#metrics }, { limits: this.#limits, via: `1.1 ${this.#name}` })
    this.#swarm = new SwarmRequests({ ...components, logger: this.#logger, metrics: this.#metrics }, this.#limits)
    const limits: ServerOptions = {
      maxHeaderSize: MAX_HEADER_BYTES,
      headersTimeout: HEAD_TIMEOUT_MS,
      requestTimeout: 0, // an upload takes what it takes, while it moves
      // curl and others offer h2c in passing; only what they insist on is an upgrade.
      shouldUpgradeCallback: (request) => !/^h2c?$/i.test(request.headers.upgrade ?? ''),
    }
    this.server = createServer(limits)
    this.#serve(this.server, (request) => absoluteUrl(request.url ?? ''))
    this.server.maxConnections = this.#limits.connections
    this.server.on('connection', (socket: Socket) => {
      this.#sockets.add(socket)
      socket.on('error', () => {}) // 'close' says so too
      socket.once('close', () => this.#sockets.delete(socket))
    })
    this.server.on('connect', (request: IncomingMessage, socket: Socket, head: Buffer) => this.#run(() => this.#connect(request, socket, head)))
  }

  /** `127.0.0.1:4002` */
  get address(): string {
    const { address, port, family } = this.server.address() as AddressInfo
    return family === 'IPv6' ? `[${address}]:${port}` : `${address}:${port}`
  }

  async #start(): Promise<void> {
    const { listen, config } = this.#options
    if (config.intercept !== undefined) {
      this.#interception = await Interception.open(config.intercept, { logger: this.#logger, onMade: () => this.#metrics.madeCertificate() })
      this.#serve(this.#interception.server, (request) => this.#interception!.url(request))
    }
    await new Promise<void>((resolve, reject) => {
      this.server.once('error', (cause: NodeJS.ErrnoException) => reject(new SkimmerError(cause.code === 'EADDRINUSE' ? 'CONFLICT' : 'INVALID_ARGUMENT', `the forward proxy cannot listen on ${listen.host}:${listen.port}: ${cause.code}`, { cause })))
      this.server.listen(listen.port, listen.host, resolve)
    })
    this.#logger.info({ address: this.address, rules: config.rules.length, intercepts: config.intercept !== undefined, users: this.#access.asksForUser }, 'the forward proxy listens')
  }

  /** Ends every connection; running answers and tunnels break off. */
  async stop(): Promise<void> {
    const closed = new Promise((resolve) => (this.server.listening ? this.server.close(resolve) : resolve(undefined)))
    this.#direct.stop()
    for (const socket of this.#sockets) socket.destroy()
    await closed
    await Promise.allSettled(this.#running)
  }

  #run(work: () => Promise<unknown>): void {
    const running = work().catch((error: unknown) => this.#logger.error({ err: error }, 'a request could not be answered'))
    this.#running.add(running)
    void running.finally(() => this.#running.delete(running))
  }

  #serve(server: Server, urlOf: (request: IncomingMessage) => URL): void {
    server.timeout = this.#limits.idleMs
    server.keepAliveTimeout = 75_000
    server.on('request', (request, response) => this.#run(() => this.#request(request, response, urlOf)))
    server.on('upgrade', (request: IncomingMessage, socket: Socket, head: Buffer) => this.#run(() => this.#upgrade(request, socket, head, urlOf)))
  }

  /** FORBIDDEN, UNAUTHORIZED, CONFLICT (a loop), or what urlOf throws. */
  #admitted(request: IncomingMessage, urlOf: (request: IncomingMessage) => URL): URL {
    // Requests inside opened TLS were admitted with their CONNECT.
    if (this.#interception?.host(request) === undefined) {
      if (!this.#access.fromHere(request.socket.remoteAddress)) throw new SkimmerError('FORBIDDEN', 'this proxy does not serve your address (allow-clients)')
      if (!this.#access.isUser(request.headers['proxy-authorization'])) throw new SkimmerError('UNAUTHORIZED', 'this proxy asks for a user and a password')
    }
    if (request.headers.via?.includes(this.#name)) throw new SkimmerError('CONFLICT', 'this request came through this proxy before')
    return urlOf(request)
  }

  async #request(request: IncomingMessage, response: ServerResponse, urlOf: (request: IncomingMessage) => URL): Promise<void> {
    const gone = new AbortController()
    response.once('close', () => gone.abort(new SkimmerError('ABORTED', 'the client went away')))
    response.on('error', () => {}) // 'close' says so too
    let way: Way = 'refused'
    let outcome: ForwardOutcome = 'failed'
    try {
      const { url, through } = this.#rules.target(this.#admitted(request, urlOf))
      if (through === 'refuse') throw refused(url.host)
      const intercept = this.#interception?.host(request)
      const swarm = through === 'swarm' ? await this.#swarm.answer(request, response, url, intercept, gone.signal) : undefined
      way = swarm?.way ?? 'direct'
      outcome = swarm?.outcome ?? (await this.#direct.forward(request, response, url, intercept))
    } catch (error) {
      outcome = way === 'refused' ? 'ok' : gone.signal.aborted ? 'gone' : 'failed'
      const known = this.#known(error)
      // What is left of a body must not be taken for the next request.
      if (!request.complete) response.shouldKeepAlive = false
      answerError(response, known)
    } finally {
      this.#metrics.answered(way, outcome)
    }
  }

  async #upgrade(request: IncomingMessage, socket: Socket, head: Buffer, urlOf: (request: IncomingMessage) => URL): Promise<void> {
    socket.setTimeout(0)
    let way: Way = 'refused'
    let outcome: ForwardOutcome = 'ok'
    try {
      const { url, through } = this.#rules.target(this.#admitted(request, urlOf))
      if (through === 'refuse') throw refused(url.host)
      way = 'upgrade'
      outcome = await this.#direct.upgrade(request, socket, head, url, this.#interception?.host(request))
    } catch (error) {
      if (way === 'upgrade') outcome = 'failed'
      answerErrorOn(socket, this.#known(error))
    } finally {
      this.#metrics.answered(way, outcome)
    }
  }

  async #connect(request: IncomingMessage, socket: Socket, head: Buffer): Promise<void> {
    socket.setTimeout(0)
    let established = false
    let way: Way = 'refused'
    let outcome: ForwardOutcome = 'ok'
    try {
      let authority = { host: '', port: 0 }
      this.#admitted(request, ({ url }) => {
        authority = connectAuthority(url ?? '')
        return new URL('https://host/')
      })
      const { host, port } = authority
      if (!this.#rules.mayConnect(port)) throw new SkimmerError('FORBIDDEN', `CONNECT to port ${port} is not allowed (connect-ports)`)
      const intercept = this.#rules.intercepted(host)
      let first = head
      if (intercept !== undefined && this.#interception !== undefined) {
        way = 'intercept'
        established = true
        socket.write(ESTABLISHED)
        first = await firstBytes(socket, head, HEAD_TIMEOUT_MS)
        // Anything but TLS is passed on as any other tunnel.
        if (first[0] === TLS_HANDSHAKE) {
          outcome = await this.#interception.take(socket, first, { host, port, intercept, mayName: (name) => this.#rules.intercepted(name) !== undefined })
          return
        }
      }
      const target = this.#rules.tunnel(host, port)
      if (target.refused) throw refused(host)
      way = 'tunnel'
      this.#metrics.tunnel(1)
      try {
        const ended = await openTunnel(socket, first, { ...target, established }, this.#limits)
        outcome = ended.outcome
        this.#metrics.sent('tunnel', ended.sent)
      } finally {
        this.#metrics.tunnel(-1)
      }
    } catch (error) {
      if (way !== 'refused') outcome = socket.destroyed ? 'gone' : 'failed'
      const known = this.#known(error)
      if (established) socket.destroy()
      else answerErrorOn(socket, known)
    } finally {
      this.#metrics.answered(way, outcome)
    }
  }

  #known(error: unknown): SkimmerError {
    if (error instanceof SkimmerError) {
      this.#logger.debug({ code: error.code, reason: error.message }, 'a request was refused or failed')
      return error
    }
    this.#logger.error({ err: error }, 'a request could not be answered')
    return new SkimmerError('INTERNAL', 'the forward proxy has a bug; its log says more', { cause: error })
  }
}

const refused = (host: string): SkimmerError => new SkimmerError('FORBIDDEN', `a rule of this proxy refuses requests to ${host}`)

