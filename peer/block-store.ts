// The block store: every resource and object this machine holds, what they may take of the disk, and their way through a restart.
import { EventEmitter } from 'node:events'
import * as fs from 'node:fs'
import * as path from 'node:path'
import type { Logger } from 'pino'
import type { Registry } from 'prom-client'
import { hasCode, SkimmerError } from '../oci/errors.ts'
import type { BlockTable } from '../image/block-table.ts'
import type { Copy } from './block-copies.ts'
import { DiskReserve } from './disk-reserve.ts'
import { Eviction } from './eviction.ts'
import { GrowingList } from './growing-list.ts'
import type { GrowingResource } from './growing-resource.ts'
import { HeldRing } from './held-blocks.ts'
import { LastUses } from './last-uses.ts'
import { ObjectStore } from './object-store.ts'
import { writeError } from './pack-file.ts'
import { Prover } from './proof.ts'
import type { Resource } from './resource.ts'
import type { ResourceKeeper } from './resource-keeper.ts'
import { checkId, ResourceList } from './resource-list.ts'
import type { AddOptions } from './resource-list.ts'
import { StoreMetrics } from './store-metrics.ts'
import { StoreRecords } from './store-records.ts'
import type { KeySpace } from './store-records.ts'
import { StoreRoom } from './store-room.ts'
import { StoreSpace } from './store-space.ts'

const DEFAULT_HELD_BYTES = 32 * 1024 * 1024
/** How long close() waits for threads that still read. */
const CLOSE_WAIT_MS = 5000
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

interface StoreEvents {
  added: [resource: Resource]
  removed: [id: string]
  quarantined: [id: string, reason: string]
}

export class BlockStore extends EventEmitter<StoreEvents> {
  readonly directory: string
  readonly #logger: Logger
  readonly #records: StoreRecords
  readonly #resources: ResourceList
  readonly #space: StoreSpace
  readonly #metrics: StoreMetrics
  readonly #objects: ObjectStore
  readonly #eviction: Eviction
  readonly #room: StoreRoom
  readonly #lastUses: LastUses
  readonly #prover = new Prover()
  readonly #growing: GrowingList
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
    const now = options.now ?? Date.now
    this.#space = new StoreSpace(options.capBytes)
    this.#metrics = new StoreMetrics(options.metrics, this.#space, () => this.#resources.size)
    this.#objects = new ObjectStore(
      { logger: this.#logger, now, freed: (bytes) => this.#space.give('objects', bytes), makeRoom: async (bytes) => this.#room.take('objects', bytes, { limit: this.#space.capBytes }) },
      { directory: path.join(options.directory, 'objects') },
    )
    this.#eviction = new Eviction({ space: this.#space, resources: () => this.#resources.all(), objects: this.#objects, remove: (resource) => this.#resources.remove(resource), logger: this.#logger, metrics: this.#metrics })
    this.#room = new StoreRoom({ space: this.#space, eviction: this.#eviction, disk, logger: this.#logger })
    this.#lastUses = new LastUses({ records, resources: () => this.#resources.all(), logger: this.#logger })
    this.#growing = new GrowingList({
      path: (name) => path.join(this.#packs, name),
      takePacked: (bytes) => this.#room.take('packed', bytes, { limit: this.#space.capBytes }),
      give: (bytes) => this.#space.give('packed', bytes),
      add: (id, table, pack, options) => {
        this.#checkOpen()
        return this.#resources.add(id, table, options, pack)
      },
    })
    const keeper: ResourceKeeper = {
      logger: this.#logger, metrics: this.#metrics, prover: this.#prover, ring: new HeldRing(options.heldBytes ?? DEFAULT_HELD_BYTES), now,
      takePacked: (resource, bytes, priority) => this.#room.take('packed', bytes, { limit: priority === 'demand' ? this.#space.capBytes : this.#space.highBytes, spare: resource }),
      takeRaw: (resource, bytes) => this.#room.takeRaw(resource, bytes),
      give: (kind, bytes) => this.#space.give(kind, bytes),
      save: (resource, durable) => this.#resources.save(resource, durable),
      learnt: (resource, from, to) => this.#resources.learnt(resource, from, to),
      quarantine: (id, reason) => this.quarantine(id, reason),
      droppable: () => this.#eviction.droppable(),
    }
    this.#resources = new ResourceList({
      records, keeper, directory: this.#packs, quarantined: (id) => this.#quarantine.get(id),
      added: (resource) => {
        this.#eviction.droppable()
        this.emit('added', resource)
      },
      removed: (id) => this.emit('removed', id),
    })
  }

  get #packs(): string {
    return path.join(this.directory, 'packs')
  }

  async #load(): Promise<void> {
    this.#quarantine = await this.#records.loadQuarantine()
    const kept = new Set<string>()
    for (const { resource, files } of await this.#resources.load()) {
      for (const file of files) kept.add(file)
      this.#space.take('packed', resource.storedBytes)
      this.#space.take('raw', resource.rawBytes)
    }
    // Growing resources, unproved raw files and removed packs that a crash left behind.
    for (const name of fs.readdirSync(this.#packs)) if (!kept.has(name)) fs.rmSync(path.join(this.#packs, name), { force: true, recursive: true })
    this.#space.take('objects', this.#objects.open())
    this.#room.evictSoon()
  }

  get(id: string): Resource | undefined {
    return this.#resources.get(id)
  }

  list(): Resource[] {
    return [...this.#resources.all()]
  }

  /**
   * Creates a resource of which no block is here yet, or answers the one that exists. `open`: hashes of zeros in `table` are not known yet,
   * see Resource.learn(). What one of both knows and the other does not, the existing one learns. INVALID_DATA for a table that lies,
   * CONFLICT when the id has another table: other blocks, or other hashes where both know them.
   */
  async add(id: string, table: BlockTable, options: AddOptions = {}): Promise<Resource> {
    this.#checkOpen()
    return (await this.#resources.add(id, table, options)).resource
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
    await this.#resources.remove(resource)
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
    return this.#resources.copies.find(resource, blocks)
  }

  /**
   * Takes these blocks from other resources here where it can, and answers those that are in `resource` now. What cannot be had
   * (damaged in the other resource, no space) is just not in the answer.
   */
  copyBlocks(resource: Resource, blocks: Iterable<number>, options?: { priority?: 'demand' | 'background'; signal?: AbortSignal }): Promise<number[]> {
    return this.#resources.copies.copy(resource, blocks, options)
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
    await Promise.all([this.#resources.settled(), this.#room.settled()])
    await this.#resources.saveTables()
    await this.#lastUses.stop()
    const signal = AbortSignal.timeout(CLOSE_WAIT_MS)
    const released = await Promise.all(this.list().map((resource) => resource.release(signal)))
    const kept = released.filter((released) => !released).length
    if (kept > 0) this.#logger.warn({ resources: kept }, 'threads still read from the block store as it closed; their files stay open until the process ends')
    await this.#records.close()
  }
}
