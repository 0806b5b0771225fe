// The cache's time to live: what nobody read for long goes, what is pinned or in use stays. The byte cap is the block store's own.
import type { Logger } from 'pino'
import type { BlockStore } from '../peer/block-store.ts'

export class CacheKeeper {
  readonly #store: BlockStore
  readonly #logger: Logger
  readonly #ttlMs: number
  readonly #clock: () => number

  /** `ttlMs` 0: nothing ages. */
  constructor(components: { store: BlockStore; logger: Logger; clock?: () => number }, options: { ttlMs: number }) {
    this.#store = components.store
    this.#logger = components.logger
    this.#clock = components.clock ?? Date.now
    this.#ttlMs = options.ttlMs
  }

  /** Returns the ids of what went. */
  async sweep(): Promise<string[]> {
    if (this.#ttlMs === 0) return []
    const oldest = this.#clock() - this.#ttlMs
    const gone: string[] = []
    for (const resource of this.#store.list()) {
      if (resource.lastUse >= oldest || resource.pinned || resource.busy) continue
      try {
        await this.#store.remove(resource.id)
        gone.push(resource.id)
      } catch (error) {
        // Somebody began to read it just now.
        this.#logger.debug({ resource: resource.id, err: error }, 'an old resource stays')
      }
    }
    if (gone.length > 0) this.#logger.info({ resources: gone.length, ttlMs: this.#ttlMs }, 'dropped resources that nobody read for long')
    return gone
  }
}
