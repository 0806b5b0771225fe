// One limit for several processes of a user: each says in a file of a common directory what it needs and claims, and claims what the others leave.
import { randomBytes } from 'node:crypto'
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'
import type { HostRate } from './host-rate.ts'

/** How often everybody looks. A newcomer's claim is on top of the others' for at most this long. */
const TICK_MS = 200
/** Who has said nothing for this long is gone: crashed, stopped, or of another boot. */
const GONE_MS = 3_000
/** Who does not use its part claims this much more than it uses, so that it can grow. */
const HEADROOM = 1.25
/** Nobody claims less than this part of a fair one: it must be able to begin. */
const LEAST_PART = 0.1
const MAX_CLAIMS = 1_000

const claimSchema = z.object({
  /** Milliseconds since 1970. */
  at: z.number(),
  /** Bytes per second for all together, as this process's users named it; null: they named none. */
  limit: z.number().positive().nullable(),
  /** Downloads that run. */
  lanes: z.number().int().min(0).max(1_000_000),
  /** Bytes per second that this process allows itself. */
  claim: z.number().min(0),
})
export type Claim = z.infer<typeof claimSchema>

/**
 * What a process may use, given what the others claim: at least its fair part, by the downloads that run, and beyond that what nobody claims. Who
 * cannot use its part claims a little more than it uses. `limit`: the smallest that anybody names; Infinity: nobody does.
 */
export function claimOf(mine: { limit: number; lanes: number; use: number; hungry: boolean; claim?: number }, others: readonly Claim[]): { limit: number; claim: number } {
  const limit = Math.min(mine.limit, ...others.filter((other) => other.lanes > 0).map((other) => other.limit ?? Infinity))
  if (limit === Infinity || mine.lanes === 0) return { limit, claim: 0 }
  const lanes = others.reduce((sum, other) => sum + other.lanes, mine.lanes)
  const fair = (limit * mine.lanes) / lanes
  const left = limit - others.reduce((sum, other) => sum + other.claim, 0)
  const most = Math.max(fair, left)
  return { limit, claim: mine.hungry ? most : Math.min(most, Math.max(mine.use * HEADROOM, fair * LEAST_PART)) }
}

/**
 * No process leads and nothing needs a lock: whoever dies is forgotten, whoever comes is counted within a tick. The sum may be above the limit for
 * that tick only, which is far below the twentieth of ten seconds that a limit may be off.
 */
export class SharedRate {
  readonly #rate: HostRate
  readonly #directory: string
  readonly #file: string
  readonly #now: () => number
  #timer: NodeJS.Timeout | undefined
  #written = false
  #lastWords = ''

  constructor(components: { rate: HostRate }, options: { directory: string; now?: () => number }) {
    this.#rate = components.rate
    this.#directory = options.directory
    this.#file = join(options.directory, `${process.pid}-${randomBytes(6).toString('hex')}.json`)
    this.#now = options.now ?? Date.now
  }

  start(): void {
    mkdirSync(this.#directory, { recursive: true, mode: 0o700 })
    this.tick()
    this.#timer = setInterval(() => this.tick(), TICK_MS)
    this.#timer.unref()
  }

  stop(): void {
    clearInterval(this.#timer)
    this.#rate.share(Infinity)
    if (this.#written) rmSync(this.#file, { force: true })
    this.#written = false
  }

  /** Looks, decides and tells. On its own every 200 ms; call it when a download begins, so that its first bytes are shared too. */
  tick(): void {
    const others = this.#others()
    const { bytesPerSecond: use, hungry } = this.#rate.use()
    const named = this.#rate.named
    const lanes = this.#rate.lanes
    const { limit, claim } = claimOf({ limit: named, lanes, use, hungry }, others)
    this.#rate.share(limit === Infinity ? Infinity : Math.max(claim, 1))
    if (lanes > 0) this.#tell({ at: this.#now(), limit: named === Infinity ? null : named, lanes, claim })
    else if (this.#written) {
      rmSync(this.#file, { force: true })
      this.#written = false
    }
  }

  #tell(claim: Claim): void {
    const words = JSON.stringify(claim)
    if (words === this.#lastWords && this.#written) return
    this.#lastWords = words
    try {
      writeFileSync(`${this.#file}.new`, words, { mode: 0o600 })
      renameSync(`${this.#file}.new`, this.#file)
      this.#written = true
    } catch {
      // No directory, no room: this process counts for itself alone, at the limit its user named.
      this.#written = false
    }
  }

  #others(): Claim[] {
    let names: string[]
    try {
      names = readdirSync(this.#directory).filter((name) => name.endsWith('.json')).slice(0, MAX_CLAIMS)
    } catch {
      return []
    }
    const now = this.#now()
    const claims: Claim[] = []
    for (const name of names) {
      const file = join(this.#directory, name)
      if (file === this.#file) continue
      try {
        const claim = claimSchema.parse(JSON.parse(readFileSync(file, 'utf8')))
        if (Math.abs(now - claim.at) < GONE_MS) claims.push(claim)
        else rmSync(file, { force: true })
      } catch {
        // Gone meanwhile, or not one of ours.
      }
    }
    return claims
  }
}
