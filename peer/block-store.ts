// The block store: every resource and object this machine holds, what they may take of the disk, and their way through a restart.
import { EventEmitter } from 'node:events'
import * as crypto from 'node:crypto'
import * as fs from 'node:fs'
import * as path from 'node:path'
import type { Logger } from 'pino'
import type { Registry } from 'prom-client'
import { hasCode, SkimmerError } from '../oci/errors.ts'
import { HASH_LENGTH } from '../image/block-table.ts'
import type { BlockTable } from '../image/block-table.ts'
import { checkTable, sha256 } from './block-codec.ts'
import { BlockCopies } from './block-copies.ts'
import type { Copy } from './block-copies.ts'
import { ABSENT, VERIFIED } from './block-state.ts'
import { DiskReserve } from './disk-reserve.ts'
import { Eviction } from './eviction.ts'
import { GrowingList } from './growing-list.ts'
import type { GrowingResource } from './growing-resource.ts'
import { HeldRing } from './held-blocks.ts'
import { KnownHashes, knownRuns } from './known-hashes.ts'
import { LastUses } from './last-uses.ts'
import { ObjectStore } from './object-store.ts'
import { PackFile, writeError } from './pack-file.ts'
import { Prover } from './proof.ts'
import { RawFile } from './raw-file.ts'
import { Resource } from './resource.ts'
import type { ResourceKeeper, ResourceParts } from './resource-keeper.ts'
import { restoreResource } from './restore.ts'
import { StoreMetrics } from './store-metrics.ts'
import { encodeTable, StoreRecords } from './store-records.ts'
import type { KeySpace, ResourceRecord } from './store-records.ts'
import { StoreRoom } from './store-room.ts'
import { StoreSpace } from './store-space.ts'
import { TableSaver } from './table-saver.ts'

const DEFAULT_HELD_BYTES = 32 * 1024 * 1024
/** How long close() waits for threads that still read. */
const CLOSE_WAIT_MS = 5000
const MAX_ID_LENGTH = 512
const DEFAULT_MIN_FREE_BYTES = 64 * 1024 * 1024

export interface BlockStoreOptions {
  readonly directory: string
  /** Bytes for packs, raw files and objects together. */
  readonly capBytes: number
  readonly logger: Logger
  readonly metrics?: Registry
  /** What to leave free on the disk, whatever the cap says; 64 MiB unless told. */
  readonly minFreeBytes?: number
  /** Memory for blocks that found no room on the disk; 32 MiB unless told. */
  readonly heldBytes?: number
  /** Milliseconds since 1970; for tests. */
  readonly now?: () => number
}

export interface AddOptions {
  /** What the whole stream must hash to: see Resource.prove(). */
  readonly diffId?: string
  /** Free JSON to keep with it. */
  readonly origin?: Record<string, unknown>
  /** Hashes of zeros in the table are not known yet. */
  readonly open?: boolean
}

/** Threads tell resources apart by number, whichever store of this process they are in. */
let nextNumber = 1

interface StoreEvents {
  added: [resource: Resource]
  removed: [id: string]
  quarantined: [id: string, reason: string]
}

export class BlockStore extends EventEmitter<StoreEvents> {
  readonly directory: string
  readonly #logger: Logger
  readonly #records: StoreRecords
  readonly #space: StoreSpace
  readonly #metrics: StoreMetrics
  readonly #objects: ObjectStore
  readonly #eviction: Eviction
  readonly #room: StoreRoom
  readonly #lastUses: LastUses
  readonly #prover = new Prover()
  readonly #copies: BlockCopies
  readonly #keeper: ResourceKeeper
  readonly #now: () => number
  readonly #resources = new Map<string, Resource>()
  readonly #growing: GrowingList
  readonly #tables: TableSaver
  /** Adds and removals under way: whoever wants the same id waits for them. */
  readonly #changing = new Map<string, Promise<unknown>>()
  #quarantine = new Map<string, string>()
  #closing: Promise<void> | undefined

  /**
   * Opens the store in a directory of its own, made when missing. Whatever state a crash or power loss left it in: what is sound is kept,
   * the rest dropped with a line in the log. CONFLICT when another process has it open.
   */
  static async open(options: BlockStoreOptions): Promise<BlockStore> {
    if (!(options.capBytes > 0)) throw new SkimmerError('INVALID_ARGUMENT', `the cap of the block store is ${options.capBytes} bytes; give it some`)
    try {
      fs.mkdirSync(path.join(options.directory, 'packs'), { recursive: true, mode: 0o700 })
    } catch (error) {
      throw writeError(error, options.directory)
    }
    const disk = new DiskReserve({ directory: options.directory, minFreeBytes: options.minFreeBytes ?? DEFAULT_MIN_FREE_BYTES })
    const openRecords = (): Promise<StoreRecords> => StoreRecords.open(path.join(options.directory, 'meta'), options.logger)
    const records = await openRecords().catch((error: unknown) => {
      if (!hasCode(error, 'NO_SPACE') || !disk.spend()) throw error
      options.logger.warn({ directory: options.directory }, 'the disk is full; the block store opens in the space it had in reserve')
      return openRecords()
    })
    const store = new BlockStore(options, records, disk)
    try {
      await store.#load()
      if (!disk.keep()) options.logger.warn({ directory: options.directory }, 'no room on the disk for the reserve of the block store; if it fills up, the store may not open again')
    } catch (error) {
      await records.close()
      throw error
    }
    return store
  }

  private constructor(options: BlockStoreOptions, records: StoreRecords, disk: DiskReserve) {
    super()
    this.setMaxListeners(0)
    this.directory = options.directory
    this.#logger = options.logger
    this.#records = records
    this.#now = options.now ?? Date.now
    this.#space = new StoreSpace(options.capBytes)
    this.#metrics = new StoreMetrics(options.metrics, this.#space, () => this.#resources.size)
    this.#copies = new BlockCopies({ logger: this.#logger })
    this.#objects = new ObjectStore(
      { logger: this.#logger, now: this.#now, freed: (bytes) => this.#space.give('objects', bytes), makeRoom: async (bytes) => this.#room.take('objects', bytes, { limit: this.#space.capBytes }) },
      { directory: path.join(options.directory, 'objects') },
    )
    this.#eviction = new Eviction({ space: this.#space, resources: () => this.#resources.values(), objects: this.#objects, remove: (resource) => this.#remove(resource), logger: this.#logger, metrics: this.#metrics })
    this.#room = new StoreRoom({ space: this.#space, eviction: this.#eviction, disk, logger: this.#logger })
    this.#lastUses = new LastUses({ records, resources: () => this.#resources.values(), logger: this.#logger })
    this.#tables = new TableSaver({ records, isHere: (resource) => this.#resources.get(resource.id) === resource, logger: this.#logger })
    this.#growing = new GrowingList({
      path: (name) => this.#path(name),
      takePacked: (bytes) => this.#room.take('packed', bytes, { limit: this.#space.capBytes }),
      give: (bytes) => this.#space.give('packed', bytes),
      add: (id, table, pack, options) => this.#add(id, table, options, pack),
    })
    this.#keeper = {
      logger: this.#logger, metrics: this.#metrics, prover: this.#prover, ring: new HeldRing(options.heldBytes ?? DEFAULT_HELD_BYTES), now: this.#now,
      takePacked: (resource, bytes, priority) => this.#room.take('packed', bytes, { limit: priority === 'demand' ? this.#space.capBytes : this.#space.highBytes, spare: resource }),
      takeRaw: (resource, bytes) => this.#room.takeRaw(resource, bytes),
      give: (kind, bytes) => this.#space.give(kind, bytes),
      save: (resource, durable) => this.#save(resource, durable),
      learnt: (resource, from, to) => {
        this.#copies.learnt(resource, from, to)
        this.#tables.learnt(resource, from, to)
      },
      quarantine: (id, reason) => this.quarantine(id, reason),
      droppable: () => this.#eviction.droppable(),
    }
  }

  async #load(): Promise<void> {
    this.#quarantine = await this.#records.loadQuarantine()
    const kept = new Set<string>()
    for (const { id, record, table, lastUse } of await this.#records.load()) {
      const parts = restoreResource({ logger: this.#logger }, this.#path(record.file), id, record, table)
      for (const file of [parts.pack.path, parts.pack.statePath]) kept.add(path.basename(file))
      if (parts.record.raw) kept.add(path.basename(parts.raw.path))
      const resource = this.#make({ id, table, lastUse, ...parts })
      this.#space.take('packed', resource.storedBytes)
      this.#space.take('raw', resource.rawBytes)
      this.#enlist(resource)
    }
    // Growing resources, unproved raw files and removed packs that a crash left behind.
    const packs = path.join(this.directory, 'packs')
    for (const name of fs.readdirSync(packs)) if (!kept.has(name)) fs.rmSync(path.join(packs, name), { force: true, recursive: true })
    this.#space.take('objects', this.#objects.open())
    this.#room.evictSoon()
  }

  #make(parts: Omit<ResourceParts, 'number' | 'keeper'>): Resource {
    const resource = new Resource({ ...parts, number: nextNumber++, keeper: this.#keeper })
    resource.setQuarantine(this.#quarantine.get(parts.id))
    return resource
  }

  #enlist(resource: Resource): void {
    this.#resources.set(resource.id, resource)
    this.#copies.add(resource)
    this.#eviction.droppable()
    this.emit('added', resource)
  }

  #path(name: string): string {
    return path.join(this.directory, 'packs', name)
  }

  get(id: string): Resource | undefined {
    return this.#resources.get(id)
  }

  list(): Resource[] {
    return [...this.#resources.values()]
  }

  /** A resource on its way out must not get its record back. */
  async #save(resource: Resource, durable: boolean): Promise<void> {
    if (this.#resources.get(resource.id) !== resource) return
    const { record } = resource
    await (record.open === true ? this.#tables.save(resource, durable) : this.#records.update(resource.id, record, durable))
  }

  /**
   * Creates a resource of which no block is here yet, or answers the one that exists. `open`: hashes of zeros in `table` are not known yet,
   * see Resource.learn(). What one of both knows and the other does not, the existing one learns. INVALID_DATA for a table that lies,
   * CONFLICT when the id has another table: other blocks, or other hashes where both know them.
   */
  async add(id: string, table: BlockTable, options: AddOptions = {}): Promise<Resource> {
    return (await this.#add(id, table, options)).resource
  }

  /** `made`: a pack with all blocks, for a resource that is not here yet. */
  async #add(id: string, table: BlockTable, options: AddOptions, made?: PackFile): Promise<{ resource: Resource; created: boolean }> {
    this.#checkOpen()
    checkId(id)
    // Not a function of its own: nothing may begin between the last look and what the caller does next.
    for (let change = this.#changing.get(id); change !== undefined; change = this.#changing.get(id)) await change
    const existing = this.#resources.get(id)
    if (existing !== undefined) {
      const open = options.open === true
      if (!existing.agrees(table, open)) throw new SkimmerError('CONFLICT', `${id} is in the block store with another block table`)
      if (existing.open) for (const { from, to } of open ? knownRuns(table) : [{ from: 0, to: table.count }]) existing.learn(from, table.hashes.subarray(from * HASH_LENGTH, to * HASH_LENGTH))
      return { resource: existing, created: false }
    }
    checkTable(table, id)
    made?.noteAll(table.count)
    const file = made === undefined ? crypto.randomBytes(16).toString('hex') : path.basename(made.path)
    const record: ResourceRecord = { version: 1, file, tableHash: '', diffId: options.diffId, origin: options.origin, proved: false, raw: false, pins: [] }
    if (options.open === true && new KnownHashes(id, table, true).open) record.open = true
    return { resource: await this.#record(id, record, table, made ?? new PackFile(this.#path(file), table.count), made === undefined ? ABSENT : VERIFIED), created: true }
  }

  /** Writes the record, then lists the resource. */
  #record(id: string, record: ResourceRecord, table: BlockTable, pack: PackFile, initial: number): Promise<Resource> {
    const adding = (async () => {
      const encoded = encodeTable(table)
      const sealed = { ...record, tableHash: sha256(encoded).toString('hex') }
      await this.#records.add(id, sealed, encoded)
      const resource = this.#make({
        id, record: sealed, table, pack, raw: new RawFile(`${pack.path}.raw`), lastUse: this.#now(), state: new Uint8Array(new SharedArrayBuffer(table.count)).fill(initial),
      })
      this.#enlist(resource)
      return resource
    })()
    this.#change(id, adding)
    return adding
  }

  #change(id: string, change: Promise<unknown>): void {
    const settled = Promise.allSettled([change]).finally(() => {
      if (this.#changing.get(id) === settled) this.#changing.delete(id)
    })
    this.#changing.set(id, settled)
  }

  /** A resource that is being made here; after a crash nothing is left of it. */
  async create(temporaryId: string): Promise<GrowingResource> {
    this.#checkOpen()
    checkId(temporaryId)
    return this.#growing.create(temporaryId)
  }

  /** One that is being made right now. */
  growing(temporaryId: string): GrowingResource | undefined {
    return this.#growing.get(temporaryId)
  }

  /** Removes a resource and its files. Nothing to do when it is not here; CONFLICT while pinned. */
  async remove(id: string): Promise<void> {
    const resource = this.#resources.get(id)
    if (resource === undefined) return
    if (resource.pinned) throw new SkimmerError('CONFLICT', `${id} is in use by ${resource.pins.slice(0, 5).join(', ')}; stop that first`)
    await this.#remove(resource)
  }

  async #remove(resource: Resource): Promise<number> {
    const { id } = resource
    if (this.#resources.get(id) !== resource) return 0
    this.#resources.delete(id)
    this.#copies.delete(resource)
    // The record goes first: files without a record are cleared away at the next start, a record without files would be a lie. Until it is
    // gone, an add() of the same id waits, or its new record would be removed with the old one.
    const removing = this.#tables.settled(resource).then(() => this.#records.remove(id))
    this.#change(id, removing)
    await removing.catch((error: unknown) => this.#logger.error({ resource: id, error: (error as Error).message }, 'could not remove the record of a resource'))
    const bytes = await resource.dispose()
    this.emit('removed', id)
    return bytes
  }

  /** Stores a content-addressed object and answers its digest. LIMIT_EXCEEDED over 256 MiB, NO_SPACE. */
  putObject(bytes: Uint8Array): Promise<string> {
    return this.#objects.put(bytes)
  }

  /** The object's bytes, verified; undefined when it is not here. */
  getObject(digest: string): Promise<Buffer | undefined> {
    return this.#objects.get(digest)
  }

  hasObject(digest: string): boolean {
    return this.#objects.has(digest)
  }

  /** Which of these blocks another resource holds, by hash. */
  findCopies(resource: Resource, blocks: Iterable<number>): Copy[] {
    return this.#copies.find(resource, blocks)
  }

  /**
   * Takes these blocks from other resources here where it can, and answers those that are in `resource` now. What cannot be had
   * (damaged in the other resource, no space) is just not in the answer.
   */
  copyBlocks(resource: Resource, blocks: Iterable<number>, options?: { priority?: 'demand' | 'background'; signal?: AbortSignal }): Promise<number[]> {
    return this.#copies.copy(resource, blocks, options)
  }

  /**
   * Notes for good that a resource is not what it claims to be, whether it is here or not: its blocks are given to no one, and it comes
   * back as quarantined when it is added again.
   */
  async quarantine(id: string, reason: string): Promise<void> {
    if (this.#quarantine.has(id)) return
    this.#quarantine.set(id, reason)
    this.#logger.error({ resource: id, reason }, 'quarantined a resource')
    await this.#records.quarantine(id, reason)
    this.#resources.get(id)?.setQuarantine(reason)
    this.#eviction.droppable()
    this.emit('quarantined', id, reason)
  }

  quarantineReason(id: string): string | undefined {
    return this.#quarantine.get(id)
  }

  /** An operator knows better. */
  async endQuarantine(id: string): Promise<void> {
    this.#quarantine.delete(id)
    await this.#records.endQuarantine(id)
    this.#resources.get(id)?.setQuarantine(undefined)
  }

  /** A key space of its own in the store's database, for another room: an abstract-level sublevel. `name` is letters, digits, `-`. */
  sublevel<V = string>(name: string, options: { valueEncoding?: 'utf8' | 'json' | 'view' } = {}): KeySpace<V> {
    return this.#records.keySpace<V>(name, options.valueEncoding)
  }

  /** Drops what is least worth keeping until the low watermark is reached, if the high one is passed. */
  evict(): Promise<void> {
    return this.#room.evict()
  }

  usage(): { packedBytes: number; rawBytes: number; objectBytes: number; capBytes: number } {
    const { packed, raw, objects } = this.#space.used
    return { packedBytes: packed, rawBytes: raw, objectBytes: objects, capBytes: this.#space.capBytes }
  }

  #checkOpen(): void {
    if (this.#closing !== undefined) throw new SkimmerError('ABORTED', 'the block store is closed')
  }

  /** Waits for what is under way (proofs are given up), gives up what is being made, and lets go of all files. Stop threads that read first. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    await this.#prover.close()
    await this.#growing.discardAll()
    await Promise.all([...this.#changing.values(), this.#room.settled()])
    await this.#tables.stop()
    await this.#lastUses.stop()
    const signal = AbortSignal.timeout(CLOSE_WAIT_MS)
    const released = await Promise.all(this.list().map((resource) => resource.release(signal)))
    const kept = released.filter((released) => !released).length
    if (kept > 0) this.#logger.warn({ resources: kept }, 'threads still read from the block store as it closed; their files stay open until the process ends')
    await this.#records.close()
  }
}

function checkId(id: string): void {
  // Ids become keys and log lines, never file names.
  if (id.length < 1 || id.length > MAX_ID_LENGTH || !/^[\x21-\x7e]+$/.test(id)) throw new SkimmerError('INVALID_ARGUMENT', `${JSON.stringify(id.slice(0, 80))} is not a resource id: 1 to ${MAX_ID_LENGTH} visible ASCII characters`)
}
