// A real nginx for tests: own directory, own ephemeral port, started by pid, stopped by pid.
import { spawn, spawnSync } from 'node:child_process'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { freePort } from '../oci/registry-fixture.ts'

const PROGRAM = '/usr/sbin/nginx'

/** False where Debian's nginx is not installed: such tests are skipped. */
export const haveNginx = spawnSync(PROGRAM, ['-v'], { stdio: 'ignore' }).status === 0

export interface NginxRequest {
  readonly method: string
  /** Path and query as they were asked. */
  readonly url: string
  readonly status: number
  /** Body bytes that nginx sent. */
  readonly bytes: number
  /** The Range header, or ''. */
  readonly range: string
  readonly ifRange: string
  readonly ifNoneMatch: string
}

export interface RunningNginx {
  /** `127.0.0.1:<port>` */
  readonly host: string
  readonly port: number
  /** `http://127.0.0.1:<port>` or `https://…` */
  readonly url: string
  readonly pid: number
  /** What is served: write files here. */
  readonly root: string
  /**
   * Requests that were answered so far, in the order of their ends. nginx logs a request a moment after its last byte: with
   * `where`, waits (at most 5 s) until `count` (default 1) such requests are logged, and gives only those.
   */
  requests(where?: (request: NginxRequest) => boolean, count?: number): Promise<NginxRequest[]>
  /** Ends the process and removes its directory, `root` too unless it was given. Safe to call twice. */
  stop(): Promise<void>
  /** Ends the process only, at once; connections break. */
  kill(): Promise<void>
}

export interface NginxOptions {
  /** More lines for `location /`, e.g. `autoindex on;`, `limit_rate 1m;`, `etag off;`, `auth_basic …;`. */
  readonly location?: string
  /** More lines for the `server` block, e.g. other locations. */
  readonly server?: string
  /** More lines for the `http` block. */
  readonly http?: string
  /** PEM files: TLS then. */
  readonly tls?: { readonly certificate: string; readonly key: string }
  /** Address to listen on; default 127.0.0.1. */
  readonly address?: string
  /** Default: a free one. Give the old one to start a server again. */
  readonly port?: number
  /** Directory to serve; default: one of its own. */
  readonly root?: string
  readonly workers?: number
  /** Runs nginx through this, e.g. ['ip', 'netns', 'exec', name]. */
  readonly through?: readonly string[]
}

export async function startNginx(options: NginxOptions = {}): Promise<RunningNginx> {
  // Between choosing a port and listening on it another process may take it: try again then.
  for (let attempt = 1; ; attempt++) {
    try {
      return await startOnce(options)
    } catch (error) {
      if (attempt === 3 || options.port !== undefined) throw error
    }
  }
}

async function startOnce(options: NginxOptions): Promise<RunningNginx> {
  const directory = await mkdtemp(join(tmpdir(), 'skimmer-nginx-'))
  const root = options.root ?? join(directory, 'root')
  await mkdir(root, { recursive: true })
  await mkdir(join(directory, 'temp'))
  const address = options.address ?? '127.0.0.1'
  const port = options.port ?? (await freePort(address))
  const { tls } = options
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((kind) => `  ${kind}_temp_path ${directory}/temp/${kind};`)
  await writeFile(join(directory, 'nginx.conf'), [
    'daemon off;', 'user root;', `worker_processes ${options.workers ?? 1};`, `pid ${directory}/pid;`, `error_log ${directory}/error.log notice;`,
    'events { worker_connections 1024; }',
    'http {', '  include /etc/nginx/mime.types;', '  default_type application/octet-stream;', '  sendfile on;', '  tcp_nopush on;', ...temporary,
    `  log_format skimmer escape=json '{"method":"$request_method","url":"$request_uri","status":$status,"bytes":$body_bytes_sent,"range":"$http_range","ifRange":"$http_if_range","ifNoneMatch":"$http_if_none_match"}';`,
    `  access_log ${directory}/access.log skimmer;`,
    options.http ?? '',
    '  server {', `    listen ${address}:${port}${tls === undefined ? '' : ' ssl'};`, `    root ${root};`,
    tls === undefined ? '' : `    ssl_certificate ${tls.certificate}; ssl_certificate_key ${tls.key};`,
    options.server ?? '', '    location / {', options.location ?? '', '    }', '  }', '}', '',
  ].join('\n'))
  const command = [...(options.through ?? []), PROGRAM, '-p', directory, '-c', join(directory, 'nginx.conf'), '-e', join(directory, 'error.log')]
  const child = spawn(command[0], command.slice(1), { stdio: 'ignore' })
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()).once('error', () => resolve()))
  // SIGTERM ends the workers too; a master killed outright would leave them.
  const kill = async (): Promise<void> => {
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGTERM')
    await exited
  }
  let stopped: Promise<void> | undefined
  const stop = (): Promise<void> => (stopped ??= kill().then(() => rm(directory, { recursive: true, force: true })))
  const logged = async (): Promise<NginxRequest[]> =>
    (await readFile(join(directory, 'access.log'), 'utf8').catch(() => '')).split('\n').slice(0, -1).map((line) => JSON.parse(line) as NginxRequest)
  const requests: RunningNginx['requests'] = async (where, count = 1) => {
    if (where === undefined) return await logged()
    for (let tries = 0; ; tries++) {
      const found = (await logged()).filter(where)
      if (found.length >= count || tries === 200) return found
      await sleep(25)
    }
  }
  for (let tries = 0; tries < 400; tries++) {
    // Written by the worker that listens.
    if (/start worker process [0-9]/.test(await readFile(join(directory, 'error.log'), 'utf8').catch(() => ''))) {
      return { host: `${address}:${port}`, port, url: `${tls === undefined ? 'http' : 'https'}://${address}:${port}`, pid: child.pid!, root, requests, stop, kill }
    }
    if (child.exitCode !== null) break
    await sleep(25)
  }
  const said = await readFile(join(directory, 'error.log'), 'utf8').catch(() => '')
  await stop()
  throw new Error(`nginx did not start on ${address}:${port}: ${said.slice(-500)}`)
}
