// A forward proxy in front of real servers on loopback, driven by real clients.
import { randomBytes } from 'node:crypto'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import http, { type IncomingMessage, type RequestListener } from 'node:http'
import https from 'node:https'
import net, { type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { run, type RunResult } from '../../bench/lab/process.ts'
import { forwardConfig, type ForwardConfigInput } from '../../registry-proxy/forward/forward-config.ts'
import { ForwardProxy, type ForwardProxyComponents, type ForwardProxyOptions } from '../../registry-proxy/forward/forward-proxy.ts'

export interface Origin {
  readonly port: number
  readonly requests: { method: string; url: string; headers: IncomingMessage['headers']; raw: string[] }[]
}

export const CONTENT = randomBytes(3_000_000)

export class ForwardLab {
  readonly directory = mkdtempSync(join(tmpdir(), 'skimmer-forward-'))
  readonly metrics = new Registry()
  readonly logged: string[] = []
  readonly #ends: (() => Promise<unknown> | void)[] = []
  proxy!: ForwardProxy

  async start(config: ForwardConfigInput = {}, components: Partial<ForwardProxyComponents> = {}, options: Partial<ForwardProxyOptions> = {}): Promise<ForwardProxy> {
    const logger = pino({ level: 'trace' }, { write: (line: string) => void this.logged.push(line) })
    this.proxy = await ForwardProxy.start({ logger, metrics: this.metrics, ...components }, { listen: { host: '127.0.0.1', port: 0 }, config: forwardConfig(config), ...options })
    const { proxy } = this
    this.#ends.push(() => proxy.stop())
    return this.proxy
  }

  get url(): string {
    return `http://${this.proxy.address}`
  }

  /** An authority of the user's own, or a server's certificate, as PEM files made by openssl. */
  certificate(name: string, options: { key?: string[]; authority?: boolean; names?: string } = {}): { cert: string; key: string; certFile: string; keyFile: string } {
    const [certFile, keyFile] = [join(this.directory, `${name}.pem`), join(this.directory, `${name}.key`)]
    const extensions = options.authority ? ['-addext', 'keyUsage=critical,keyCertSign,cRLSign'] : ['-addext', `subjectAltName=${options.names ?? 'DNS:localhost,IP:127.0.0.1'}`, '-addext', 'basicConstraints=critical,CA:FALSE']
    execFileSync('openssl', ['req', '-x509', ...(options.key ?? ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256']), '-nodes', '-keyout', keyFile, '-out', certFile, '-days', '30', '-subj', `/O=Tést/CN=${name}`, '-utf8', ...extensions], { stdio: 'pipe' })
    return { cert: readFileSync(certFile, 'utf8'), key: readFileSync(keyFile, 'utf8'), certFile, keyFile }
  }

  /** A server on loopback; answers CONTENT unless told how. */
  async origin(options: { tls?: { cert: string; key: string }; answer?: RequestListener } = {}): Promise<Origin> {
    const requests: Origin['requests'] = []
    const listener: RequestListener = (request, response) => {
      requests.push({ method: request.method!, url: request.url!, headers: request.headers, raw: request.rawHeaders })
      if (options.answer !== undefined) return options.answer(request, response)
      response.writeHead(200, { 'content-type': 'application/octet-stream', 'content-length': CONTENT.length, 'x-of-the-origin': 'yes' })
      response.end(request.method === 'HEAD' ? undefined : CONTENT)
    }
    const server = options.tls === undefined ? http.createServer(listener) : https.createServer(options.tls, listener)
    return { port: await this.listen(server), requests }
  }

  async listen(server: net.Server): Promise<number> {
    const sockets = new Set<net.Socket>()
    server.on('connection', (socket: net.Socket) => {
      sockets.add(socket)
      socket.on('error', () => {}).once('close', () => sockets.delete(socket))
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    this.#ends.push(() => {
      for (const socket of sockets) socket.destroy()
      return new Promise((resolve) => server.close(resolve))
    })
    return (server.address() as AddressInfo).port
  }

  file(name: string, text: string | Buffer): string {
    writeFileSync(join(this.directory, name), text)
    return join(this.directory, name)
  }

  /** curl through the proxy; the body goes to a file. */
  async curl(url: string, ...more: string[]): Promise<RunResult & { body: Buffer; status: number }> {
    const file = join(this.directory, `body-${randomBytes(4).toString('hex')}`)
    const result = await run(['curl', '-sS', '--max-time', '30', '-x', this.url, '-o', file, '-w', '%{http_code}', ...more, url], { mayFail: true, env: { NO_PROXY: '', no_proxy: '' } })
    let body = Buffer.alloc(0)
    try {
      body = readFileSync(file)
    } catch {
      // Nothing came.
    }
    return { ...result, body, status: Number(result.stdout.slice(-3)) }
  }

  /** Sends bytes as they are, and answers all that comes back until the other side ends. */
  async raw(bytes: string | Buffer, port = (this.proxy.server.address() as AddressInfo).port): Promise<string> {
    return await new Promise((resolve, reject) => {
      const socket = net.connect(port, '127.0.0.1', () => socket.write(bytes))
      const chunks: Buffer[] = []
      socket.on('data', (chunk) => chunks.push(chunk)).once('error', reject).once('close', () => resolve(Buffer.concat(chunks).toString('latin1')))
    })
  }

  async counted(name: string, labels: Record<string, string>): Promise<number> {
    const { values } = (await this.metrics.getSingleMetric(name)!.get()) as { values: { value: number; labels: Record<string, unknown> }[] }
    return values.find((one) => Object.entries(labels).every(([label, value]) => one.labels[label] === value))?.value ?? 0
  }

  async end(): Promise<void> {
    for (const end of this.#ends.splice(0).toReversed()) await end()
    rmSync(this.directory, { recursive: true, force: true })
  }
}

/** Waits for a condition; the test's own time is the bound. */
export async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 5))
}
