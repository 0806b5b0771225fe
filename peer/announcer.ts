// Tells supernodes what is here: everything when they come up, then what changed, in batches.
import type { BlockStore } from './block-store.ts'
import type { Announcement } from './control.ts'
import type { ConnectedSupernode, Supernodes } from './supernodes.ts'
import { packBitmap } from './exchange-wire.ts'
import type { Resource } from './resource.ts'

/** Milliseconds that news wait for company. */
const BATCH_MS = 50
/** Resources that grow are announced anew this often at most, all together, milliseconds: connected peers hear of single blocks anyway. */
const PROGRESS_MS = 2_000
/** A full announcement is sent in parts of so many resources. */
const PART = 500

export class Announcer {
  readonly #store: BlockStore
  readonly #supernodes: Supernodes
  readonly #changed = new Set<string>()
  readonly #gone = new Set<string>()
  readonly #growing = new Set<string>()
  #progress: NodeJS.Timeout | undefined
  readonly #watched = new WeakSet<Resource>()
  #timer: NodeJS.Timeout | undefined
  #stopped = false

  constructor(components: { store: BlockStore; supernodes: Supernodes }) {
    this.#store = components.store
    this.#supernodes = components.supernodes
    this.#store.on('added', this.#onAdded)
    this.#store.on('removed', this.#onGone)
    this.#store.on('quarantined', this.#onGone)
    for (const resource of this.#store.list()) this.#watch(resource)
  }

  /** All that is here, to one supernode that has just come up. */
  async everything(supernode: ConnectedSupernode): Promise<void> {
    const have = this.#store.list().flatMap(resource => this.#describe(resource.id) ?? [])
    for (let at = 0; at < have.length; at += PART) await supernode.client.call('announce', { have: have.slice(at, at + PART), gone: [] })
  }

  /** A resource is wanted here, and parts of it may be here: others who want it should find this node. */
  wanted(resource: Resource): void {
    this.#changed.add(resource.id)
    this.#soon()
  }

  stop(): void {
    this.#stopped = true
    clearTimeout(this.#timer)
    clearTimeout(this.#progress)
    this.#store.off('added', this.#onAdded)
    this.#store.off('removed', this.#onGone)
    this.#store.off('quarantined', this.#onGone)
  }

  readonly #onAdded = (resource: Resource): void => {
    this.#watch(resource)
    if (resource.storedBytes > 0) this.wanted(resource)
  }

  readonly #onGone = (id: string): void => {
    this.#changed.delete(id)
    this.#gone.add(id)
    this.#soon()
  }

  #watch(resource: Resource): void {
    if (this.#watched.has(resource)) return
    this.#watched.add(resource)
    resource.on('whole', () => this.wanted(resource))
    resource.on('block', () => {
      if (this.#stopped) return
      this.#growing.add(resource.id)
      this.#progress ??= setTimeout(() => {
        this.#progress = undefined
        for (const id of this.#growing) this.#changed.add(id)
        this.#growing.clear()
        this.#soon()
      }, PROGRESS_MS).unref()
    })
  }

  #soon(): void {
    if (this.#stopped) return
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined
      const have = [...this.#changed].flatMap(id => this.#describe(id) ?? [])
      const gone = [...this.#gone].filter(id => this.#store.get(id) === undefined || this.#store.get(id)!.quarantined)
      this.#changed.clear()
      this.#gone.clear()
      for (let at = 0; at < Math.max(have.length, gone.length); at += PART) void this.#supernodes.tell('announce', { have: have.slice(at, at + PART), gone: gone.slice(at, at + PART) })
    }, BATCH_MS)
  }

  #describe(id: string): Announcement['have'][number] | undefined {
    const resource = this.#store.get(id)
    if (resource === undefined || resource.quarantined) return undefined
    return resource.whole ? { resource: id, whole: true } : { resource: id, blocks: packBitmap(resource.state).toString('base64') }
  }
}
