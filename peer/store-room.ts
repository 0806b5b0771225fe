// Who gets room in the block store: the account and the eviction behind it.
import type { Logger } from 'pino'
import { SkimmerError } from '../oci/errors.ts'
import type { DiskReserve } from './disk-reserve.ts'
import type { Eviction } from './eviction.ts'
import type { Resource } from './resource.ts'
import type { SpaceKind, StoreSpace } from './store-space.ts'

export class StoreRoom {
  readonly #space: StoreSpace
  readonly #eviction: Eviction
  readonly #disk: DiskReserve
  readonly #logger: Logger
  #soon: Promise<void> | undefined

  constructor(components: { space: StoreSpace; eviction: Eviction; disk: DiskReserve; logger: Logger }) {
    this.#space = components.space
    this.#eviction = components.eviction
    this.#disk = components.disk
    this.#logger = components.logger
  }

  /** Takes room, dropping what may go if needed. Undefined when there was room at once, else a promise that rejects with NO_SPACE. */
  take(kind: Exclude<SpaceKind, 'raw'>, bytes: number, options: { limit: number; spare?: Resource }): Promise<void> | undefined {
    if (this.#disk.shortfall(bytes) > 0 || !this.#space.tryTake(kind, bytes, options.limit)) return this.#make(kind, bytes, options)
    if (this.#space.usedBytes > this.#space.highBytes) this.evictSoon()
    return undefined
  }

  async #make(kind: Exclude<SpaceKind, 'raw'>, bytes: number, options: { limit: number; spare?: Resource }): Promise<void> {
    // Others take what a round frees: a second one is fair, endless ones are not.
    for (let round = 0; round < 3; round++) {
      const { usedBytes, lowBytes } = this.#space
      const missing = this.#disk.shortfall(bytes, { now: true })
      // Whatever is in the way: the cap wants its watermark, the disk as much again as it lacks.
      const target = missing > 0 ? usedBytes - 2 * missing : usedBytes
      await this.#eviction.evict(Math.max(0, usedBytes + bytes > options.limit ? Math.min(target, lowBytes, options.limit - bytes) : target), { spare: options.spare })
      if (this.#disk.shortfall(bytes, { now: true }) === 0 && this.#space.tryTake(kind, bytes, options.limit)) return
    }
    if (this.#disk.shortfall(bytes) > 0) throw new SkimmerError('NO_SPACE', 'the disk of the block store is nearly full and nothing is left to drop; free space on it')
    throw new SkimmerError('NO_SPACE', `the block store is full (${this.#space.usedBytes} of ${this.#space.capBytes} bytes, nothing left to drop); raise its cap`)
  }

  /** Room for a raw file, which never costs anyone a pack: a pinned resource's may displace raw files of unpinned ones, that is all. */
  async takeRaw(resource: Resource, bytes: number): Promise<boolean> {
    const limit = this.#space.highBytes
    if (this.#disk.shortfall(bytes, { now: true }) > 0) return false
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
