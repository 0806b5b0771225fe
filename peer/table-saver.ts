// Saves the tables of open resources as their hashes come in, and everything else of such a resource with its table: so that what is on disk fits together.
import type { Logger } from 'pino'
import { blockPackedLength } from '../image/block-table.ts'
import { sha256 } from './block-codec.ts'
import type { Resource } from './resource.ts'
import { encodeTable } from './store-records.ts'
import type { StoreRecords } from './store-records.ts'

/** After a crash, blocks whose hashes were not saved must be brought again: at most those of so many milliseconds or bytes. */
const SAVE_EVERY_MS = 3_000
const SAVE_EVERY_BYTES = 64 * 1024 * 1024

export class TableSaver {
  readonly #records: StoreRecords
  readonly #isHere: (resource: Resource) => boolean
  readonly #logger: Logger
  /** Bytes of blocks whose hashes are not saved. */
  readonly #unsaved = new Map<Resource, number>()
  /** The last save of a resource that was begun or waits for its turn. */
  readonly #saves = new Map<Resource, Promise<void>>()
  #timer: NodeJS.Timeout | undefined
  #stopped = false

  /** `isHere`: false for a resource that was removed: nothing of it may be saved any more. */
  constructor(components: { records: StoreRecords; isHere: (resource: Resource) => boolean; logger: Logger }) {
    this.#records = components.records
    this.#isHere = components.isHere
    this.#logger = components.logger
  }

  /** Hashes of these blocks are known now: they are saved soon, at once when they were the last. */
  learnt(resource: Resource, from: number, to: number): void {
    if (this.#stopped) return
    let bytes = this.#unsaved.get(resource) ?? 0
    for (let block = from; block < to; block++) bytes += blockPackedLength(resource.table, block)
    this.#unsaved.set(resource, bytes)
    if (bytes >= SAVE_EVERY_BYTES || !resource.open) void this.#saveQuietly(resource)
    else this.#timer ??= setTimeout(() => this.#saveAll(), SAVE_EVERY_MS).unref()
  }

  /** Record and table. `durable`: on disk when it resolves. One at a time a resource, or an older state could come to lie over a newer one. */
  save(resource: Resource, durable: boolean): Promise<void> {
    const before = this.#saves.get(resource) ?? Promise.resolve()
    const saving = before.catch(() => {}).then(() => this.#save(resource, durable))
    this.#saves.set(resource, saving)
    const settled = (): void => {
      if (this.#saves.get(resource) === saving) this.#saves.delete(resource)
    }
    saving.then(settled, settled)
    return saving
  }

  async #save(resource: Resource, durable: boolean): Promise<void> {
    this.#unsaved.delete(resource)
    if (!this.#isHere(resource)) return
    const { open, record } = resource
    const encoded = encodeTable(resource.table)
    const tableHash = sha256(encoded).toString('hex')
    const { open: _, ...closed } = record
    await this.#records.add(resource.id, { ...closed, tableHash, ...(open ? { open } : {}) }, encoded, durable)
    if (!open) resource.tableSaved(tableHash)
  }

  async #saveQuietly(resource: Resource): Promise<void> {
    await this.save(resource, false).catch((error: unknown) => this.#logger.warn({ resource: resource.id, err: error }, 'hashes that were learnt could not be saved; after a restart their blocks are brought again'))
  }

  #saveAll(): void {
    this.#timer = undefined
    for (const resource of this.#unsaved.keys()) void this.#saveQuietly(resource)
  }

  /** Resolves when no save of this resource is under way. */
  async settled(resource: Resource): Promise<void> {
    while (this.#saves.has(resource)) await this.#saves.get(resource)!.catch(() => {})
  }

  /** Saves what is not saved; what is learnt from now on is not. */
  async stop(): Promise<void> {
    this.#stopped = true
    clearTimeout(this.#timer)
    this.#saveAll()
    await Promise.allSettled(this.#saves.values())
  }
}
