// A resource in the block store: learning its blocks' hashes, putting and reading the blocks, pins, and the proof of the whole.
import { EventEmitter } from 'node:events'
import { SkimmerError } from '../oci/errors.ts'
import { blockHash, blockPackedLength, CODEC_RAW, rawLength } from '../image/block-table.ts'
import type { BlockTable } from '../image/block-table.ts'
import { sha256, verifyBlock } from './block-codec.ts'
import { VERIFIED } from './block-state.ts'
import { KnownHashes } from './known-hashes.ts'
import type { PackFile } from './pack-file.ts'
import { Pins } from './pins.ts'
import type { RawFile } from './raw-file.ts'
import { RawReader } from './raw-reader.ts'
import type { ResourceKeeper, ResourceParts } from './resource-keeper.ts'
import { ResourceProof } from './resource-proof.ts'
import type { SharedResource } from './shared-resource.ts'
import type { ResourceRecord } from './store-records.ts'
import { StoredBlocks } from './stored-blocks.ts'

interface ResourceEvents {
  block: [block: number] // stored and verified
  lost: [block: number] // found damaged on disk and dropped
  learnt: [from: number, to: number] // the hashes of these blocks are known now, `to` excluded
  complete: [] // all hashes are known
  whole: []
  proved: []
  quarantined: [reason: string]
  removed: []
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
  readonly #pins: Pins
  readonly #hashes: KnownHashes
  readonly #proof: ResourceProof
  readonly #reader: RawReader
  #shared: SharedResource | undefined
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
    this.#pins = new Pins(parts.record.pins)
    this.#hashes = new KnownHashes(this.id, this.table, parts.record.open === true)
    this.#heldAt = new Int32Array(new SharedArrayBuffer(this.table.count * 4))
    this.#reader = new RawReader({ ...parts, packed: block => this.#readStored(block), touch: () => this.#touch() })
    this.#proof = new ResourceProof(this, { ...parts, record: this.#record, blocks: this.#blocks })
  }

  /** Some block's hash is not known yet: such a block cannot be stored, and must not be asked of anyone. */
  get open(): boolean { return this.#hashes.open }
  get whole(): boolean { return this.#blocks.whole }
  get proved(): boolean { return this.#record.proved }
  get quarantined(): boolean { return this.#quarantined !== undefined }
  get quarantineReason(): string | undefined { return this.#quarantined }
  /** Packed bytes of the blocks that are here. */
  get storedBytes(): number { return this.#blocks.bytes }
  get storedBlocks(): number { return this.#blocks.count }
  /** The raw file, while the resource is proved and has one: the stream itself, for who reads it without us. It may be unlinked later. */
  get rawPath(): string | undefined { return this.#record.proved && this.#record.raw && this.#raw.fd >= 0 ? this.#raw.path : undefined }
  /** Bytes of the raw file that count against the cap. */
  get rawBytes(): number { return this.#record.raw ? rawLength(this.table) : 0 }
  /** Milliseconds since 1970; reads by threads count. */
  get lastUse(): number { return this.#lastUse[0] }
  get pinned(): boolean { return this.#pins.any }
  get pins(): string[] { return this.#pins.owners }
  get busy(): boolean { return this.#blocks.busy }
  /** What of it the store keeps through a restart. */
  get record(): ResourceRecord { return { ...this.#record, pins: this.#pins.lasting } }

  /** While pinned it is not removed or evicted. A `lasting` pin is also there after a restart, until its owner unpins. */
  pin(owner: string, options: { lasting?: boolean } = {}): void {
    this.#touch()
    if (this.#pins.add(owner, options.lasting === true)) this.#save('a pin could not be saved')
  }

  unpin(owner: string): void {
    if (this.#pins.delete(owner)) this.#save('a pin could not be taken off for good')
    if (!this.pinned) this.#keeper.droppable()
  }

  #save(failure: string): void {
    if (this.#blocks.removed) return
    this.#keeper.save(this, false).catch((error: unknown) => this.#keeper.logger.warn({ resource: this.id, err: error }, failure))
  }

  #touch(): void {
    this.#lastUse[0] = this.#keeper.now()
  }

  /** Whether this block's hash is known. */
  knows(block: number): boolean {
    return this.#hashes.knows(block)
  }

  /** The first block from `from` on whose hash is not known; the number of blocks when there is none. */
  knownUntil(from: number): number {
    return this.#hashes.knownUntil(from)
  }

  /**
   * The hashes of blocks from `from` on, 32 bytes each: all or none of them are taken. INVALID_DATA when they do not fit or one is known to
   * be another, NOT_FOUND when the resource was removed. Listeners of 'learnt' and 'complete' have run when it returns.
   */
  learn(from: number, hashes: Uint8Array): void {
    if (this.#blocks.removed) throw this.#blocks.gone()
    const fresh = this.#hashes.learn(from, hashes)
    for (const run of fresh) {
      this.#keeper.learnt(this, run.from, run.to)
      this.emit('learnt', run.from, run.to)
    }
    if (fresh.length > 0 && !this.open) this.emit('complete')
  }

  /** Whether `table` cuts the same stream in the same way, with the same hashes as far as both know them. `open`: zeros in it are unknown ones. */
  agrees(table: BlockTable, open: boolean): boolean {
    return this.#hashes.agrees(table, open)
  }

  /**
   * Stores a block that comes from the source itself: its hash is learnt, or compared when it is known. `bytes` must not change until this
   * resolves. Errors as putBlock(), and CONFLICT when the bytes are not those that were known: the source has changed.
   */
  async fillBlock(block: number, bytes: Uint8Array, options: { priority?: 'demand' | 'background' } = {}): Promise<void> {
    this.#checkBlock(block)
    if (bytes.length !== blockPackedLength(this.table, block) || this.table.codecs[block] !== CODEC_RAW) throw new SkimmerError('INVALID_ARGUMENT', `${this.id}: ${bytes.length} bytes are not block ${block} as it lies in the stream`)
    const hash = sha256(bytes)
    if (!this.knows(block)) this.learn(block, hash)
    else if (!hash.equals(blockHash(this.table, block))) throw new SkimmerError('CONFLICT', `${this.id}: block ${block} is not what it was: the source has changed; begin again`, { details: { block } })
    this.#keeper.metrics.verified()
    await this.#write(block, bytes, options.priority)
  }

  /**
   * Verifies and stores one block. Resolves when a reader can have it; storing one that is here already is nothing.
   * Errors: DIGEST_MISMATCH (nothing stored), NO_SPACE (disk or cap full: serve it with holdBlock), NOT_FOUND when the resource was removed,
   * INVALID_ARGUMENT when its hash is not known.
   */
  async putBlock(block: number, packed: Uint8Array, options: { priority?: 'demand' | 'background' } = {}): Promise<void> {
    this.verify(block, packed)
    await this.#write(block, packed, options.priority)
  }

  async #write(block: number, packed: Uint8Array, priority: 'demand' | 'background' = 'demand'): Promise<void> {
    if (this.state[block] >= VERIFIED) return
    this.#touch()
    await this.#blocks.write(block, packed, priority, () => {
      this.emit('block', block)
      if (this.whole) this.emit('whole')
    })
  }

  /** For a block that found no room: keeps it in memory for a while, so that threads can read it; it stays absent. Throws DIGEST_MISMATCH. */
  holdBlock(block: number, packed: Uint8Array): void {
    this.verify(block, packed)
    this.#keeper.ring.hold(this.#heldAt, block, packed)
  }

  /** Throws DIGEST_MISMATCH unless `packed` is this block, INVALID_ARGUMENT when its hash is not known; stores nothing. */
  verify(block: number, packed: Uint8Array): void {
    this.#checkBlock(block)
    if (!this.knows(block)) throw new SkimmerError('INVALID_ARGUMENT', `${this.id}: the hash of block ${block} is not known yet`, { details: { block } })
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
  readRaw(offset: number, length: number): Promise<Buffer> {
    return this.#reader.read(offset, length)
  }

  /**
   * Hashes the whole stream against the diffID, off the main thread, and writes the raw file on the way unless `raw` is false or there is
   * no room. Nothing to do when that was done before. Errors: CONFLICT when not whole, DIGEST_MISMATCH when the diffID is wrong (it is
   * quarantined then), NOT_FOUND when blocks turned out damaged (they are absent now: bring them and prove again).
   */
  prove(options: { raw?: boolean } = {}): Promise<void> {
    return this.#proof.run(options.raw ?? true)
  }

  /**
   * For who read the whole stream while it came in and saw it hash to the diffID: as good as prove(), without reading all of it once more. Each
   * block was verified when it was stored; that together they are what they are called is what a proof adds. Makes no raw file. Errors: CONFLICT
   * when not whole, UNAVAILABLE or NO_SPACE when the blocks cannot be brought to the disk.
   */
  provedByReading(): Promise<void> {
    return this.#proof.run(false, true)
  }

  /** For the store: its whole table is saved, under this hash. */
  tableSaved(tableHash: string): void {
    this.#record.tableHash = tableHash
    delete this.#record.open
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

  /** The stream that was read from here was not what was proved: the next reads verify its blocks anew, and drop what is damaged on the disk. */
  doubt(): void {
    this.#keeper.logger.warn({ resource: this.id }, 'a proved stream was read otherwise than it was proved: its blocks are verified anew')
    this.dropRaw()
    this.#blocks.doubt()
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
