// Quarantine: a node's claim that a resource is wrong is checked by proving it here; what is confirmed is remembered and told to all.
import type { Logger } from 'pino'
import { z } from 'zod'
import type { BlockStore } from '../peer/block-store.ts'
import type { SharedState, StateSpace } from './shared-state.ts'

/** A resource that was just found right is not proved again for every node that says otherwise, milliseconds. */
const CLAIM_PAUSE_MS = 10 * 60_000
const MAX_CHECKED = 10_000
const recordSchema = z.object({ reason: z.string(), since: z.number() })

export class QuarantineBook {
  /** Called once for each resource that turned out wrong. */
  onConfirmed: ((resource: string, reason: string) => void) | undefined
  readonly #store: BlockStore
  readonly #logger: Logger
  readonly #clock: () => number
  readonly #records: StateSpace<{ reason: string; since: number }>
  readonly #quarantined = new Map<string, string>()
  readonly #checked = new Map<string, number>()
  readonly #checking = new Set<Promise<void>>()

  private constructor(components: { store: BlockStore; state: SharedState; logger: Logger; clock?: () => number }) {
    this.#store = components.store
    this.#logger = components.logger
    this.#clock = components.clock ?? Date.now
    this.#records = components.state.space('quarantine', recordSchema)
  }

  static async open(components: { store: BlockStore; state: SharedState; logger: Logger; clock?: () => number }): Promise<QuarantineBook> {
    const book = new QuarantineBook(components)
    for await (const [resource, { reason }] of book.#records.entries()) book.#quarantined.set(resource, reason)
    // Whatever proof failed here, asked for or not: it is told to all.
    components.store.on('quarantined', (resource, reason) => { book.#confirm(resource, reason) })
    return book
  }

  has(resource: string): boolean {
    return this.#quarantined.has(resource)
  }

  entries(): IterableIterator<[resource: string, reason: string]> {
    return this.#quarantined.entries()
  }

  /** A peer says that a resource failed its proof. Checked in the background; one claim at a time and resource. */
  claim(id: string, reason: string, peer: string): void {
    const now = this.#clock()
    const resource = this.#store.get(id)
    if (this.has(id) || now - (this.#checked.get(id) ?? -Infinity) < CLAIM_PAUSE_MS) return
    if (resource === undefined || !resource.whole) {
      this.#logger.warn({ resource: id, peer, reason }, 'a node says that a resource is wrong; it is not here, so that cannot be checked')
      return
    }
    if (this.#checked.size >= MAX_CHECKED) this.#checked.delete(this.#checked.keys().next().value!)
    this.#checked.set(id, now)
    const check = this.#check(id, reason, peer).finally(() => this.#checking.delete(check))
    this.#checking.add(check)
  }

  /** Let it be made and used again: an operator says so. */
  async lift(resource: string): Promise<boolean> {
    const was = this.#quarantined.delete(resource)
    await this.#store.endQuarantine(resource)
    await this.#records.delete(resource)
    this.#checked.delete(resource)
    return was
  }

  /** When no claim is being checked. */
  async idle(): Promise<void> {
    await Promise.allSettled(this.#checking)
  }

  async #check(id: string, claimed: string, peer: string): Promise<void> {
    const resource = this.#store.get(id)
    if (resource === undefined) return
    resource.pin('proving a claim')
    try {
      await resource.prove({ raw: false })
    } catch (error) {
      this.#logger.warn({ resource: id, err: error }, 'a proof failed')
    } finally {
      resource.unpin('proving a claim')
    }
    if (!resource.quarantined) this.#logger.warn({ resource: id, peer, claimed }, 'a node says that a resource is wrong, but it is right here: the node or its disk may be broken')
  }

  #confirm(resource: string, reason: string): void {
    if (this.has(resource)) return
    this.#quarantined.set(resource, reason)
    this.#records.put(resource, { reason, since: this.#clock() }).catch((error: unknown) => this.#logger.error({ resource, err: error }, 'a quarantine could not be saved'))
    this.onConfirmed?.(resource, reason)
  }
}
