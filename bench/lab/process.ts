// One process the lab started: it is ended by its own pid, and what it said last is there when it fails.
import { spawn, type ChildProcess, type StdioOptions } from 'node:child_process'
import { closeSync, openSync, readFileSync } from 'node:fs'
import { once } from 'node:events'
import { SkimmerError } from '../../oci/errors.ts'

export interface LaunchOptions {
  readonly env?: Record<string, string>
  readonly cwd?: string
  /** Standard output and error go to this file, appended. */
  readonly logFile: string
}

export interface RunResult {
  readonly stdout: string
  readonly stderr: string
  readonly code: number
  /** Milliseconds from the start to the first byte on standard output; -1 when nothing came. */
  readonly firstOutputMs: number
  readonly elapsedMs: number
}

/** More than a node's supervisor allows its daemon (30 s) and the unmounting after it (20 s). */
const STOP_GRACE_MS = 60_000

export class LabProcess {
  readonly child: ChildProcess
  readonly name: string
  readonly #logFile: string

  constructor(name: string, argv: readonly string[], options: LaunchOptions) {
    this.name = name
    this.#logFile = options.logFile
    const log = openSync(options.logFile, 'a')
    const stdio: StdioOptions = ['ignore', log, log]
    // A session of its own: Ctrl-C reaches only the lab, which then takes things down in order.
    this.child = spawn(argv[0], argv.slice(1), { stdio, detached: true, cwd: options.cwd, env: { ...process.env, ...options.env } })
    this.child.on('error', () => {})
    closeSync(log)
  }

  get running(): boolean {
    return this.child.pid !== undefined && this.child.exitCode === null && this.child.signalCode === null
  }

  /** The last lines of what it printed, for error messages. */
  tail(lines = 15): string {
    try {
      return readFileSync(this.#logFile, 'utf8').trimEnd().split('\n').slice(-lines).join('\n')
    } catch {
      return ''
    }
  }

  /** SIGTERM, then SIGKILL after `graceMs`; resolves when it is gone. */
  async stop(graceMs = STOP_GRACE_MS): Promise<void> {
    if (!this.running) return
    const gone = once(this.child, 'exit')
    this.child.kill('SIGTERM')
    const timer = setTimeout(() => this.child.kill('SIGKILL'), graceMs)
    await gone
    clearTimeout(timer)
  }

  /** Waits for a condition while the process lives; fails with its last words when it dies or time is up. */
  async until(what: string, condition: () => Promise<boolean> | boolean, timeoutMs = 30_000): Promise<void> {
    const deadline = Date.now() + timeoutMs
    for (;;) {
      if (await condition()) return
      if (!this.running) throw new SkimmerError('UNAVAILABLE', `${this.name} ended before ${what}:\n${this.tail()}`)
      if (Date.now() > deadline) throw new SkimmerError('TIMEOUT', `${this.name}: ${what} did not happen within ${timeoutMs} ms:\n${this.tail()}`)
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  }
}

/** What is told to stop gets this long to clean up (debootstrap unmounts). */
const KILL_AFTER_MS = 5_000

/** Runs a command to its end. A code other than 0 is an error unless `mayFail`. */
export async function run(
  argv: readonly string[],
  options: { env?: Record<string, string>; cwd?: string; timeoutMs?: number; mayFail?: boolean; onOutput?: (chunk: string) => void; signal?: AbortSignal } = {},
): Promise<RunResult> {
  // An abort that came before would never be heard.
  options.signal?.throwIfAborted()
  const started = performance.now()
  const child = spawn(argv[0], argv.slice(1), { stdio: ['ignore', 'pipe', 'pipe'], cwd: options.cwd, env: { ...process.env, ...options.env }, detached: true })
  let firstOutputMs = -1
  const out: Buffer[] = []
  const err: Buffer[] = []
  child.stdout.on('data', (chunk: Buffer) => {
    if (firstOutputMs < 0) firstOutputMs = performance.now() - started
    out.push(chunk)
    options.onOutput?.(chunk.toString())
  })
  child.stderr.on('data', (chunk: Buffer) => {
    err.push(chunk)
    options.onOutput?.(chunk.toString())
  })
  // Its whole group: what a shell or apt started holds our pipes open, too.
  const end = (name: NodeJS.Signals): void => {
    try {
      process.kill(-child.pid!, name)
    } catch {
      // gone already, or never started
    }
  }
  let patience: NodeJS.Timeout | undefined
  const kill = (): void => {
    end('SIGTERM')
    patience = setTimeout(() => end('SIGKILL'), KILL_AFTER_MS)
  }
  options.signal?.addEventListener('abort', kill, { once: true })
  const timeoutMs = options.timeoutMs ?? 300_000
  let late = false
  const timer = setTimeout(() => {
    late = true
    end('SIGKILL')
  }, timeoutMs)
  try {
    const [code, signal] = await new Promise<[number | null, string | null]>((resolve, reject) => {
      child.once('error', reject)
      child.once('close', (code, signal) => resolve([code, signal]))
    })
    const stdout = Buffer.concat(out).toString()
    const stderr = Buffer.concat(err).toString()
    if (options.signal?.aborted) throw new SkimmerError('ABORTED', `${argv[0]} was interrupted`)
    if (late && !options.mayFail) throw new SkimmerError('TIMEOUT', `${argv.join(' ')} took longer than ${timeoutMs} ms\n${stderr.slice(-2000)}`)
    const exit = code ?? 128
    if (exit !== 0 && !options.mayFail) {
      throw new SkimmerError('UNAVAILABLE', `${argv.join(' ')} ended with ${signal ?? `code ${exit}`}\n${(stderr || stdout).slice(-2000)}`)
    }
    return { stdout, stderr, code: exit, firstOutputMs, elapsedMs: performance.now() - started }
  } finally {
    clearTimeout(timer)
    clearTimeout(patience)
    options.signal?.removeEventListener('abort', kill)
  }
}
