// Finds the running peer of this user and these supernodes, or starts it and waits until it answers.
import { spawn, type ChildProcess } from 'node:child_process'
import { closeSync, openSync, readFileSync, rmSync } from 'node:fs'
import { request } from 'node:http'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { SMALL_PROCESS_ENVIRONMENT, SMALL_PROCESS_FLAGS } from '../command-line/small-process.ts'
import { SkimmerError } from '../oci/errors.ts'
import { PEER_EXIT_TAKEN } from './peer-exit.ts'
import type { PeerPlace } from './peer-place.ts'
import type { PeerProcessOptions } from './peer-process-options.ts'
import type { ReadyAnswer } from './own-peer.ts'

const START_MS = 20_000
const ASK_AGAIN_MS = 15
const START_AGAIN_MS = 1_000
/** Who has the store for longer than an end takes, and does not answer here, answers somewhere else: in another XDG_RUNTIME_DIR. */
const TAKEN_MS = 11_000
const ANSWER_MS = 5_000
const MAX_REASON = 2_000

/** A peer is long-lived, its first user's environment is not its business: tokens may be in it. */
const KEPT = ['PATH', 'HOME', 'LANG', 'TZ', 'TMPDIR', 'XDG_CACHE_HOME', 'XDG_RUNTIME_DIR', 'NODE_COMPILE_CACHE', 'NODE_EXTRA_CA_CERTS', 'SSL_CERT_FILE', 'SSL_CERT_DIR', 'MALLOC_ARENA_MAX']

export type PeerLaunchOptions = Partial<Omit<PeerProcessOptions, keyof PeerPlace | 'supernodes'>> & { readonly supernodes: readonly string[] }

/**
 * The socket answers when this resolves; options count only when no such peer runs yet. Any number of callers may try at once: one process comes of
 * it. UNAVAILABLE: it cannot start (says why) or does not answer in time.
 */
export async function launchPeer(place: PeerPlace, options: PeerLaunchOptions, { signal }: { signal?: AbortSignal } = {}): Promise<ReadyAnswer> {
  const begun = performance.now()
  const until = begun + START_MS
  let child: Starting | undefined
  try {
    for (;;) {
      signal?.throwIfAborted()
      const answer = await askReady(place.socket)
      if (answer !== undefined) return answer
      if (child?.failed !== undefined) throw new SkimmerError('UNAVAILABLE', `dfget's peer cannot start: ${child.failed}`)
      if (performance.now() > until) throw new SkimmerError('UNAVAILABLE', `dfget's peer does not answer on ${place.socket} after ${START_MS / 1000} s: see ${join(place.directory, 'peer.log')}`)
      if (child?.taken === true && performance.now() - begun > TAKEN_MS) throw new SkimmerError('UNAVAILABLE', `another peer has the store in ${place.directory} and does not answer on ${place.socket}: was it started with another XDG_RUNTIME_DIR? It ends when it is not used any more`)
      // When another has the store, that one will answer soon, or end.
      if (child === undefined || (child.taken && performance.now() - child.startedAt > START_AGAIN_MS)) {
        child?.forget()
        child = new Starting(place, options)
      }
      await new Promise((resolve) => setTimeout(resolve, ASK_AGAIN_MS))
    }
  } finally {
    child?.forget()
  }
}

/** A process that was started and has not answered yet. */
class Starting {
  /** Why it ended. */
  failed: string | undefined
  /** Another one has the store: if that one is ending, this must be tried again. */
  taken = false
  readonly startedAt = performance.now()
  readonly #child: ChildProcess
  readonly #words: string

  constructor(place: PeerPlace, options: object) {
    this.#words = join(place.directory, `start-${process.pid}.log`)
    const fd = openSync(this.#words, 'w', 0o600)
    try {
      const environment = Object.fromEntries(KEPT.flatMap((name) => (process.env[name] === undefined ? [] : [[name, process.env[name]]])))
      const program = fileURLToPath(new URL(import.meta.url.endsWith('.ts') ? './peer-process.ts' : './peer-process.js', import.meta.url))
      this.#child = spawn(process.execPath, [...SMALL_PROCESS_FLAGS, program, JSON.stringify({ ...options, ...place })], {
        detached: true,
        cwd: '/',
        stdio: ['ignore', fd, fd],
        env: { ...SMALL_PROCESS_ENVIRONMENT, NODE_COMPILE_CACHE: join(place.directory, '..', 'compile-cache'), ...environment },
      })
    } finally {
      closeSync(fd)
    }
    this.#child.unref()
    this.#child.on('error', (error) => (this.failed = error.message))
    this.#child.on('exit', (code, signal) => {
      if (code === PEER_EXIT_TAKEN) this.taken = true
      else this.failed = this.#reason() || `it ended with ${signal ?? `code ${code}`}`
    })
  }

  forget(): void {
    rmSync(this.#words, { force: true })
  }

  #reason(): string {
    try {
      return readFileSync(this.#words, 'utf8').trim().slice(-MAX_REASON)
    } catch {
      return ''
    }
  }
}

/** Undefined when nobody answers there. */
export function askReady(socket: string): Promise<ReadyAnswer | undefined> {
  return new Promise((resolve) => {
    const outgoing = request({ socketPath: socket, path: '/v1/ready', timeout: ANSWER_MS, agent: false }, (response) => {
      let text = ''
      response.setEncoding('utf8')
      response.on('data', (chunk: string) => {
        text += chunk
        if (text.length > 1_000_000) outgoing.destroy()
      })
      response.on('error', () => resolve(undefined))
      response.on('end', () => resolve(readyAnswer(text)))
    })
    outgoing.on('timeout', () => outgoing.destroy())
    outgoing.on('error', () => resolve(undefined))
    outgoing.end()
  })
}

function readyAnswer(text: string): ReadyAnswer | undefined {
  try {
    const answer = JSON.parse(text) as ReadyAnswer | null
    return answer?.ready === true ? answer : undefined
  } catch {
    return undefined
  }
}
