// TLS that is opened: towards the client with a certificate of the user's own authority, so that requests can be seen and ruled one by one.
import { createServer, type IncomingMessage, type Server } from 'node:http'
import { isIP, type Socket } from 'node:net'
import { TLSSocket } from 'node:tls'
import { callbackify } from 'node:util'
import type { Logger } from 'pino'
import { SkimmerError } from '../../oci/errors.ts'
import type { ForwardConfig, InterceptHost } from './forward-config.ts'
import type { ForwardOutcome } from './forward-metrics.ts'
import { HEAD_TIMEOUT_MS, MAX_HEADER_BYTES } from './forward-options.ts'
import { MAX_URL_LENGTH } from './forward-target.ts'
import { LeafCertificates } from './leaf-certificates.ts'

interface Opened {
  readonly host: string
  readonly port: number
  readonly intercept: InterceptHost
}

export class Interception {
  /** Requests inside opened TLS come to this server; it listens nowhere. */
  readonly server: Server
  readonly #certificates: LeafCertificates
  readonly #logger: Logger
  readonly #opened = new WeakMap<Socket, Opened>()

  /** INVALID_ARGUMENT: certificate and key are not an authority's. */
  static async open(config: NonNullable<ForwardConfig['intercept']>, options: { logger: Logger; onMade?: () => void }): Promise<Interception> {
    return new Interception(await LeafCertificates.open(config, options), options.logger)
  }

  private constructor(certificates: LeafCertificates, logger: Logger) {
    this.#certificates = certificates
    this.#logger = logger
    this.server = createServer({ maxHeaderSize: MAX_HEADER_BYTES, headersTimeout: HEAD_TIMEOUT_MS, requestTimeout: 0, shouldUpgradeCallback: (request) => !/^h2c?$/i.test(request.headers.upgrade ?? '') })
  }

  /** Greets in TLS, and hands the connection to `server`. Resolves when it is greeted or failed. `mayName`: hosts that certificates are made for. */
  async take(socket: Socket, head: Buffer, opened: Opened & { mayName: (name: string) => boolean }): Promise<ForwardOutcome> {
    const { host, mayName } = opened
    // For clients that name no host; and it says at once when none can be made.
    const secureContext = await this.#certificates.context(host)
    if (head.length > 0) socket.unshift(head)
    const secure = new TLSSocket(socket, {
      isServer: true,
      secureContext,
      ALPNProtocols: ['http/1.1'],
      SNICallback: callbackify(async (name: string) => {
        const wanted = name.toLowerCase()
        if (wanted === host || isIP(wanted) !== 0) return secureContext
        if (!mayName(wanted)) throw new SkimmerError('FORBIDDEN', 'the client greets another host than it asked for, one whose TLS is not opened')
        return await this.#certificates.context(wanted)
      }),
    })
    return await new Promise<ForwardOutcome>((resolve) => {
      const timer = setTimeout(() => secure.destroy(), HEAD_TIMEOUT_MS)
      let greeted = false
      secure.on('error', (error) => {
        // Mostly a client that does not trust the authority.
        if (!greeted) this.#logger.info({ host, reason: error.message }, 'a client did not accept the certificate of an opened connection')
      })
      secure.once('secure', () => {
        greeted = true
        clearTimeout(timer)
        this.#opened.set(secure, opened)
        this.server.emit('connection', secure)
        resolve('ok')
      })
      secure.once('close', () => {
        clearTimeout(timer)
        socket.destroy()
        resolve(greeted ? 'ok' : 'failed')
      })
    })
  }

  /** The interception's own settings for the host of a request; undefined: the request did not come through opened TLS. */
  host(request: IncomingMessage): InterceptHost | undefined {
    return this.#opened.get(request.socket)?.intercept
  }

  /** Of a request inside opened TLS: it goes where the CONNECT said, whatever `Host` says. INVALID_ARGUMENT, LIMIT_EXCEEDED. */
  url(request: IncomingMessage): URL {
    const opened = this.#opened.get(request.socket)
    const path = request.url ?? ''
    if (path.length > MAX_URL_LENGTH) throw new SkimmerError('LIMIT_EXCEEDED', `the URL has ${path.length} characters; at most ${MAX_URL_LENGTH} are passed on`)
    const url = opened !== undefined && path.startsWith('/') ? URL.parse(`https://${opened.host}:${opened.port}${path}`) : null
    if (url === null) throw new SkimmerError('INVALID_ARGUMENT', 'the request names no path')
    return url
  }
}
