// The resources of a store by their ids: added, merged, removed; each one's record and table kept in step, and its blocks listed by hash.
import * as crypto from 'node:crypto'
import * as path from 'node:path'
import { SkimmerError } from '../oci/errors.ts'
import { HASH_LENGTH } from '../image/block-table.ts'
import type { BlockTable } from '../image/block-table.ts'
import { checkTable, sha256 } from './block-codec.ts'
import { BlockCopies } from './block-copies.ts'
import { ABSENT, VERIFIED } from './block-state.ts'
import { KnownHashes, knownRuns } from './known-hashes.ts'
import { PackFile } from './pack-file.ts'
import { RawFile } from './raw-file.ts'
import { Resource } from './resource.ts'
import type { ResourceKeeper, ResourceParts } from './resource-keeper.ts'
import { restoreResource } from './restore.ts'
import { encodeTable } from './store-records.ts'
import type { ResourceRecord, StoreRecords } from './store-records.ts'
import { TableSaver } from './table-saver.ts'

const MAX_ID_LENGTH = 512

export interface AddOptions {
  /** What the whole stream must hash to: see Resource.prove(). */
  readonly diffId?: string
  /** Free JSON to keep with it. */
  readonly origin?: Record<string, unknown>
  /** Hashes of zeros in the table are not known yet. */
  readonly open?: boolean
}

export interface ResourceListParts {
  readonly records: StoreRecords
  readonly keeper: ResourceKeeper
  /** Where their files are. */
  readonly directory: string
  /** Why an id is quarantined, if it is. */
  readonly quarantined: (id: string) => string | undefined
  readonly added: (resource: Resource) => void
  readonly removed: (id: string) => void
}

/** Threads tell resources apart by number, whichever store of this process they are in. */
let nextNumber = 1

export class ResourceList {
  readonly copies: BlockCopies
  readonly #parts: ResourceListParts
  readonly #byId = new Map<string, Resource>()
  readonly #tables: TableSaver
  /** Adds and removals under way: whoever wants the same id waits for them. */
  readonly #changing = new Map<string, Promise<unknown>>()

  constructor(parts: ResourceListParts) {
    this.#parts = parts
    const { logger } = parts.keeper
    this.copies = new BlockCopies({ logger })
    this.#tables = new TableSaver({ records: parts.records, isHere: (resource) => this.#byId.get(resource.id) === resource, logger })
  }

  get size(): number {
    return this.#byId.size
  }

  get(id: string): Resource | undefined {
    return this.#byId.get(id)
  }

  all(): Iterable<Resource> {
    return this.#byId.values()
  }

  /** What the last run left, with the names of the files that belong to each. */
  async load(): Promise<{ resource: Resource; files: string[] }[]> {
    const { records, keeper, directory } = this.#parts
    return (await records.load()).map(({ id, record, table, lastUse }) => {
      const parts = restoreResource({ logger: keeper.logger }, path.join(directory, record.file), id, record, table)
      const resource = this.#enlist({ id, table, lastUse, ...parts })
      return { resource, files: [parts.pack.path, parts.pack.statePath, ...(parts.record.raw ? [parts.raw.path] : [])].map((file) => path.basename(file)) }
    })
  }

  #enlist(parts: Omit<ResourceParts, 'number' | 'keeper'>): Resource {
    const resource = new Resource({ ...parts, number: nextNumber++, keeper: this.#parts.keeper })
    resource.setQuarantine(this.#parts.quarantined(parts.id))
    this.#byId.set(resource.id, resource)
    this.copies.add(resource)
    this.#parts.added(resource)
    return resource
  }

  /** See BlockStore.add(). `made`: a pack with all blocks, for a resource that is not here yet. `created`: it was not here. */
  async add(id: string, table: BlockTable, options: AddOptions, made?: PackFile): Promise<{ resource: Resource; created: boolean }> {
    checkId(id)
    // Not a function of its own: nothing may begin between the last look and what the caller does next.
    for (let change = this.#changing.get(id); change !== undefined; change = this.#changing.get(id)) await change
    const existing = this.#byId.get(id)
    if (existing !== undefined) {
      merge(existing, table, options.open === true)
      return { resource: existing, created: false }
    }
    checkTable(table, id)
    made?.noteAll(table.count)
    const file = made === undefined ? crypto.randomBytes(16).toString('hex') : path.basename(made.path)
    const record: ResourceRecord = { version: 1, file, tableHash: '', diffId: options.diffId, origin: options.origin, proved: false, raw: false, pins: [] }
    if (options.open === true && new KnownHashes(id, table, true).open) record.open = true
    const adding = this.#record(id, record, table, made ?? new PackFile(path.join(this.#parts.directory, file), table.count), made === undefined ? ABSENT : VERIFIED)
    this.#change(id, adding)
    return { resource: await adding, created: true }
  }

  /** Writes the record, then lists the resource. */
  async #record(id: string, record: ResourceRecord, table: BlockTable, pack: PackFile, initial: number): Promise<Resource> {
    const encoded = encodeTable(table)
    const sealed = { ...record, tableHash: sha256(encoded).toString('hex') }
    await this.#parts.records.add(id, sealed, encoded)
    return this.#enlist({
      id, record: sealed, table, pack, raw: new RawFile(`${pack.path}.raw`), lastUse: this.#parts.keeper.now(), state: new Uint8Array(new SharedArrayBuffer(table.count)).fill(initial),
    })
  }

  #change(id: string, change: Promise<unknown>): void {
    const settled = Promise.allSettled([change]).finally(() => {
      if (this.#changing.get(id) === settled) this.#changing.delete(id)
    })
    this.#changing.set(id, settled)
  }

  /** Answers the bytes freed; none when it is gone already. */
  async remove(resource: Resource): Promise<number> {
    const { id } = resource
    if (this.#byId.get(id) !== resource) return 0
    this.#byId.delete(id)
    this.copies.delete(resource)
    // The record goes first: files without a record are cleared away at the next start, a record without files would be a lie. Until it is
    // gone, an add() of the same id waits, or its new record would be removed with the old one.
    const removing = this.#tables.settled(resource).then(() => this.#parts.records.remove(id))
    this.#change(id, removing)
    await removing.catch((error: unknown) => this.#parts.keeper.logger.error({ resource: id, error: (error as Error).message }, 'could not remove the record of a resource'))
    const bytes = await resource.dispose()
    this.#parts.removed(id)
    return bytes
  }

  /** Saves its record, and its table while that is open. A resource on its way out must not get its record back. */
  async save(resource: Resource, durable: boolean): Promise<void> {
    if (this.#byId.get(resource.id) !== resource) return
    const { record } = resource
    await (record.open === true ? this.#tables.save(resource, durable) : this.#parts.records.update(resource.id, record, durable))
  }

  /** Hashes of these blocks are known now. */
  learnt(resource: Resource, from: number, to: number): void {
    this.copies.learnt(resource, from, to)
    this.#tables.learnt(resource, from, to)
  }

  /** Resolves when the adds and removals under way are over. */
  async settled(): Promise<void> {
    await Promise.all(this.#changing.values())
  }

  /** Saves hashes that are not saved yet: the store is closing. */
  saveTables(): Promise<void> {
    return this.#tables.stop()
  }
}

/** What the table knows and the resource does not, the resource learns. */
function merge(resource: Resource, table: BlockTable, open: boolean): void {
  if (!resource.agrees(table, open)) throw new SkimmerError('CONFLICT', `${resource.id} is in the block store with another block table`)
  if (!resource.open) return
  for (const { from, to } of open ? knownRuns(table) : [{ from: 0, to: table.count }]) resource.learn(from, table.hashes.subarray(from * HASH_LENGTH, to * HASH_LENGTH))
}

export function checkId(id: string): void {
  // Ids become keys and log lines, never file names.
  if (id.length < 1 || id.length > MAX_ID_LENGTH || !/^[\x21-\x7e]+$/.test(id)) throw new SkimmerError('INVALID_ARGUMENT', `${JSON.stringify(id.slice(0, 80))} is not a resource id: 1 to ${MAX_ID_LENGTH} visible ASCII characters`)
}
