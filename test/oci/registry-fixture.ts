// A real docker-registry for tests: own port, own storage, optional basic auth or TLS; started by pid, stopped by pid.
import { spawn, execFileSync, spawnSync } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

const PROGRAM = 'docker-registry'

/** False where Debian's docker-registry is not installed: such tests are skipped. */
export const haveRegistry = spawnSync(PROGRAM, ['--version'], { stdio: 'ignore' }).status === 0

export interface RunningRegistry {
  /** `127.0.0.1:<port>`: what stands before the repository in a reference. */
  readonly host: string
  readonly port: number
  /** `http://…` or `https://…` */
  readonly url: string
  readonly pid: number
  readonly directory: string
  /** What it has logged so far, access log included. */
  log(): Promise<string>
  /** Ends the process and removes its storage. Safe to call twice. */
  stop(): Promise<void>
}

export interface RegistryOptions {
  readonly auth?: { readonly username: string; readonly password: string }
  /** Bearer tokens of this server, signed under this certificate, instead. */
  readonly token?: { readonly realm: string; readonly service: string; readonly issuer: string; readonly rootCertificate: string }
  readonly tls?: { readonly certificate: string; readonly key: string }
  /** Address to listen on; default 127.0.0.1. */
  readonly address?: string
  /** Default: a free one. */
  readonly port?: number
  /** Runs the program through this, e.g. ['ip', 'netns', 'exec', name]. Then wait for it yourself: pass `wait: false`. */
  readonly through?: readonly string[]
  readonly wait?: boolean
}

/** bcrypt by the system's crypt(3), which the registry's htpasswd wants; perl-base is on every Debian. */
const htpasswd = (username: string, password: string): string =>
  `${username}:${execFileSync('perl', ['-e', 'print crypt($ARGV[0], q($2y$05$abcdefghijklmnopqrstuu))', password], { encoding: 'utf8' })}\n`

export async function freePort(address = '127.0.0.1'): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve, reject) => server.once('error', reject).listen(0, address, resolve))
  const { port } = server.address() as { port: number }
  await new Promise((resolve) => server.close(resolve))
  return port
}

export async function startRegistry(options: RegistryOptions = {}): Promise<RunningRegistry> {
  // Between choosing a port and listening on it another process may take it: try again then.
  for (let attempt = 1; ; attempt++) {
    try {
      return await startOnce(options)
    } catch (error) {
      if (attempt === 3 || options.port !== undefined) throw error
    }
  }
}

async function startOnce(options: RegistryOptions): Promise<RunningRegistry> {
  const directory = await mkdtemp(join(tmpdir(), 'skimmer-registry-'))
  const address = options.address ?? '127.0.0.1'
  const port = options.port ?? (await freePort(address))
  const lines = [
    'version: 0.1', 'log: {level: info, accesslog: {disabled: false}}',
    'storage:', `  filesystem: {rootdirectory: ${directory}/storage}`, '  delete: {enabled: true}', '  maintenance: {uploadpurging: {enabled: false}}',
    'http:', `  addr: ${address}:${port}`, '  secret: for-tests-only',
  ]
  if (options.tls !== undefined) lines.push('  tls:', `    certificate: ${options.tls.certificate}`, `    key: ${options.tls.key}`)
  if (options.auth !== undefined) {
    await writeFile(join(directory, 'htpasswd'), htpasswd(options.auth.username, options.auth.password))
    lines.push('auth:', `  htpasswd: {realm: skimmer-test, path: ${directory}/htpasswd}`)
  }
  if (options.token !== undefined) {
    const { realm, service, issuer, rootCertificate } = options.token
    lines.push('auth:', `  token: {realm: "${realm}", service: "${service}", issuer: "${issuer}", rootcertbundle: ${rootCertificate}}`)
  }
  await writeFile(join(directory, 'config.yml'), `${lines.join('\n')}\n`)

  const command = [...(options.through ?? []), PROGRAM, 'serve', join(directory, 'config.yml')]
  const child = spawn('sh', ['-c', 'log=$1; shift; exec "$@" >"$log" 2>&1', 'sh', join(directory, 'log'), ...command], { stdio: 'ignore' })
  const scheme = options.tls === undefined ? 'http' : 'https'
  const log = (): Promise<string> => readFile(join(directory, 'log'), 'utf8').catch(() => '')
  let stopped: Promise<void> | undefined
  const stop = (): Promise<void> => (stopped ??= end(child).then(() => rm(directory, { recursive: true, force: true })))
  const registry: RunningRegistry = { host: `${address}:${port}`, port, url: `${scheme}://${address}:${port}`, pid: child.pid!, directory, log, stop }
  if (options.wait === false) return registry
  for (let tries = 0; tries < 400; tries++) {
    // Its own log says whether it is this process that listens, and not another that took the port.
    if ((await log()).includes('listening on')) return registry
    if (child.exitCode !== null) break
    await sleep(25)
  }
  const said = await log()
  await stop()
  throw new Error(`docker-registry did not start on ${address}:${port}: ${said.slice(-500)}`)
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const gone = new Promise((resolve) => child.once('exit', resolve))
  child.kill('SIGKILL')
  await gone
}
