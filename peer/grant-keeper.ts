// Keeps this node's grants: takes them from supernodes' answers, renews them in time, remembers them over a restart.
import type { Logger } from 'pino'
import type { BlockStore } from './block-store.ts'
import type { GrantVerifier } from './grants.ts'
import { GrantBook } from './grants.ts'
import type { PeerPool } from './peer-pool.ts'
import type { Supernodes } from './supernodes.ts'

const RENEW_EVERY_MS = 30_000
/** Grants that end within this are renewed, milliseconds. */
const RENEW_AHEAD_MS = 5 * 60_000
/** A resource whose grant was refused is asked about so often at most, milliseconds. */
const REFUSED_EVERY_MS = 2_000
const SAVE_AFTER_MS = 1_000
/** In one `grant.renew`. */
const BATCH = 1_000

export class GrantKeeper {
  readonly book = new GrantBook()
  readonly #store: BlockStore
  readonly #verifier: GrantVerifier
  readonly #logger: Logger
  readonly #state
  #supernodes: Supernodes | undefined
  #pool: PeerPool | undefined
  readonly #refused = new Map<string, number>()
  #renewing: NodeJS.Timeout | undefined
  #saving: NodeJS.Timeout | undefined
  #timer: NodeJS.Timeout | undefined

  constructor(components: { store: BlockStore; verifier: GrantVerifier; logger: Logger }) {
    this.#store = components.store
    this.#verifier = components.verifier
    this.#logger = components.logger
    this.#state = components.store.sublevel<unknown>('peer', { valueEncoding: 'json' })
  }

  /** What was known before the last stop: so that peers serve each other although every supernode is gone. */
  async start(components: { supernodes: Supernodes; pool: PeerPool }): Promise<void> {
    this.#supernodes = components.supernodes
    this.#pool = components.pool
    const known = await this.#read()
    for (const key of known.keys) this.#quietly(() => this.#verifier.trust(key))
    for (const token of known.tokens) this.#quietly(() => this.book.add(token))
    for (const [id, addresses] of Object.entries(known.addresses)) this.#pool.learn(id, addresses)
    this.#timer = setInterval(() => this.#renewExpiring(), RENEW_EVERY_MS)
    this.#timer.unref()
  }

  async stop(): Promise<void> {
    clearInterval(this.#timer)
    clearTimeout(this.#renewing)
    clearTimeout(this.#saving)
    await this.#save()
  }

  trust(publicKey: string): void {
    this.#verifier.trust(publicKey)
    this.#saveSoon()
  }

  take(token: string): void {
    if (token === '') return
    const grant = this.book.add(token)
    for (const peer of this.#pool?.connected() ?? []) for (const resource of grant.resources) peer.renewInterest(resource)
    this.#saveSoon()
  }

  /** A peer refused to serve a resource for want of a valid grant: get a new one soon. */
  refused(resource: string): void {
    const now = Date.now()
    if ((this.#refused.get(resource) ?? 0) > now - REFUSED_EVERY_MS) return
    this.#refused.set(resource, now)
    this.#renewing ??= setTimeout(() => {
      this.#renewing = undefined
      const since = Date.now() - REFUSED_EVERY_MS
      const wanted = [...this.#refused].filter(([, at]) => at >= since).map(([id]) => id)
      if (this.#refused.size > 10_000) this.#refused.clear()
      void this.renew(wanted)
    }, 50)
  }

  /** Ask for grants for these; failures are logged, the old grants stay. */
  async renew(resources: readonly string[]): Promise<void> {
    for (let at = 0; at < resources.length; at += BATCH) {
      try {
        await this.#supernodes?.call('grant.renew', { resources: resources.slice(at, at + BATCH) })
      } catch (error) {
        this.#logger.debug({ err: error }, 'grants could not be renewed')
      }
    }
  }

  #renewExpiring(): void {
    const expiring = this.book.expiringBefore(Date.now() + RENEW_AHEAD_MS)
    const used: string[] = []
    for (const id of expiring) {
      if (this.#store.get(id) === undefined) this.book.forget(id)
      else used.push(id)
    }
    if (used.length > 0) void this.renew(used)
  }

  #saveSoon(): void {
    this.#saving ??= setTimeout(() => {
      this.#saving = undefined
      void this.#save()
    }, SAVE_AFTER_MS)
    this.#saving.unref()
  }

  async #save(): Promise<void> {
    try {
      await this.#state.put('known', { keys: this.#verifier.trusted, tokens: this.book.tokens(), addresses: this.#pool?.addresses() ?? {} })
    } catch (error) {
      this.#logger.warn({ err: error }, 'grants could not be saved; after a restart they are asked for again')
    }
  }

  async #read(): Promise<{ keys: string[]; tokens: string[]; addresses: Record<string, string[]> }> {
    try {
      const known = await this.#state.get('known') as { keys: string[]; tokens: string[]; addresses: Record<string, string[]> } | undefined
      return known ?? { keys: [], tokens: [], addresses: {} }
    } catch (error) {
      this.#logger.warn({ err: error }, 'saved grants could not be read; they are asked for again')
      return { keys: [], tokens: [], addresses: {} }
    }
  }

  #quietly(step: () => void): void {
    try {
      step()
    } catch (error) {
      this.#logger.debug({ err: error }, 'a saved grant or key is of no use any more')
    }
  }
}
