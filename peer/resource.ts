// A resource in the block store: putting and reading its blocks, pins, and the proof of the whole.
import { EventEmitter } from 'node:events'
import type { Logger } from 'pino'
import { SkimmerError } from '../oci/errors.ts'
import { blockAt, rawLength } from '../image/block-table.ts'
import type { BlockTable } from '../image/block-table.ts'
import { isPlain, unpackBlockAside, verifyBlock } from './block-codec.ts'
import { UNPACKED, VERIFIED } from './block-state.ts'
import type { HeldRing } from './held-blocks.ts'
import { readExactly } from './pack-file.ts'
import type { PackFile } from './pack-file.ts'
import type { Prover } from './proof.ts'
import type { RawFile } from './raw-file.ts'
import { READERS } from './shared-resource.ts'
import type { SharedResource } from './shared-resource.ts'
import type { StoreMetrics } from './store-metrics.ts'
import type { ResourceRecord } from './store-records.ts'
import { StoredBlocks } from './stored-blocks.ts'

interface ResourceEvents {
  block: [block: number] // stored and verified
  lost: [block: number] // found damaged on disk and dropped
  whole: []
  proved: []
  quarantined: [reason: string]
  removed: []
}

/** What the store does for its resources. */
export interface ResourceKeeper {
  readonly logger: Logger
  readonly metrics: StoreMetrics
  readonly prover: Prover
  readonly ring: HeldRing
  readonly now: () => number
  /** Takes room in the account, dropping other things if it must; NO_SPACE. Undefined when there was room at once: nothing to wait for. */
  takePacked(resource: Resource, bytes: number, priority: 'demand' | 'background'): Promise<void> | undefined
  /** The same for a raw file, which is never worth what others hold; false when there is no room. */
  takeRaw(resource: Resource, bytes: number): Promise<boolean>
  give(kind: 'packed' | 'raw', bytes: number): void
  save(resource: Resource, durable: boolean): Promise<void>
  quarantine(id: string, reason: string): Promise<void>
  /** Something may be dropped now that could not before. */
  droppable(): void
}

export interface ResourceParts {
  readonly id: string
  /** Unique in this process. */
  readonly number: number
  readonly table: BlockTable
  readonly record: ResourceRecord
  readonly pack: PackFile
  readonly raw: RawFile
  readonly state: Uint8Array<SharedArrayBuffer>
  readonly lastUse: number
  readonly keeper: ResourceKeeper
}

export class Resource extends EventEmitter<ResourceEvents> {
  readonly id: string
  readonly number: number
  readonly table: BlockTable
  /** One byte a block: 0 absent, 1 stored but not verified since the last start, 2 verified, 3 verified and in the raw file. */
  readonly state: Uint8Array<SharedArrayBuffer>
  readonly diffId: string | undefined
  /** Free JSON that came with add() or seal(). */
  readonly origin: Record<string, unknown> | undefined
  readonly #pack: PackFile
  readonly #raw: RawFile
  readonly #blocks: StoredBlocks
  readonly #record: ResourceRecord
  readonly #keeper: ResourceKeeper
  readonly #lastUse = new Float64Array(new SharedArrayBuffer(8))
  readonly #heldAt: Int32Array<SharedArrayBuffer>
  readonly #pins = new Set<string>()
  readonly #lastingPins: Set<string>
  #shared: SharedResource | undefined
  #proof: Promise<void> | undefined
  #quarantined: string | undefined

  constructor(parts: ResourceParts) {
    super()
    // Every reader that waits for blocks listens; their number says nothing about a leak.
    this.setMaxListeners(0)
    this.id = parts.id
    this.number = parts.number
    this.table = parts.table
    this.state = parts.state
    this.diffId = parts.record.diffId
    this.origin = parts.record.origin
    this.#pack = parts.pack
    this.#raw = parts.raw
    this.#blocks = new StoredBlocks({ ...parts, takeRoom: (bytes, priority) => parts.keeper.takePacked(this, bytes, priority), onLost: (block) => this.emit('lost', block) })
    this.#record = { ...parts.record }
    this.#keeper = parts.keeper
    this.#lastUse[0] = parts.lastUse
    this.#lastingPins = new Set(parts.record.pins)
    this.#heldAt = new Int32Array(new SharedArrayBuffer(this.table.count * 4))
  }

  get whole(): boolean { return this.#blocks.whole }
  get proved(): boolean { return this.#record.proved }
  get quarantined(): boolean { return this.#quarantined !== undefined }
  /** Packed bytes of the blocks that are here. */
  get storedBytes(): number { return this.#blocks.bytes }
  get storedBlocks(): number { return this.#blocks.count }
  /** The raw file, while the resource is proved and has one: the stream itself, for who reads it without us. It may be unlinked later. */
  get rawPath(): string | undefined { return this.#record.proved && this.#record.raw && this.#raw.fd >= 0 ? this.#raw.path : undefined }
  /** Bytes of the raw file that count against the cap. */
  get rawBytes(): number { return this.#record.raw ? rawLength(this.table) : 0 }
  /** Milliseconds since 1970; reads by threads count. */
  get lastUse(): number { return this.#lastUse[0] }
  get pinned(): boolean { return this.#pins.size > 0 || this.#lastingPins.size > 0 }
  get pins(): string[] { return [...new Set([...this.#lastingPins, ...this.#pins])] }
  get busy(): boolean { return this.#blocks.busy }
  /** What of it the store keeps through a restart. */
  get record(): ResourceRecord { return { ...this.#record, pins: [...this.#lastingPins] } }

  /** While pinned it is not removed or evicted. A `lasting` pin is also there after a restart, until its owner unpins. */
  pin(owner: string, options: { lasting?: boolean } = {}): void {
    this.#touch()
    if (options.lasting !== true) this.#pins.add(owner)
    else if (!this.#lastingPins.has(owner)) {
      this.#lastingPins.add(owner)
      this.#save('a pin could not be saved')
    }
  }

  unpin(owner: string): void {
    this.#pins.delete(owner)
    if (this.#lastingPins.delete(owner)) this.#save('a pin could not be taken off for good')
    if (!this.pinned) this.#keeper.droppable()
  }

  #save(failure: string): void {
    if (this.#blocks.removed) return
    this.#keeper.save(this, false).catch((error: unknown) => this.#keeper.logger.warn({ resource: this.id, err: error }, failure))
  }

  #touch(): void {
    this.#lastUse[0] = this.#keeper.now()
  }

  /**
   * Verifies and stores one block. Resolves when a reader can have it; storing one that is here already is nothing.
   * Errors: DIGEST_MISMATCH (nothing stored), NO_SPACE (disk or cap full: serve it with holdBlock), NOT_FOUND when the resource was removed.
   */
  async putBlock(block: number, packed: Uint8Array, options: { priority?: 'demand' | 'background' } = {}): Promise<void> {
    this.verify(block, packed)
    if (this.state[block] >= VERIFIED) return
    this.#touch()
    await this.#blocks.write(block, packed, options.priority ?? 'demand', () => {
      this.emit('block', block)
      if (this.whole) this.emit('whole')
    })
  }

  /** For a block that found no room: keeps it in memory for a while, so that threads can read it; it stays absent. Throws DIGEST_MISMATCH. */
  holdBlock(block: number, packed: Uint8Array): void {
    this.verify(block, packed)
    this.#keeper.ring.hold(this.#heldAt, block, packed)
  }

  /** Throws DIGEST_MISMATCH unless `packed` is this block; stores nothing. */
  verify(block: number, packed: Uint8Array): void {
    this.#checkBlock(block)
    try {
      verifyBlock(this.id, this.table, block, packed)
    } catch (error) {
      this.#keeper.metrics.corrupt()
      throw error
    }
    this.#keeper.metrics.verified()
  }

  /** Whether the pack holds this block and its bytes were verified since the start: then they may be read from `shared().packFd` as they are. */
  isPackVerified(block: number): boolean {
    return this.#blocks.isPackVerified(block)
  }

  /** Makes sure of a block that is stored: true when it is here and right, false when it is not here (any more). */
  async check(block: number): Promise<boolean> {
    this.#checkBlock(block)
    return this.state[block] >= VERIFIED || (await this.#blocks.read(block, { verify: true })) !== undefined
  }

  /** The packed bytes, verified. NOT_FOUND when the block is not here (or was found damaged just now), FORBIDDEN when quarantined. */
  async readPacked(block: number): Promise<Buffer> {
    this.#checkBlock(block)
    if (this.quarantined) throw new SkimmerError('FORBIDDEN', `${this.id} is quarantined: ${this.#quarantined}; its blocks are not given to anyone`)
    return this.#readStored(block)
  }

  async #readStored(block: number): Promise<Buffer> {
    this.#touch()
    const packed = await this.#blocks.read(block)
    if (packed === undefined) throw new SkimmerError('NOT_FOUND', `${this.id}: block ${block} is not here; bring it first`, { details: { block } })
    return packed
  }

  /** Bytes of the stream, all of whose blocks must be here: NOT_FOUND names the first that is not. INVALID_ARGUMENT beyond the end. */
  async readRaw(offset: number, length: number): Promise<Buffer> {
    const { table } = this
    const end = offset + length
    if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length) || offset < 0 || length < 0 || end > rawLength(table)) {
      throw new SkimmerError('INVALID_ARGUMENT', `${this.id}: ${length} bytes at ${offset} are outside of its ${rawLength(table)} bytes`)
    }
    if (length === 0) return Buffer.alloc(0)
    const first = blockAt(table, offset)
    const last = blockAt(table, end - 1)
    const unpacked = await this.#readRawFile(first, last, offset, length)
    if (unpacked !== undefined) return unpacked
    const into = Buffer.allocUnsafeSlow(length)
    for (let block = first; block <= last; block++) {
      const raw = await unpackBlockAside(this.id, table, block, await this.#readStored(block))
      const start = table.rawOffsets[block]
      into.set(raw.subarray(Math.max(0, offset - start), Math.min(raw.length, end - start)), Math.max(0, start - offset))
    }
    return into
  }

  async #readRawFile(first: number, last: number, offset: number, length: number): Promise<Buffer | undefined> {
    for (let block = first; block <= last; block++) if (this.state[block] !== UNPACKED) return undefined
    this.#touch()
    // Counted in before the cell is looked at, as threads do: see RawFile.retire().
    Atomics.add(this.#raw.cell, READERS, 1)
    try {
      const { fd } = this.#raw
      return fd < 0 ? undefined : await readExactly(fd, offset, length)
    } finally {
      Atomics.sub(this.#raw.cell, READERS, 1)
    }
  }

  /**
   * Hashes the whole stream against the diffID, off the main thread, and writes the raw file on the way unless `raw` is false or there is
   * no room. Nothing to do when that was done before. Errors: CONFLICT when not whole, DIGEST_MISMATCH when the diffID is wrong (it is
   * quarantined then), NOT_FOUND when blocks turned out damaged (they are absent now: bring them and prove again).
   */
  prove(options: { raw?: boolean } = {}): Promise<void> {
    this.#proof ??= this.#prove(options.raw ?? true).finally(() => {
      this.#proof = undefined
    })
    return this.#proof
  }

  async #prove(wantRaw: boolean): Promise<void> {
    const { diffId: digest, id, table } = this
    if (digest === undefined) throw new SkimmerError('INVALID_ARGUMENT', `${id}: there is no diffID to prove it against`)
    if (this.quarantined) throw new SkimmerError('DIGEST_MISMATCH', `${id} is quarantined: ${this.#quarantined}`)
    if (!this.whole) throw new SkimmerError('CONFLICT', `${id}: only ${this.storedBlocks} of ${table.count} blocks are here; bring the others first`)
    if (this.proved && (!wantRaw || this.#raw.fd >= 0)) return
    const plain = isPlain(table)
    const leave = this.#blocks.enter()
    let taken = 0
    try {
      if (wantRaw && !plain && await this.#keeper.takeRaw(this, rawLength(table))) taken = rawLength(table)
      const answer = await this.#keeper.prover.prove({ id, table, packFd: this.#pack.fd, digest, rawPath: taken > 0 ? this.#raw.path : undefined })
      if (this.#blocks.removed) throw this.#blocks.gone()
      if (answer.result !== 'proved') {
        this.#keeper.metrics.proof(answer.result === 'false' ? 'quarantined' : 'failed')
        if (answer.result === 'failed') throw new SkimmerError('UNAVAILABLE', `${id}: could not be proved: ${answer.reason}`)
        if (answer.result === 'damaged') {
          for (const block of answer.blocks) this.#blocks.drop(block)
          throw new SkimmerError('NOT_FOUND', `${id}: ${answer.blocks.length} blocks are damaged on disk and were dropped; bring them and prove again`, { details: { blocks: answer.blocks.slice(0, 100) } })
        }
        await this.#keeper.quarantine(id, answer.reason)
        throw new SkimmerError('DIGEST_MISMATCH', `${id}: ${answer.reason}; it is quarantined`)
      }
      const unpacked = answer.raw && this.#raw.publish(rawLength(table))
      await this.#recordProof(unpacked)
      if (unpacked) taken = 0
      if (plain) this.#raw.borrow(this.#pack.fd)
      this.#blocks.proved(plain || unpacked)
      this.#keeper.metrics.proof('proved')
    } finally {
      if (taken > 0) this.#keeper.give('raw', taken)
      leave()
    }
    this.emit('proved')
  }

  /** Only what is recorded for good counts: otherwise the raw file would be in the way of the next attempt. */
  async #recordProof(raw: boolean): Promise<void> {
    const before = { ...this.#record }
    Object.assign(this.#record, { proved: true, raw })
    try {
      await this.#keeper.save(this, true)
    } catch (error) {
      Object.assign(this.#record, before)
      this.#raw.unlink()
      void this.#raw.retire()
      throw new SkimmerError('UNAVAILABLE', `${this.id}: its proof could not be recorded; check the disk`, { cause: error })
    }
  }

  /** What a thread needs; the same object every time. Keep the resource pinned while threads have it. */
  shared(): SharedResource {
    const { id, number, table, state } = this
    this.#shared ??= { id, number, table, state, packFd: this.#pack.fd, rawFdCell: this.#raw.cell, lastUse: this.#lastUse, held: { ring: this.#keeper.ring.bytes, at: this.#heldAt } }
    return this.#shared
  }

  /** For the store: gives the raw file's room back; reads go to the pack from now on. Answers the bytes freed. */
  dropRaw(): number {
    const bytes = this.rawBytes
    if (bytes === 0) return 0
    this.#record.raw = false
    this.#blocks.packOnly()
    this.#raw.unlink()
    this.#keeper.give('raw', bytes)
    void this.#raw.retire()
    this.#save('could not note that a raw file is gone')
    return bytes
  }

  /** For the store: marks it; what this means for reads is said at readPacked(). */
  setQuarantine(reason: string | undefined): void {
    const before = this.#quarantined
    this.#quarantined = reason
    if (reason !== undefined && before === undefined) this.emit('quarantined', reason)
  }

  /** For the store: no block is here any more; its files go, and its fds when no thread is inside. Answers the bytes freed. */
  async dispose(): Promise<number> {
    if (this.#blocks.removed) return 0
    const { rawBytes } = this
    const bytes = this.#blocks.bytes + rawBytes
    this.#blocks.clear()
    this.#keeper.give('raw', rawBytes)
    this.#unlink()
    this.emit('removed')
    await this.release()
    this.#unlink() // Writes and proofs that were under way may have made files anew.
    return bytes
  }

  #unlink(): void {
    this.#pack.unlink()
    this.#raw.unlink()
  }

  /** For the store: lets go of fds, once nothing uses them. False when threads still read as `signal` fired. */
  async release(signal?: AbortSignal): Promise<boolean> {
    await this.#blocks.idle()
    if (!await this.#raw.retire(signal)) return false
    this.#pack.close()
    return true
  }

  #checkBlock(block: number): void {
    if (!Number.isInteger(block) || block < 0 || block >= this.table.count) throw new SkimmerError('INVALID_ARGUMENT', `${this.id} has blocks 0 to ${this.table.count - 1}, not ${block}`)
  }
}
