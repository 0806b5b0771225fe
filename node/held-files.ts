// Files that a supernode wants held here: brought whole ahead of time, then kept while there is room.
import type { Logger } from 'pino'
import { hasCode } from '../oci/errors.ts'
import type { Downloads } from '../peer/downloads.ts'

/** A supernode that was lost in the middle is asked so often again. */
const TRIES = 3
/** At the same time; a push of a thousand files is a queue, not a storm. */
const PARALLEL = 4

export class HeldFiles {
  readonly #downloads: Downloads
  readonly #logger: Logger
  readonly #wanted = new Map<string, string>()
  #running = 0

  constructor(components: { downloads: Downloads; logger: Logger }) {
    this.#downloads = components.downloads
    this.#logger = components.logger
  }

  /** Its resource is enough: the supernode has granted it to this node. `name` is for people. */
  hold(resource: string, name: string): void {
    this.#wanted.set(resource, name)
    this.#next()
  }

  #next(): void {
    const [first] = this.#wanted
    if (first === undefined || this.#running >= PARALLEL) return
    const [resource, name] = first
    this.#wanted.delete(resource)
    this.#running++
    void this.#bring(resource, name)
      .catch((error: unknown) => this.#logger.warn({ resource, name, err: error }, 'a file that a supernode wants held here cannot be'))
      .finally(() => {
        this.#running--
        this.#next()
      })
    this.#next()
  }

  async #bring(resource: string, name: string): Promise<void> {
    for (let left = TRIES; ; left--) {
      try {
        const download = await this.#downloads.open({ key: `held:${resource}`, name, ask: { operation: 'file.open', request: { resource } } })
        try {
          await download.whole
        } finally {
          download.release()
        }
        return
      } catch (error) {
        if (left <= 1 || !hasCode(error, 'UNAVAILABLE', 'TIMEOUT')) throw error
      }
    }
  }
}
