// When resources were last used, saved now and then: after a crash the LRU may be wrong by that much, and no read pays for it.
import type { Logger } from 'pino'
import type { Resource } from './resource.ts'
import type { StoreRecords } from './store-records.ts'

const SAVE_EVERY_MS = 30_000

export class LastUses {
  readonly #records: StoreRecords
  readonly #resources: () => Iterable<Resource>
  readonly #logger: Logger
  readonly #saved = new WeakMap<Resource, number>()
  readonly #timer: NodeJS.Timeout

  constructor(components: { records: StoreRecords; resources: () => Iterable<Resource>; logger: Logger }) {
    this.#records = components.records
    this.#resources = components.resources
    this.#logger = components.logger
    this.#timer = setInterval(() => void this.save(), SAVE_EVERY_MS).unref()
  }

  async save(): Promise<void> {
    const changed = [...this.#resources()].filter((resource) => this.#saved.get(resource) !== resource.lastUse)
    for (const resource of changed) this.#saved.set(resource, resource.lastUse)
    if (changed.length === 0) return
    await this.#records.saveUses(changed.map(({ id, lastUse }) => [id, lastUse] as const))
      .catch((error: unknown) => this.#logger.warn({ err: error }, 'could not save when resources were last used'))
  }

  stop(): Promise<void> {
    clearInterval(this.#timer)
    return this.save()
  }
}
