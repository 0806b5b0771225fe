// Requests that wait for blocks or for a restart to be over: bounded in number and time, ended early when their reader dies.
import fs from 'node:fs'
import type { Logger } from 'pino'
import { hasCode } from '../oci/errors.ts'
import type { Report } from './fuse-messages.ts'
import { ERRNO, UNIQUE_RESEND } from './fuse-protocol.ts'
import type { MissingBlocks } from '../peer/shared-resource.ts'

/** Where missing blocks come from. Resolves when all of them can be read; rejects with the reason. */
export interface MissingBlockSource {
  read(resourceId: string, ranges: readonly MissingBlocks[], options: { signal: AbortSignal }): Promise<void>
}

/** A read that ended in EIO: which bytes of what, how long it waited, and why. */
export interface ReadFailure {
  readonly resourceIds: readonly string[]
  readonly offset: number
  readonly length: number
  readonly waitedMs: number
  readonly reason: string
}

export interface ParkedReadsOptions {
  /** Milliseconds until a waiting request ends in EIO. */
  readonly waitMs: number
  /** Requests that may wait; beyond it they end in EIO at once. */
  readonly maxParked: number
  /** Requests that ask the source at the same time; the others queue. */
  readonly maxFetching: number
}

export interface ParkedReadsComponents {
  readonly source: MissingBlockSource
  readonly logger: Logger
  /** Hands a request back to a thread that answers it, with an errno or 0. */
  answer(request: Uint8Array, error: number): void
  onFailure(failure: ReadFailure): void
  onWaited(milliseconds: number): void
}

type Park = Extract<Report, { kind: 'park' }>
interface Parked { park: Park; readonly since: number; readonly abort: AbortController; attempts: number; state: 'restoring' | 'queued' | 'fetching' | 'answering' }

/** Blocks that were brought and are gone again (a full disk) before they were read: try again this often. */
const MAX_ATTEMPTS = 8
const SWEEP_MS = 250

export class ParkedReads {
  readonly #components: ParkedReadsComponents
  readonly #options: ParkedReadsOptions
  readonly #parked = new Map<bigint, Parked>()
  readonly #interrupted = new Set<bigint>()
  readonly #queue: Parked[] = []
  #fetching = 0
  #restored = false
  #sweeper: NodeJS.Timeout | undefined

  constructor(components: ParkedReadsComponents, options: ParkedReadsOptions) {
    this.#components = components
    this.#options = options
  }

  get size(): number {
    return this.#parked.size
  }

  park(park: Park): void {
    const known = this.#parked.get(park.unique)
    if (known !== undefined) {
      known.park = park
      known.attempts++
      if (known.attempts >= MAX_ATTEMPTS) this.#fail(known, 'its blocks were brought but could not be kept; is the disk full?')
      else this.#wait(known)
      return
    }
    const parked: Parked = { park, since: performance.now(), abort: new AbortController(), attempts: 0, state: 'queued' }
    this.#parked.set(park.unique, parked)
    this.#sweeper ??= setInterval(() => this.#sweep(), SWEEP_MS)
    if (this.#parked.size > this.#options.maxParked) this.#fail(parked, `more than ${this.#options.maxParked} reads wait already`)
    else this.#wait(parked)
  }

  /** A request's answer went out. */
  answered(unique: bigint, failure: string | undefined): void {
    const parked = this.#parked.get(unique)
    if (parked === undefined) return
    const waitedMs = performance.now() - parked.since
    this.#components.onWaited(waitedMs)
    if (failure !== undefined) this.#report(parked, failure)
    this.#forget(parked)
  }

  /**
   * The kernel says INTERRUPT once, for any signal. An EINTR would turn a harmless timer signal into a failed read or a SIGBUS, so a
   * request is only let go when its reader is dying; until then we look again now and then.
   */
  interrupt(unique: bigint): void {
    for (const id of [unique, unique ^ UNIQUE_RESEND]) if (this.#parked.has(id)) this.#interrupted.add(id)
    this.#sweep()
  }

  /** Everything from before the restart is published: requests for unknown nodes are answered now. */
  restored(): void {
    this.#restored = true
    for (const parked of this.#parked.values()) if (parked.state === 'restoring') this.#answer(parked, 0)
  }

  /** `leave`: the next daemon gets the waiting requests again from the kernel. Otherwise they end in EIO. */
  stop(leave: boolean): void {
    for (const parked of this.#parked.values()) {
      parked.abort.abort()
      if (!leave && parked.state !== 'answering') this.#fail(parked, 'the daemon stops')
      else this.#forget(parked)
    }
    clearInterval(this.#sweeper)
    this.#sweeper = undefined
  }

  #wait(parked: Parked): void {
    if (parked.park.needs.length === 0) {
      parked.state = 'restoring'
      if (this.#restored) this.#answer(parked, 0)
      return
    }
    parked.state = 'queued'
    this.#queue.push(parked)
    this.#startFetches()
  }

  #startFetches(): void {
    while (this.#fetching < this.#options.maxFetching) {
      const parked = this.#queue.shift()
      if (parked === undefined) return
      if (parked.state === 'queued') void this.#fetch(parked)
    }
  }

  async #fetch(parked: Parked): Promise<void> {
    const { park, abort } = parked
    parked.state = 'fetching'
    this.#fetching++
    try {
      await Promise.all(park.needs.map((need) => this.#components.source.read(need.resourceId, need.ranges, { signal: abort.signal })))
      if (!abort.signal.aborted) this.#answer(parked, 0)
    } catch (error) {
      if (!abort.signal.aborted) this.#fail(parked, hasCode(error, 'INTERNAL') || !(error instanceof Error) ? String(error) : error.message)
    } finally {
      this.#fetching--
      this.#startFetches()
    }
  }

  #answer(parked: Parked, error: number): void {
    parked.state = 'answering'
    this.#components.answer(parked.park.request, error)
  }

  #fail(parked: Parked, reason: string): void {
    this.#report(parked, reason)
    this.#end(parked, ERRNO.EIO)
  }

  #report(parked: Parked, reason: string): void {
    const { needs, offset, length } = parked.park
    this.#components.onFailure({ resourceIds: needs.map((need) => need.resourceId), offset, length, waitedMs: performance.now() - parked.since, reason })
  }

  #end(parked: Parked, error: number): void {
    this.#answer(parked, error)
    parked.abort.abort()
    this.#forget(parked)
  }

  #forget(parked: Parked): void {
    this.#parked.delete(parked.park.unique)
    this.#interrupted.delete(parked.park.unique)
    if (this.#parked.size > 0) return
    clearInterval(this.#sweeper)
    this.#sweeper = undefined
  }

  #sweep(): void {
    for (const unique of this.#interrupted) {
      const parked = this.#parked.get(unique)
      if (parked !== undefined && parked.state !== 'answering' && isDying(parked.park.pid)) this.#end(parked, ERRNO.EINTR)
    }
    const now = performance.now()
    // Maps keep the order of arrival: the first that is young enough ends the look.
    for (const parked of this.#parked.values()) {
      if (now - parked.since < this.#options.waitMs) break
      if (parked.state === 'answering') continue
      const why = parked.state === 'restoring' ? 'the daemon did not finish restoring what it served before' : parked.state === 'queued' ? 'too many other reads wait' : 'no source delivered the blocks'
      this.#fail(parked, `${why} within ${this.#options.waitMs} ms`)
    }
  }
}

/** Whether the thread has SIGKILL pending (the kernel turns every fatal signal but core dumps into one) or is gone. /proc is never ours. */
function isDying(pid: number): boolean {
  // The kernel's own reads, and readers in pid namespaces that we cannot see into.
  if (pid === 0) return false
  try {
    const pending = /^SigPnd:\s*([0-9a-f]+)$/m.exec(fs.readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1]
    return pending !== undefined && (BigInt(`0x${pending}`) & 0x100n) !== 0n
  } catch {
    return true
  }
}
