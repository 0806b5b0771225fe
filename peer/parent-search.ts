// Finds peers for one resource: asks the scheduler at once and again while the resource is not whole, connects to whom it names.
import type { Logger } from 'pino'
import type { PeerPool } from './peer-pool.ts'
import type { Resource } from './resource.ts'
import type { Supernodes } from './supernodes.ts'

const PARENTS = 8
/** Milliseconds between questions: close together at first, since those who start at once do not know of each other yet. */
const PAUSES = [200, 400, 800, 1_600, 3_200, 6_400, 12_800]

export class ParentSearch {
  readonly #pool: PeerPool
  readonly #supernodes: Supernodes
  readonly #logger: Logger
  readonly #resource: Resource
  #timer: NodeJS.Timeout | undefined
  #round = 0
  #asking = false
  #stopped = false

  constructor(components: { pool: PeerPool; supernodes: Supernodes; logger: Logger }, resource: Resource) {
    this.#pool = components.pool
    this.#supernodes = components.supernodes
    this.#logger = components.logger
    this.#resource = resource
  }

  start(): void {
    void this.#ask()
  }

  /** Something is amiss: ask sooner. */
  soon(): void {
    if (this.#stopped || this.#asking) return
    this.#round = 0
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => void this.#ask(), PAUSES[0])
  }

  stop(): void {
    this.#stopped = true
    clearTimeout(this.#timer)
  }

  async #ask(): Promise<void> {
    if (this.#stopped || this.#asking || this.#resource.whole) return
    this.#asking = true
    try {
      await this.#connect(await this.#candidates())
    } catch (error) {
      this.#logger.debug({ resource: this.#resource.id, err: error }, 'no parents could be found')
    } finally {
      this.#asking = false
    }
    if (this.#stopped || this.#resource.whole) return
    this.#timer = setTimeout(() => void this.#ask(), PAUSES[Math.min(this.#round++, PAUSES.length - 1)])
    this.#timer.unref()
  }

  async #candidates(): Promise<string[]> {
    const { id } = this.#resource
    const connected = this.#pool.connected().filter(peer => !peer.supernode && peer.holdings(id) !== undefined).map(peer => peer.id)
    if (connected.length >= PARENTS * 2) return []
    if (this.#supernodes.inOrder(id).length === 0) {
      // No scheduler to ask: peers known from before may still have it.
      return Object.keys(this.#pool.addresses()).slice(0, PARENTS * 2)
    }
    const { parents } = await this.#supernodes.call('parents', { resource: id, count: PARENTS, exclude: connected.slice(0, 256) }, { key: id })
    for (const parent of parents) this.#pool.learn(parent.peerId, parent.addrs)
    return parents.map(parent => parent.peerId)
  }

  async #connect(ids: readonly string[]): Promise<void> {
    await Promise.all(ids.map(async id => {
      const peer = await this.#pool.connect(id)
      peer?.interest(this.#resource.id, this.#resource.table)
    }))
  }
}
