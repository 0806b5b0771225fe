// Who may read what of which registry: what the registry itself answered to just these credentials, remembered for minutes, and longer while it is down.
import { createHmac, randomBytes } from 'node:crypto'
import { LRUCache } from 'lru-cache'
import type { Logger } from 'pino'
import type { KeySpace } from '../peer/store-records.ts'
import { ANYONE } from './caller.ts'
import type { Caller } from './caller.ts'
import { DEFAULT_ACCESS_OFFLINE_MS, DEFAULT_ACCESS_TTL_MS } from './proxy-options.ts'
import type { Upstream } from './upstream-choice.ts'

export interface AccessFact {
  /** Milliseconds since 1970. */
  readonly seen: number
  readonly size?: number
}

/** A fact, and when it was last written down. */
interface KnownFact extends AccessFact { readonly written: number }

const MAX_FACTS = 100_000
/** A fact that is seen again is written down again at most so often. */
const WRITE_EVERY_MS = 60_000

/**
 * Two facts make a yes: the registry served this caller something of this repository (rights are by repository), and the
 * repository holds this digest (whoever asked). So a digest of another repository is not given away, whatever is cached here.
 * Callers are keyed hashes: nothing that is written down can be turned back into credentials.
 */
export class ClientAccess {
  readonly #facts: LRUCache<string, KnownFact>
  readonly #space: KeySpace<AccessFact>
  readonly #logger: Logger
  readonly #now: () => number
  readonly #secret: Buffer
  readonly #ttlMs: number
  readonly #offlineMs: number

  constructor(components: { space: KeySpace<AccessFact>; logger: Logger; clock?: () => number }, options: { secret?: Buffer; accessTtlMs?: number; accessOfflineMs?: number } = {}) {
    this.#space = components.space
    this.#logger = components.logger
    this.#now = components.clock ?? Date.now
    this.#secret = options.secret ?? randomBytes(32)
    this.#ttlMs = options.accessTtlMs ?? DEFAULT_ACCESS_TTL_MS
    this.#offlineMs = Math.max(this.#ttlMs, options.accessOfflineMs ?? DEFAULT_ACCESS_OFFLINE_MS)
    this.#facts = new LRUCache({ max: MAX_FACTS, dispose: (_, key, reason) => { if (reason === 'evict') this.#write(this.#space.del(key)) } })
  }

  /** Reads what was remembered before, and forgets what is too old to count. */
  async open(): Promise<void> {
    const oldest = this.#now() - this.#offlineMs
    for await (const [key, fact] of this.#space.iterator()) {
      if (typeof fact?.seen === 'number' && fact.seen >= oldest && fact.seen <= this.#now()) this.#facts.set(key, { ...fact, written: fact.seen })
      else this.#write(this.#space.del(key))
    }
  }

  /** The registry has just served this caller something of the repository: `digest`, if it says which. */
  granted(caller: Caller, upstream: Upstream, digest?: string, size?: number): void {
    this.#remember(this.#readerKey(caller, upstream), {})
    if (digest !== undefined) this.#remember(holdsKey(upstream, digest), size === undefined ? {} : { size })
  }

  /** The registry has just refused this caller. */
  refused(caller: Caller, upstream: Upstream): void {
    this.#forget(this.#readerKey(caller, upstream))
  }

  /** The registry has just said that the repository does not hold this. */
  missing(upstream: Upstream, digest: string): void {
    this.#forget(holdsKey(upstream, digest))
  }

  mayRead(caller: Caller, upstream: Upstream, digest: string): boolean {
    return this.#age(this.#readerKey(caller, upstream)) < this.#ttlMs && this.holds(upstream, digest)
  }

  /** For when the registry cannot be asked: what it served this caller before, or would have served anyone. */
  mayReadOffline(caller: Caller, upstream: Upstream, digest: string): boolean {
    const readable = [caller, ANYONE].some((reader) => this.#age(this.#readerKey(reader, upstream)) < this.#offlineMs)
    return readable && this.holds(upstream, digest)
  }

  /** The repository showed that it holds this. */
  holds(upstream: Upstream, digest: string): boolean {
    return this.#age(holdsKey(upstream, digest)) <= this.#offlineMs
  }

  /** Bytes, when the registry has said so. */
  sizeOf(upstream: Upstream, digest: string): number | undefined {
    return this.#facts.get(holdsKey(upstream, digest))?.size
  }

  #readerKey(caller: Caller, upstream: Upstream): string {
    return `r ${createHmac('sha256', this.#secret).update(JSON.stringify([caller.identity, upstream.registry, upstream.repository])).digest('hex')}`
  }

  #age(key: string): number {
    const fact = this.#facts.get(key)
    return fact === undefined ? Number.POSITIVE_INFINITY : this.#now() - fact.seen
  }

  #remember(key: string, what: { size?: number }): void {
    const known = this.#facts.get(key)
    const fact: AccessFact = { ...(known?.size !== undefined && { size: known.size }), ...what, seen: this.#now() }
    const write = known === undefined || fact.seen - known.written > WRITE_EVERY_MS || fact.size !== known.size
    this.#facts.set(key, { ...fact, written: write ? fact.seen : known.written })
    if (write) this.#write(this.#space.put(key, fact))
  }

  #forget(key: string): void {
    if (this.#facts.delete(key)) this.#write(this.#space.del(key))
  }

  #write(writing: Promise<void>): void {
    writing.catch((error: unknown) => this.#logger.debug({ err: error }, 'what a registry answered to a client could not be written down'))
  }
}

const holdsKey = (upstream: Upstream, digest: string): string => `h ${upstream.registry}/${upstream.repository}@${digest}`
