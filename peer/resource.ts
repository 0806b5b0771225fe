// A resource in the block store: which of its blocks are here, putting and reading them, and the proof of the whole.
import { EventEmitter } from 'node:events'
import type { Logger } from 'pino'
import { SkimmerError } from '../oci/errors.ts'
import { blockAt, blockPackedLength, rawLength } from '../image/block-table.ts'
import type { BlockTable } from '../image/block-table.ts'
import { isBlock, isPlain, unpackBlockAside, verifyBlock } from './block-codec.ts'
import { ABSENT, STORED, UNPACKED, VERIFIED } from './block-state.ts'
import type { HeldRing } from './held-blocks.ts'
import { readExactly } from './pack-file.ts'
import type { PackFile } from './pack-file.ts'
import type { Prover } from './proof.ts'
import type { RawFile } from './raw-file.ts'
import { READERS } from './shared-resource.ts'
import type { SharedResource } from './shared-resource.ts'
import type { StoreMetrics } from './store-metrics.ts'
import type { ResourceRecord } from './store-records.ts'

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
  readonly pack: PackFile
  readonly raw: RawFile
  /** True where the *pack's* bytes were verified since the start: state 3 may come from the raw file alone. */
  readonly #packVerified: Uint8Array
  readonly #record: ResourceRecord
  readonly #keeper: ResourceKeeper
  readonly #lastUse = new Float64Array(new SharedArrayBuffer(8))
  readonly #heldAt: Int32Array<SharedArrayBuffer>
  readonly #pins = new Set<string>()
  readonly #lastingPins: Set<string>
  readonly #writing = new Map<number, Promise<void>>()
  #shared: SharedResource | undefined
  #proof: Promise<void> | undefined
  #stored = 0
  #storedBytes = 0
  #quarantined: string | undefined
  #removed = false
  #busy = 0
  #whenIdle: (() => void)[] = []

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
    this.pack = parts.pack
    this.raw = parts.raw
    this.#record = parts.record
    this.#keeper = parts.keeper
    this.#lastUse[0] = parts.lastUse
    this.#lastingPins = new Set(parts.record.pins)
    const { count } = this.table
    this.#packVerified = new Uint8Array(count)
    this.#heldAt = new Int32Array(new SharedArrayBuffer(count * 4))
    for (let block = 0; block < count; block++) {
      if (this.state[block] === ABSENT) continue
      this.#stored++
      this.#storedBytes += blockPackedLength(this.table, block)
      if (this.state[block] === VERIFIED) this.#packVerified[block] = 1
    }
  }

  get whole(): boolean { return this.#stored === this.table.count }
  get proved(): boolean { return this.#record.proved }
  get quarantined(): boolean { return this.#quarantined !== undefined }
  /** Packed bytes of the blocks that are here. */
  get storedBytes(): number { return this.#storedBytes }
  get storedBlocks(): number { return this.#stored }
  /** Bytes of the raw file that count against the cap. */
  get rawBytes(): number { return this.#record.raw ? rawLength(this.table) : 0 }
  get removed(): boolean { return this.#removed }
  /** Milliseconds since 1970; reads by threads count. */
  get lastUse(): number { return this.#lastUse[0] }
  get pinned(): boolean { return this.#pins.size > 0 || this.#lastingPins.size > 0 }
  get pins(): string[] { return [...new Set([...this.#lastingPins, ...this.#pins])] }
  /** Something is being written, read or proved just now. */
  get busy(): boolean { return this.#busy > 0 }
  get record(): ResourceRecord { return { ...this.#record, pins: [...this.#lastingPins] } }

  /** While pinned it is not removed or evicted. A `lasting` pin is also there after a restart, until its owner unpins. */
  pin(owner: string, options: { lasting?: boolean } = {}): void {
    this.touch()
    if (options.lasting !== true) this.#pins.add(owner)
    else if (!this.#lastingPins.has(owner)) {
      this.#lastingPins.add(owner)
      this.#savePins()
    }
  }

  unpin(owner: string): void {
    this.#pins.delete(owner)
    if (this.#lastingPins.delete(owner)) this.#savePins()
    if (!this.pinned) this.#keeper.droppable()
  }

  #savePins(): void {
    if (this.#removed) return
    this.#keeper.save(this, false).catch((error: unknown) => this.#keeper.logger.warn({ resource: this.id, error: (error as Error).message }, 'a pin could not be saved'))
  }

  touch(): void {
    this.#lastUse[0] = this.#keeper.now()
  }

  /**
   * Verifies and stores one block. Resolves when a reader can have it; storing one that is here already is nothing.
   * Errors: DIGEST_MISMATCH (nothing stored), NO_SPACE (disk or cap full: serve it with holdBlock), NOT_FOUND when the resource was removed.
   */
  putBlock(block: number, packed: Uint8Array, options: { priority?: 'demand' | 'background' } = {}): Promise<void> {
    try {
      this.#checkBlock(block)
      this.#verify(block, packed)
      if (this.state[block] >= VERIFIED) return Promise.resolve()
    } catch (error) {
      return Promise.reject(error as Error)
    }
    const already = this.#writing.get(block)
    if (already !== undefined) return already
    const writing = this.#write(block, packed, options.priority ?? 'demand').finally(() => this.#writing.delete(block))
    this.#writing.set(block, writing)
    return writing
  }

  async #write(block: number, packed: Uint8Array, priority: 'demand' | 'background'): Promise<void> {
    const leave = this.#enter()
    let taken = 0
    try {
      this.touch()
      if (this.state[block] === ABSENT) {
        const room = this.#keeper.takePacked(this, packed.length, priority)
        if (room !== undefined) await room
        taken = packed.length
      }
      await this.pack.write(this.table.packedOffsets[block], packed)
      this.pack.note(block, true)
      if (this.#removed) throw this.#gone()
      this.#packVerified[block] = 1
      const before = Atomics.exchange(this.state, block, VERIFIED)
      if (before === ABSENT) {
        this.#stored++
        this.#storedBytes += packed.length
        taken = 0
      }
    } catch (error) {
      if (error instanceof SkimmerError && error.code === 'NO_SPACE') this.#keeper.metrics.refused()
      throw error
    } finally {
      if (taken > 0) this.#keeper.give('packed', taken)
      leave()
    }
    this.emit('block', block)
    if (this.whole) this.emit('whole')
  }

  /**
   * For a block that found no room: keeps it in memory for a while, so that threads can read it; it stays absent.
   * Throws DIGEST_MISMATCH.
   */
  holdBlock(block: number, packed: Uint8Array): void {
    this.#checkBlock(block)
    this.#verify(block, packed)
    this.#keeper.ring.hold(this.#heldAt, block, packed)
  }

  /** Throws DIGEST_MISMATCH unless `packed` is this block; stores nothing. */
  verify(block: number, packed: Uint8Array): void {
    this.#checkBlock(block)
    this.#verify(block, packed)
  }

  /** Whether the pack holds this block and its bytes were verified since the start: then they may be read from `shared().packFd` as they are. */
  isPackVerified(block: number): boolean {
    return this.#packVerified[block] === 1
  }

  /** Makes sure of a block that is stored: true when it is here and right, false when it is not here (any more). */
  async check(block: number): Promise<boolean> {
    this.#checkBlock(block)
    if (this.state[block] >= VERIFIED) return true
    if (this.state[block] === ABSENT) return false
    return (await this.#readVerified(block, true)) !== undefined
  }

  /** The packed bytes, verified. NOT_FOUND when the block is not here (or was found damaged just now), FORBIDDEN when quarantined. */
  async readPacked(block: number): Promise<Buffer> {
    this.#checkBlock(block)
    if (this.quarantined) throw new SkimmerError('FORBIDDEN', `${this.id} is quarantined: ${this.#quarantined}; its blocks are not given to anyone`)
    const packed = this.state[block] === ABSENT ? undefined : await this.#readVerified(block, false)
    if (packed === undefined) throw this.#missing(block, block + 1)
    return packed
  }

  /**
   * Bytes of the stream, all of whose blocks must be here: NOT_FOUND names the first that is not. INVALID_ARGUMENT beyond the end.
   */
  async readRaw(offset: number, length: number): Promise<Buffer> {
    const { table } = this
    if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length) || offset < 0 || length < 0 || offset + length > rawLength(table)) {
      throw new SkimmerError('INVALID_ARGUMENT', `${this.id}: ${length} bytes at ${offset} are outside of its ${rawLength(table)} bytes`)
    }
    if (length === 0) return Buffer.alloc(0)
    const first = blockAt(table, offset)
    const last = blockAt(table, offset + length - 1)
    this.touch()
    const whole = await this.#readRawFile(first, last, offset, length)
    if (whole !== undefined) return whole
    const into = Buffer.allocUnsafeSlow(length)
    for (let block = first; block <= last; block++) {
      const packed = this.state[block] === ABSENT ? undefined : await this.#readVerified(block, false)
      if (packed === undefined) throw this.#missing(block, last + 1)
      const raw = await unpackBlockAside(this.id, table, block, packed)
      const start = table.rawOffsets[block]
      into.set(raw.subarray(Math.max(0, offset - start), Math.min(raw.length, offset + length - start)), Math.max(0, start - offset))
    }
    return into
  }

  async #readRawFile(first: number, last: number, offset: number, length: number): Promise<Buffer | undefined> {
    for (let block = first; block <= last; block++) if (this.state[block] !== UNPACKED) return undefined
    Atomics.add(this.raw.cell, READERS, 1)
    try {
      const { fd } = this.raw
      return fd < 0 ? undefined : await readExactly(fd, offset, length)
    } finally {
      Atomics.sub(this.raw.cell, READERS, 1)
    }
  }

  /** Reads a stored block and verifies it if that was not done since the start (or `doubted`); drops it when it is not what it was. */
  async #readVerified(block: number, doubted: boolean): Promise<Buffer | undefined> {
    const leave = this.#enter()
    try {
      this.touch()
      const packed = await this.pack.read(this.table.packedOffsets[block], blockPackedLength(this.table, block))
      if (this.#removed) return undefined
      const sure = !doubted && this.#packVerified[block] === 1 && this.state[block] >= VERIFIED
      if (packed !== undefined && (sure || isBlock(this.table, block, packed))) {
        if (!sure) this.#keeper.metrics.verified()
        this.#packVerified[block] = 1
        Atomics.compareExchange(this.state, block, STORED, VERIFIED)
        return packed
      }
      this.#drop(block)
      return undefined
    } finally {
      leave()
    }
  }

  /** A block that is damaged on disk is not here any more. */
  #drop(block: number): void {
    // Written anew this moment: what was read was the old bytes.
    if (this.#writing.has(block) || Atomics.exchange(this.state, block, ABSENT) === ABSENT) return
    const bytes = blockPackedLength(this.table, block)
    this.#packVerified[block] = 0
    this.#stored--
    this.#storedBytes -= bytes
    this.#keeper.give('packed', bytes)
    this.#keeper.metrics.corrupt()
    this.#keeper.logger.warn({ resource: this.id, block }, 'dropped a block that is damaged on disk')
    try {
      this.pack.note(block, false)
    } catch (error) {
      this.#keeper.logger.warn({ resource: this.id, block, error: (error as Error).message }, 'could not note that a block is gone; it will be verified again after a restart')
    }
    this.emit('lost', block)
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
    if (this.diffId === undefined) throw new SkimmerError('INVALID_ARGUMENT', `${this.id}: there is no diffID to prove it against`)
    if (this.quarantined) throw new SkimmerError('DIGEST_MISMATCH', `${this.id} is quarantined: ${this.#quarantined}`)
    if (!this.whole) throw new SkimmerError('CONFLICT', `${this.id}: only ${this.#stored} of ${this.table.count} blocks are here; bring the others first`)
    const plain = isPlain(this.table)
    if (this.proved && (!wantRaw || this.raw.fd >= 0)) return
    const leave = this.#enter()
    let rawTaken = 0
    try {
      if (wantRaw && !plain && await this.#keeper.takeRaw(this, rawLength(this.table))) rawTaken = rawLength(this.table)
      const answer = await this.#keeper.prover.prove({ id: this.id, table: this.table, packFd: this.pack.fd, digest: this.diffId, rawPath: rawTaken > 0 ? this.raw.path : undefined })
      if (this.#removed) throw this.#gone()
      if (answer.result === 'failed') throw new SkimmerError('UNAVAILABLE', `${this.id}: could not be proved: ${answer.reason}`)
      if (answer.result === 'false') {
        this.#keeper.metrics.proof('quarantined')
        await this.#keeper.quarantine(this.id, answer.reason)
        throw new SkimmerError('DIGEST_MISMATCH', `${this.id}: ${answer.reason}; it is quarantined`)
      }
      if (answer.result === 'damaged') {
        for (const block of answer.blocks) this.#drop(block)
        this.#keeper.metrics.proof('failed')
        throw new SkimmerError('NOT_FOUND', `${this.id}: ${answer.blocks.length} blocks are damaged on disk and were dropped; bring them and prove again`, { details: { blocks: answer.blocks.slice(0, 100) } })
      }
      this.#record.proved = true
      this.#record.raw = answer.raw
      await this.#keeper.save(this, true)
      const unpacked = plain || (answer.raw && this.raw.publish(rawLength(this.table)))
      if (plain) this.raw.borrow(this.pack.fd)
      if (answer.raw) rawTaken = 0
      this.#packVerified.fill(1)
      for (let block = 0; block < this.table.count; block++) this.#raise(block, unpacked ? UNPACKED : VERIFIED)
      this.#keeper.metrics.proof('proved')
    } finally {
      if (rawTaken > 0) this.#keeper.give('raw', rawTaken)
      leave()
    }
    this.emit('proved')
  }

  #raise(block: number, to: number): void {
    for (let now = Atomics.load(this.state, block); now !== ABSENT && now < to; now = Atomics.load(this.state, block)) {
      if (Atomics.compareExchange(this.state, block, now, to) === now) return
    }
  }

  /** What a thread needs; the same object every time. Keep the resource pinned while threads have it. */
  shared(): SharedResource {
    const { id, number, table, state } = this
    this.#shared ??= { id, number, table, state, packFd: this.pack.fd, rawFdCell: this.raw.cell, lastUse: this.#lastUse, held: { ring: this.#keeper.ring.bytes, at: this.#heldAt } }
    return this.#shared
  }

  /** For the store: gives the raw file's room back; reads go to the pack from now on. Answers the bytes freed. */
  dropRaw(): number {
    const bytes = this.rawBytes
    if (bytes === 0) return 0
    this.#record.raw = false
    // Blocks whose pack bytes were not looked at since the start must be verified before the pack serves them.
    for (let block = 0; block < this.table.count; block++) Atomics.compareExchange(this.state, block, UNPACKED, this.#packVerified[block] === 1 ? VERIFIED : STORED)
    this.raw.unlink()
    this.#keeper.give('raw', bytes)
    void this.raw.retire()
    this.#keeper.save(this, false).catch((error: unknown) => this.#keeper.logger.warn({ resource: this.id, error: (error as Error).message }, 'could not note that a raw file is gone'))
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
    if (this.#removed) return 0
    this.#removed = true
    const bytes = this.#storedBytes + this.rawBytes
    this.#keeper.give('packed', this.#storedBytes)
    this.#keeper.give('raw', this.rawBytes)
    for (let block = 0; block < this.table.count; block++) Atomics.store(this.state, block, ABSENT)
    this.#stored = 0
    this.#storedBytes = 0
    this.pack.unlink()
    this.raw.unlink()
    this.emit('removed')
    await this.release()
    this.pack.unlink() // A write that was under way may have made its state file anew.
    return bytes
  }

  /** For the store: lets go of fds, once nothing uses them. False when threads still read as `signal` fired. */
  async release(signal?: AbortSignal): Promise<boolean> {
    while (this.#busy > 0) await new Promise<void>((resolve) => this.#whenIdle.push(resolve))
    if (!await this.raw.retire(signal)) return false
    this.pack.close()
    return true
  }

  #enter(): () => void {
    if (this.#removed) throw this.#gone()
    this.#busy++
    return () => {
      if (--this.#busy > 0) return
      for (const resolve of this.#whenIdle.splice(0)) resolve()
    }
  }

  #verify(block: number, packed: Uint8Array): void {
    try {
      verifyBlock(this.id, this.table, block, packed)
    } catch (error) {
      this.#keeper.metrics.corrupt()
      throw error
    }
    this.#keeper.metrics.verified()
  }

  #checkBlock(block: number): void {
    if (!Number.isInteger(block) || block < 0 || block >= this.table.count) throw new SkimmerError('INVALID_ARGUMENT', `${this.id} has blocks 0 to ${this.table.count - 1}, not ${block}`)
  }

  #missing(from: number, to: number): SkimmerError {
    return new SkimmerError('NOT_FOUND', `${this.id}: block ${from} is not here; bring it first`, { details: { from, to } })
  }

  #gone(): SkimmerError {
    return new SkimmerError('NOT_FOUND', `${this.id} was removed from the block store`)
  }
}
