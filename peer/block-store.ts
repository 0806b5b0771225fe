// The block store: every resource and object this machine holds, what they may take of the disk, and their way through a restart.
import { EventEmitter } from 'node:events'
import * as crypto from 'node:crypto'
import * as fs from 'node:fs'
import * as path from 'node:path'
import type { Logger } from 'pino'
import type { Registry } from 'prom-client'
import { SkimmerError } from '../oci/errors.ts'
import { packedLength, rawLength } from '../image/block-table.ts'
import type { BlockTable } from '../image/block-table.ts'
import { checkTable, sha256 } from './block-codec.ts'
import { ABSENT, STORED, UNPACKED, VERIFIED } from './block-state.ts'
import { CopyIndex } from './copy-index.ts'
import { Eviction } from './eviction.ts'
import { GrowingResource } from './growing-resource.ts'
import { HeldRing } from './held-blocks.ts'
import { ObjectStore } from './object-store.ts'
import { PackFile } from './pack-file.ts'
import { Prover } from './proof.ts'
import { RawFile } from './raw-file.ts'
import { Resource } from './resource.ts'
import type { ResourceKeeper } from './resource.ts'
import { StoreMetrics } from './store-metrics.ts'
import { encodeTable, StoreRecords } from './store-records.ts'
import type { KeySpace, ResourceRecord } from './store-records.ts'
import { StoreSpace } from './store-space.ts'

const DEFAULT_HELD_BYTES = 32 * 1024 * 1024
/** Last uses go to disk this often: after a crash the LRU may be wrong by that much. */
const SAVE_USES_EVERY_MS = 30_000
/** How long close() waits for threads that still read. */
const CLOSE_WAIT_MS = 5000
const MAX_ID_LENGTH = 512

export interface BlockStoreOptions {
  readonly directory: string
  /** Bytes for packs, raw files and objects together. */
  readonly capBytes: number
  readonly logger: Logger
  readonly metrics?: Registry
  /** Memory for blocks that found no room on the disk; 32 MiB unless told. */
  readonly heldBytes?: number
  /** Milliseconds since 1970; for tests. */
  readonly now?: () => number
}

/** The block `block` of the resource that was asked about is also block `from` of `source`. */
export interface Copy { readonly block: number; readonly source: Resource; readonly from: number }

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
  readonly #prover = new Prover()
  readonly #copies = new CopyIndex()
  readonly #keeper: ResourceKeeper
  readonly #now: () => number
  readonly #resources = new Map<string, Resource>()
  readonly #byNumber = new Map<number, Resource>()
  readonly #growing = new Map<string, GrowingResource>()
  /** Adds and removals under way: whoever wants the same id waits for them. */
  readonly #changing = new Map<string, Promise<unknown>>()
  readonly #savedUses = new Map<string, number>()
  readonly #background = new Set<Promise<unknown>>()
  #quarantine = new Map<string, string>()
  #number = 1
  #timer: NodeJS.Timeout | undefined
  #closing: Promise<void> | undefined

  /**
   * Opens the store in a directory of its own, made when missing. Whatever state a crash or power loss left it in: what is sound is kept,
   * the rest dropped with a line in the log. CONFLICT when another process has it open.
   */
  static async open(options: BlockStoreOptions): Promise<BlockStore> {
    if (!(options.capBytes > 0)) throw new SkimmerError('INVALID_ARGUMENT', `the cap of the block store is ${options.capBytes} bytes; give it some`)
    fs.mkdirSync(path.join(options.directory, 'packs'), { recursive: true, mode: 0o700 })
    const records = await StoreRecords.open(path.join(options.directory, 'meta'), options.logger)
    const store = new BlockStore(options, records)
    try {
      await store.#load()
    } catch (error) {
      await records.close()
      throw error
    }
    return store
  }

  private constructor(options: BlockStoreOptions, records: StoreRecords) {
    super()
    this.setMaxListeners(0)
    this.directory = options.directory
    this.#logger = options.logger
    this.#records = records
    this.#now = options.now ?? Date.now
    this.#space = new StoreSpace(options.capBytes)
    this.#metrics = new StoreMetrics(options.metrics, this.#space, () => this.#resources.size)
    this.#objects = new ObjectStore(
      { logger: this.#logger, now: this.#now, freed: (bytes) => this.#space.give('objects', bytes), makeRoom: async (bytes) => this.#take('objects', bytes, this.#space.capBytes) },
      { directory: path.join(options.directory, 'objects') },
    )
    this.#eviction = new Eviction({ space: this.#space, resources: () => this.#resources.values(), objects: this.#objects, remove: (resource) => this.#remove(resource), logger: this.#logger, metrics: this.#metrics })
    this.#keeper = {
      logger: this.#logger, metrics: this.#metrics, prover: this.#prover, ring: new HeldRing(options.heldBytes ?? DEFAULT_HELD_BYTES), now: this.#now,
      takePacked: (resource, bytes, priority) => this.#take('packed', bytes, priority === 'demand' ? this.#space.capBytes : this.#space.highBytes, resource),
      takeRaw: (resource, bytes) => this.#takeRaw(resource, bytes),
      give: (kind, bytes) => this.#space.give(kind, bytes),
      save: (resource, durable) => this.#records.update(resource.id, resource.record, durable),
      quarantine: (id, reason) => this.quarantine(id, reason),
      droppable: () => this.#eviction.droppable(),
    }
  }

  async #load(): Promise<void> {
    this.#quarantine = await this.#records.loadQuarantine()
    const kept = new Set<string>()
    for (const { id, record, table, lastUse } of await this.#records.load()) {
      const resource = this.#restore(id, record, table, lastUse)
      for (const file of [resource.pack.path, resource.pack.statePath]) kept.add(path.basename(file))
      if (resource.rawBytes > 0) kept.add(path.basename(resource.raw.path))
      this.#savedUses.set(id, lastUse)
      this.#space.take('packed', resource.storedBytes)
      this.#space.take('raw', resource.rawBytes)
      this.#enlist(resource)
    }
    // Growing resources, unproved raw files and removed packs that a crash left behind.
    const packs = path.join(this.directory, 'packs')
    for (const name of fs.readdirSync(packs)) if (!kept.has(name)) fs.rmSync(path.join(packs, name), { force: true, recursive: true })
    this.#space.take('objects', this.#objects.open())
    this.#timer = setInterval(() => void this.#saveUses(), SAVE_USES_EVERY_MS).unref()
    this.#evictSoon()
  }

  /** A resource as the disk has it: proved with its raw file, it is served as it is; all else is verified at first use. */
  #restore(id: string, record: ResourceRecord, table: BlockTable, lastUse: number): Resource {
    const pack = new PackFile(this.#path(record.file), table.count)
    const raw = new RawFile(this.#path(`${record.file}.raw`))
    const state = new Uint8Array(new SharedArrayBuffer(table.count))
    const size = pack.size()
    const complete = size === packedLength(table)
    const notes = pack.readNotes()
    if (notes === undefined && size > 0 && !record.proved) this.#logger.warn({ resource: id }, 'dropped the blocks of a resource: there is no note of which were written')
    for (let block = 0; block < table.count; block++) {
      const noted = notes === undefined ? record.proved && complete : notes[block] !== 0
      state[block] = noted && size >= table.packedOffsets[block + 1] ? STORED : ABSENT
    }
    const unpacked = record.proved && record.raw && complete && raw.publish(rawLength(table))
    if (unpacked) for (let block = 0; block < table.count; block++) if (state[block] === STORED) state[block] = UNPACKED
    return this.#make(id, { ...record, raw: unpacked }, table, { pack, raw, state, lastUse })
  }

  #make(id: string, record: ResourceRecord, table: BlockTable, parts: { pack: PackFile; raw: RawFile; state: Uint8Array<SharedArrayBuffer>; lastUse: number }): Resource {
    const resource = new Resource({ id, number: this.#number++, table, record, keeper: this.#keeper, ...parts })
    resource.setQuarantine(this.#quarantine.get(id))
    return resource
  }

  #enlist(resource: Resource): void {
    this.#resources.set(resource.id, resource)
    this.#byNumber.set(resource.number, resource)
    this.#copies.add(resource.number, resource.table)
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

  /** Creates a resource of which no block is here yet, or answers the one that exists. INVALID_DATA for a table that lies, CONFLICT when the id has another table. */
  async add(id: string, table: BlockTable, options: { diffId?: string; origin?: Record<string, unknown> } = {}): Promise<Resource> {
    this.#checkOpen()
    checkId(id)
    await this.#settled(id)
    const existing = this.#resources.get(id)
    if (existing !== undefined) {
      if (sameTable(existing.table, table)) return existing
      throw new SkimmerError('CONFLICT', `${id} is in the block store with another block table`)
    }
    checkTable(table, id)
    const record: ResourceRecord = { version: 1, file: crypto.randomBytes(16).toString('hex'), tableHash: '', diffId: options.diffId, origin: options.origin, proved: false, raw: false, pins: [] }
    return this.#record(id, record, table, new PackFile(this.#path(record.file), table.count), ABSENT)
  }

  /** Writes the record, then lists the resource. */
  #record(id: string, record: ResourceRecord, table: BlockTable, pack: PackFile, initial: number): Promise<Resource> {
    const adding = (async () => {
      const encoded = encodeTable(table)
      const sealed = { ...record, tableHash: sha256(encoded).toString('hex') }
      await this.#records.add(id, sealed, encoded)
      const resource = this.#make(id, sealed, table, {
        pack, raw: new RawFile(`${pack.path}.raw`), lastUse: this.#now(), state: new Uint8Array(new SharedArrayBuffer(table.count)).fill(initial),
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

  /** Resolves when nothing is under way for an id; until the caller's next await, nothing else begins. */
  async #settled(id: string): Promise<void> {
    for (let change = this.#changing.get(id); change !== undefined; change = this.#changing.get(id)) await change
  }

  /** A resource that is being made here; after a crash nothing is left of it. */
  async create(temporaryId: string): Promise<GrowingResource> {
    this.#checkOpen()
    checkId(temporaryId)
    if (this.#growing.has(temporaryId)) throw new SkimmerError('CONFLICT', `${temporaryId} is being made already`)
    const growing = new GrowingResource(temporaryId, new PackFile(this.#path(crypto.randomBytes(16).toString('hex')), 0), {
      takePacked: (bytes) => this.#take('packed', bytes, this.#space.capBytes),
      adopt: (made, id, table, options) => this.#adopt(made, id, table, options),
      abandon: async (made, bytes) => {
        this.#growing.delete(made.temporaryId)
        made.pack.unlink()
        made.pack.close()
        this.#space.give('packed', bytes)
      },
    })
    this.#growing.set(temporaryId, growing)
    return growing
  }

  /** One that is being made right now. */
  growing(temporaryId: string): GrowingResource | undefined {
    return this.#growing.get(temporaryId)
  }

  async #adopt(made: GrowingResource, id: string, table: BlockTable, options: { diffId?: string; origin?: Record<string, unknown> }): Promise<Resource> {
    this.#checkOpen()
    checkId(id)
    checkTable(table, id)
    await this.#settled(id)
    const existing = this.#resources.get(id)
    if (existing === undefined) {
      made.pack.noteAll(table.count)
      const record: ResourceRecord = { version: 1, file: path.basename(made.pack.path), tableHash: '', diffId: options.diffId, origin: options.origin, proved: false, raw: false, pins: [] }
      const resource = await this.#record(id, record, table, made.pack, VERIFIED)
      this.#growing.delete(made.temporaryId)
      return resource
    }
    if (!sameTable(existing.table, table)) throw new SkimmerError('CONFLICT', `${id} is in the block store with another block table`)
    const owner = `seal:${made.temporaryId}`
    existing.pin(owner)
    try {
      for (let block = 0; block < table.count; block++) if (!await existing.check(block)) await existing.putBlock(block, await made.readPacked(block))
    } finally {
      existing.unpin(owner)
    }
    await made.unread()
    this.#growing.delete(made.temporaryId)
    made.pack.unlink()
    made.pack.close()
    this.#space.give('packed', made.packedLength)
    return existing
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
    this.#byNumber.delete(resource.number)
    this.#copies.delete(resource.number)
    this.#savedUses.delete(id)
    // The record goes first: files without a record are cleared away at the next start, a record without files would be a lie. Until it is
    // gone, an add() of the same id waits, or its new record would be removed with the old one.
    const removing = this.#records.remove(id)
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
    const found: Copy[] = []
    for (const block of blocks) {
      this.#copies.find(resource.table, block, (number, from) => {
        const source = this.#byNumber.get(number)
        if (source === undefined || source === resource || source.quarantined || source.state[from] === ABSENT) return false
        found.push({ block, source, from })
        return true
      })
    }
    return found
  }

  /**
   * Takes these blocks from other resources here where it can, and answers those that are in `resource` now. What cannot be had
   * (damaged in the other resource, no space) is just not in the answer.
   */
  async copyBlocks(resource: Resource, blocks: Iterable<number>, options: { priority?: 'demand' | 'background'; signal?: AbortSignal } = {}): Promise<number[]> {
    const copied: number[] = []
    for (const { block, source, from } of this.findCopies(resource, blocks)) {
      if (options.signal?.aborted === true) break
      try {
        await resource.putBlock(block, await source.readPacked(from), options)
        copied.push(block)
      } catch (error) {
        this.#logger.debug({ resource: resource.id, block, source: source.id, error: (error as Error).message }, 'a block could not be copied from another resource')
      }
    }
    return copied
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
  async evict(): Promise<void> {
    if (this.#space.usedBytes > this.#space.highBytes) await this.#eviction.evict(this.#space.lowBytes)
  }

  usage(): { packedBytes: number; rawBytes: number; objectBytes: number; capBytes: number } {
    const { packed, raw, objects } = this.#space.used
    return { packedBytes: packed, rawBytes: raw, objectBytes: objects, capBytes: this.#space.capBytes }
  }

  #take(kind: 'packed' | 'objects', bytes: number, limit: number, spare?: Resource): Promise<void> | undefined {
    if (!this.#space.tryTake(kind, bytes, limit)) return this.#makeRoom(kind, bytes, limit, spare)
    if (this.#space.usedBytes > this.#space.highBytes) this.#evictSoon()
    return undefined
  }

  async #makeRoom(kind: 'packed' | 'objects', bytes: number, limit: number, spare?: Resource): Promise<void> {
    // Others take what a round frees: a second one is fair, endless ones are not.
    for (let round = 0; round < 3; round++) {
      await this.#eviction.evict(Math.max(0, Math.min(this.#space.lowBytes, limit - bytes)), { spare })
      if (this.#space.tryTake(kind, bytes, limit)) return
    }
    throw new SkimmerError('NO_SPACE', `the block store is full (${this.#space.usedBytes} of ${this.#space.capBytes} bytes, nothing left to drop); raise its cap`)
  }

  /** A raw file never costs anyone a pack: unpinned raw files may go for it, and only a pinned resource's. */
  async #takeRaw(resource: Resource, bytes: number): Promise<boolean> {
    const limit = this.#space.highBytes
    if (this.#space.tryTake('raw', bytes, limit)) return true
    if (resource.pinned && bytes <= limit) await this.#eviction.evict(limit - bytes, { spare: resource, rawOnly: true })
    return this.#space.tryTake('raw', bytes, limit)
  }

  #evictSoon(): void {
    const round = this.evict().catch((error: unknown) => this.#logger.error({ error: (error as Error).message }, 'making room in the block store failed')).finally(() => this.#background.delete(round))
    this.#background.add(round)
  }

  async #saveUses(): Promise<void> {
    const changed = this.list().filter(({ id, lastUse }) => this.#savedUses.get(id) !== lastUse).map(({ id, lastUse }) => [id, lastUse] as const)
    for (const [id, lastUse] of changed) this.#savedUses.set(id, lastUse)
    if (changed.length > 0) await this.#records.saveUses(changed).catch((error: unknown) => this.#logger.warn({ error: (error as Error).message }, 'could not save when resources were last used'))
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
    clearInterval(this.#timer)
    await this.#prover.close()
    await Promise.allSettled([...this.#growing.values()].map((growing) => growing.discard()))
    await Promise.allSettled([...this.#changing.values(), ...this.#background])
    await this.#saveUses()
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

function sameTable(one: BlockTable, other: BlockTable): boolean {
  return one.count === other.count && packedLength(one) === packedLength(other) && rawLength(one) === rawLength(other) && Buffer.from(one.hashes.buffer, one.hashes.byteOffset, one.hashes.byteLength).equals(other.hashes)
}
