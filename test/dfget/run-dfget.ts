// The real `dfget` command as it was built, as a process of its own, as a user's shell would run it, in a home of its own.
import { spawn, type ChildProcess } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const CLI = fileURLToPath(new URL('../../dist/dfget/cli.js', import.meta.url))
const CODE = fileURLToPath(new URL('../../node_modules/.cache/dfget-tests', import.meta.url))

export interface DfgetResult {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: Buffer
  readonly stderr: string
}

export interface RunOptions {
  readonly env?: Readonly<Record<string, string>>
  readonly cwd?: string
  readonly stdin?: string
  /** Told when it runs. */
  readonly started?: (child: ChildProcess) => void
}

/** Everything it leaves is below one directory. */
export class Home {
  readonly path = mkdtempSync(join(tmpdir(), 'skimmer-dfget-'))
  readonly work = join(this.path, 'work')
  readonly environment: Readonly<Record<string, string>>

  constructor() {
    const runtime = join(this.path, 'run')
    for (const directory of [this.work, runtime]) mkdirSync(directory, { mode: 0o700 })
    // Compiled code is shared by all tests: it starts in half the time.
    this.environment = { PATH: process.env.PATH ?? '', HOME: this.path, XDG_RUNTIME_DIR: runtime, SKIMMER_SOCKET: join(runtime, 'no-node.sock'), NODE_COMPILE_CACHE: CODE }
  }

  dfget(words: readonly string[], { env, cwd = this.work, stdin, started }: RunOptions = {}): Promise<DfgetResult> {
    return new Promise((resolve, reject) => {
      const child = spawn(process.execPath, [CLI, ...words], { cwd, env: { ...this.environment, ...env }, stdio: ['pipe', 'pipe', 'pipe'] })
      const stdout: Buffer[] = []
      let stderr = ''
      child.stdout.on('data', (chunk: Buffer) => stdout.push(chunk))
      child.stderr.on('data', (chunk) => (stderr += chunk))
      child.stdin.on('error', () => {})
      child.stdin.end(stdin)
      child.on('error', reject)
      child.on('close', (code, signal) => resolve({ code, signal, stdout: Buffer.concat(stdout), stderr }))
      started?.(child)
    })
  }

  /** Its own peers' process ids. */
  peers(): number[] {
    const cache = join(this.path, '.cache', 'skimmer')
    const directories = existsSync(cache) ? readdirSync(cache).filter((name) => name.startsWith('peer-')) : []
    return directories.flatMap((name) => {
      const log = join(cache, name, 'peer.log')
      const lines = existsSync(log) ? readFileSync(log, 'utf8').split('\n').filter((line) => line.includes('"peer started"')) : []
      return lines.slice(-1).map((line) => (JSON.parse(line) as { pid: number }).pid)
    })
  }

  /** Ends its peers, and removes everything. */
  remove(): void {
    for (const pid of this.peers()) {
      try {
        process.kill(pid, 'SIGKILL')
      } catch {
        // It ended by itself.
      }
    }
    rmSync(this.path, { recursive: true, force: true })
  }
}

/** Waits for something to be so, as long as the test may run. */
export async function until<T>(what: () => T | undefined | false): Promise<T> {
  for (;;) {
    const found = what()
    if (found !== undefined && found !== false) return found
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}

/** Bytes that are nowhere twice. */
export function sampleBytes(length: number, seed = 1): Buffer {
  const bytes = Buffer.alloc(length)
  let state = seed | 1
  for (let at = 0; at + 4 <= length; at += 4) {
    state = Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + at
    bytes.writeInt32LE(state | 0, at)
  }
  return bytes
}
