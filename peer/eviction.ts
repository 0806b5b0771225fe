// What goes when space is short, and in which order.
import type { Logger } from 'pino'
import type { ObjectStore } from './object-store.ts'
import type { Resource } from './resource.ts'
import type { StoreMetrics } from './store-metrics.ts'
import type { StoreSpace } from './store-space.ts'

/** After a round that freed too little, rounds are pointless until something becomes droppable; look again after this time anyway. */
const EXHAUSTED_MS = 1000

interface Candidate { readonly kind: 'raw' | 'packed' | 'objects'; readonly lastUse: number; drop(): number | Promise<number> }

/**
 * The order, each step least recently used first:
 * 1. raw files of resources that nobody has pinned: they can be made again here, without the network;
 * 2. quarantined resources nobody has pinned;
 * 3. resources nobody has pinned, and objects that describe no resource here;
 * 4. raw files of pinned resources: running containers then read from the pack, slower but complete. This comes after 3 because a full store
 *    is the normal state of a node, and what runs now matters more than what ran last week.
 * Packs of pinned resources never go.
 */
export class Eviction {
  readonly #space: StoreSpace
  readonly #resources: () => Iterable<Resource>
  readonly #objects: ObjectStore
  readonly #remove: (resource: Resource) => Promise<number>
  readonly #logger: Logger
  readonly #metrics: StoreMetrics
  #running: Promise<void> | undefined
  #exhaustedUntil = 0

  constructor(components: { space: StoreSpace; resources: () => Iterable<Resource>; objects: ObjectStore; remove: (resource: Resource) => Promise<number>; logger: Logger; metrics: StoreMetrics }) {
    this.#space = components.space
    this.#resources = components.resources
    this.#objects = components.objects
    this.#remove = components.remove
    this.#logger = components.logger
    this.#metrics = components.metrics
  }

  /** Something became droppable: the next round is not pointless. */
  droppable(): void {
    this.#exhaustedUntil = 0
  }

  /** Drops until at most `target` bytes are used, or nothing is left to drop. `spare` stays; `rawOnly` stops after step 1. One round at a time. */
  async evict(target: number, options: { spare?: Resource; rawOnly?: boolean } = {}): Promise<void> {
    while (this.#running !== undefined) await this.#running
    if (this.#space.usedBytes <= target || performance.now() < this.#exhaustedUntil) return
    this.#running = this.#round(target, options).finally(() => {
      this.#running = undefined
    })
    await this.#running
  }

  async #round(target: number, options: { spare?: Resource; rawOnly?: boolean }): Promise<void> {
    const before = this.#space.usedBytes
    let dropped = 0
    for (const step of this.#steps(options)) {
      for (const candidate of step().sort((one, other) => one.lastUse - other.lastUse)) {
        if (this.#space.usedBytes <= target) break
        const bytes = await candidate.drop()
        if (bytes === 0) continue
        dropped++
        this.#metrics.evicted(candidate.kind, bytes)
      }
    }
    const { usedBytes } = this.#space
    if (usedBytes > target && options.rawOnly !== true) this.#exhaustedUntil = performance.now() + EXHAUSTED_MS
    if (dropped > 0) this.#logger.info({ dropped, bytes: before - usedBytes, usedBytes, capBytes: this.#space.capBytes }, 'made room in the block store')
  }

  /** Each step looks at the store when its turn comes: what is pinned may have changed since. */
  #steps(options: { spare?: Resource; rawOnly?: boolean }): (() => Candidate[])[] {
    const idle = (): Resource[] => [...this.#resources()].filter((resource) => resource !== options.spare && !resource.busy)
    const raw = (pinned: boolean) => (): Candidate[] => idle().filter((resource) => resource.rawBytes > 0 && resource.pinned === pinned)
      .map((resource) => ({ kind: 'raw', lastUse: resource.lastUse, drop: () => (resource.busy ? 0 : resource.dropRaw()) }))
    const packs = (quarantined: boolean) => (): Candidate[] => idle().filter((resource) => !resource.pinned && resource.quarantined === quarantined && resource.storedBytes > 0)
      .map((resource) => ({ kind: 'packed', lastUse: resource.lastUse, drop: () => (resource.pinned || resource.busy ? 0 : this.#remove(resource)) }))
    const objects = (): Candidate[] => {
      const described = new Set([...this.#resources()].map(({ id }) => id))
      return [...this.#objects.list()].filter(({ digest }) => !described.has(`layer:${digest}`))
        .map(({ digest, bytes, lastUse }) => ({ kind: 'objects', lastUse, drop: () => (this.#objects.delete(digest) ? bytes : 0) }))
    }
    if (options.rawOnly === true) return [raw(false)]
    return [raw(false), packs(true), () => [...packs(false)(), ...objects()], raw(true)]
  }
}
