// Who gets room in the block store: the account and the eviction behind it.
import type { Logger } from 'pino'
import { SkimmerError } from '../oci/errors.ts'
import type { Eviction } from './eviction.ts'
import type { Resource } from './resource.ts'
import type { SpaceKind, StoreSpace } from './store-space.ts'

export class StoreRoom {
  readonly #space: StoreSpace
  readonly #eviction: Eviction
  readonly #logger: Logger
  #soon: Promise<void> | undefined

  constructor(components: { space: StoreSpace; eviction: Eviction; logger: Logger }) {
    this.#space = components.space
    this.#eviction = components.eviction
    this.#logger = components.logger
  }

  /** Takes room, dropping what may go if needed. Undefined when there was room at once, else a promise that rejects with NO_SPACE. */
  take(kind: Exclude<SpaceKind, 'raw'>, bytes: number, options: { limit: number; spare?: Resource }): Promise<void> | undefined {
    if (!this.#space.tryTake(kind, bytes, options.limit)) return this.#make(kind, bytes, options)
    if (this.#space.usedBytes > this.#space.highBytes) this.evictSoon()
    return undefined
  }

  async #make(kind: Exclude<SpaceKind, 'raw'>, bytes: number, options: { limit: number; spare?: Resource }): Promise<void> {
    // Others take what a round frees: a second one is fair, endless ones are not.
    for (let round = 0; round < 3; round++) {
      await this.#eviction.evict(Math.max(0, Math.min(this.#space.lowBytes, options.limit - bytes)), { spare: options.spare })
      if (this.#space.tryTake(kind, bytes, options.limit)) return
    }
    throw new SkimmerError('NO_SPACE', `the block store is full (${this.#space.usedBytes} of ${this.#space.capBytes} bytes, nothing left to drop); raise its cap`)
  }

  /** Room for a raw file, which never costs anyone a pack: a pinned resource's may displace raw files of unpinned ones, that is all. */
  async takeRaw(resource: Resource, bytes: number): Promise<boolean> {
    const limit = this.#space.highBytes
    if (this.#space.tryTake('raw', bytes, limit)) return true
    if (resource.pinned && bytes <= limit) await this.#eviction.evict(limit - bytes, { spare: resource, rawOnly: true })
    return this.#space.tryTake('raw', bytes, limit)
  }

  /** Down to the low watermark, if the high one is passed. */
  async evict(): Promise<void> {
    if (this.#space.usedBytes > this.#space.highBytes) await this.#eviction.evict(this.#space.lowBytes)
  }

  evictSoon(): void {
    this.#soon ??= this.evict()
      .catch((error: unknown) => this.#logger.error({ err: error }, 'making room in the block store failed'))
      .finally(() => {
        this.#soon = undefined
      })
  }

  /** Resolves when no eviction is under way. */
  async settled(): Promise<void> {
    await this.#soon
  }
}
