// A resource that is being made here: blocks are appended as they come into being, readers may follow, and at the end it gets its name.
import { EventEmitter } from 'node:events'
import { SkimmerError } from '../oci/errors.ts'
import type { BlockTable } from '../image/block-table.ts'
import { GrowingTable } from './growing-table.ts'
import type { PackFile } from './pack-file.ts'
import type { Resource } from './resource.ts'

/** Appends are written together from this size on: fewer, larger writes. */
const BATCH_BYTES = 1024 * 1024
/** append() makes its caller wait while more than this is not yet written: it bounds memory when the disk is slower than the maker. */
const MAX_UNWRITTEN_BYTES = 8 * 1024 * 1024

interface GrowingEvents {
  block: [block: number]
  sealed: [resource: Resource]
  discarded: []
}

/** What the store does for a growing resource. */
export interface GrowingKeeper {
  /** NO_SPACE when nothing more can be dropped; undefined when there was room at once. */
  takePacked(bytes: number): Promise<void> | undefined
  /** Makes it a resource of the store, its pack in place. */
  adopt(growing: GrowingResource, id: string, table: BlockTable, options: { diffId?: string; origin?: Record<string, unknown> }): Promise<Resource>
  /** Takes its files away. */
  abandon(growing: GrowingResource, bytes: number): Promise<void>
}

const done = Promise.resolve()

export class GrowingResource extends EventEmitter<GrowingEvents> {
  readonly temporaryId: string
  readonly pack: PackFile
  readonly #keeper: GrowingKeeper
  readonly #table = new GrowingTable()
  #written = 0
  #takenBytes = 0
  #queue: Uint8Array[] = []
  #queuedBytes = 0
  #flushing: Promise<void> | undefined
  #failure: SkimmerError | undefined
  #sealed: Resource | undefined
  #ended = false
  #reads = 0
  #whenUnread: (() => void)[] = []

  constructor(temporaryId: string, pack: PackFile, keeper: GrowingKeeper) {
    super()
    this.setMaxListeners(0)
    this.temporaryId = temporaryId
    this.pack = pack
    this.#keeper = keeper
  }

  /** Blocks that can be read by now. */
  get count(): number { return this.#written }
  /** Bytes of the stream and of the pack appended so far. */
  get rawLength(): number { return this.#table.rawLength }
  get packedLength(): number { return this.#table.packedLength }

  /**
   * Adds the next block. `packed` must not be changed afterwards; `hash` is its sha256, computed by the maker, who is believed.
   * Resolves when the next one is welcome, not when this one is written. Errors: NO_SPACE, and whatever an earlier write met.
   */
  append(packed: Uint8Array, rawLength: number, codec: number, hash: Uint8Array): Promise<void> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure)
    if (this.#ended) return Promise.reject(new SkimmerError('CONFLICT', `${this.temporaryId}: nothing can be appended any more`))
    try {
      this.#table.add(packed.length, rawLength, codec, hash)
    } catch (error) {
      return Promise.reject(error as Error)
    }
    this.#queue.push(packed)
    this.#queuedBytes += packed.length
    // What waits for the write under way goes out with the next one; alone, it waits for the end of this turn at most.
    if (this.#flushing === undefined) this.#flushing = this.#flush()
    return this.#queuedBytes > MAX_UNWRITTEN_BYTES ? this.#drained() : done
  }

  /** As append() for several whose bytes are only lent: resolves when they are written, or never will be. */
  async appendLent(blocks: readonly { packed: Uint8Array; rawLength: number; codec: number; hash: Uint8Array }[]): Promise<void> {
    let last = done
    for (const { packed, rawLength, codec, hash } of blocks) {
      last = this.append(packed, rawLength, codec, hash)
      last.catch(() => {}) // the next one, or the end of this, says so too
    }
    await last.finally(() => this.#flushing)
    if (this.#failure !== undefined) throw this.#failure
  }

  async #drained(): Promise<void> {
    while (this.#queuedBytes > MAX_UNWRITTEN_BYTES && this.#flushing !== undefined) await this.#flushing
    if (this.#failure !== undefined) throw this.#failure
  }

  /** Writes what is queued, batch after batch, until nothing is. Never rejects: a failure is kept for whoever comes next. */
  async #flush(): Promise<void> {
    if (this.#queuedBytes < BATCH_BYTES) await new Promise((resolve) => setImmediate(resolve))
    try {
      while (this.#queue.length > 0) {
        const batch = this.#queue
        const bytes = this.#queuedBytes
        this.#queue = []
        const room = this.#keeper.takePacked(bytes)
        if (room !== undefined) await room
        this.#takenBytes += bytes
        await this.pack.writeAll(this.#table.packedOffset(this.#written), batch)
        this.#queuedBytes -= bytes
        for (const _ of batch) this.emit('block', this.#written++)
      }
    } catch (error) {
      this.#failure = error as SkimmerError
      this.#queue = []
      this.#queuedBytes = 0
    } finally {
      this.#flushing = undefined
    }
  }

  /**
   * Resolves when the block can be read. Rejects with NOT_FOUND when it will never come (sealed without it), UNAVAILABLE when the making
   * was given up, ABORTED by `signal`.
   */
  waitFor(block: number, signal?: AbortSignal): Promise<void> {
    if (block < this.#written) return done
    return new Promise((resolve, reject) => {
      const settle = (error?: SkimmerError): void => {
        this.off('block', onBlock).off('sealed', onSealed).off('discarded', onDiscarded)
        signal?.removeEventListener('abort', onAbort)
        if (error === undefined) resolve()
        else reject(error)
      }
      const onBlock = (written: number): void => {
        if (written >= block) settle()
      }
      const onSealed = (): void => settle(new SkimmerError('NOT_FOUND', `${this.temporaryId}: it ended with ${this.#written} blocks, there is no block ${block}`))
      const onDiscarded = (): void => settle(new SkimmerError('UNAVAILABLE', `${this.temporaryId}: its making was given up`))
      const onAbort = (): void => settle(new SkimmerError('ABORTED', `${this.temporaryId}: no longer waiting for block ${block}`))
      if (signal?.aborted === true) return onAbort()
      if (this.#sealed !== undefined) return onSealed()
      if (this.#ended && this.#failure !== undefined) return onDiscarded()
      this.on('block', onBlock).on('sealed', onSealed).on('discarded', onDiscarded)
      signal?.addEventListener('abort', onAbort, { once: true })
    })
  }

  /** The packed bytes of a block that was written. NOT_FOUND when it was not, UNAVAILABLE when the making was given up. */
  async readPacked(block: number): Promise<Buffer> {
    if (this.#sealed !== undefined) return this.#sealed.readPacked(block)
    if (!(block >= 0 && block < this.#written)) throw new SkimmerError('NOT_FOUND', `${this.temporaryId}: block ${block} is not here yet`)
    if (this.#ended && this.#failure !== undefined) throw this.#failure
    this.#reads++
    try {
      const packed = await this.pack.read(this.#table.packedOffset(block), this.#table.entry(block).packedLength)
      if (packed === undefined) throw new SkimmerError('UNAVAILABLE', `${this.temporaryId}: block ${block} cannot be read back; check the disk`)
      return packed
    } finally {
      if (--this.#reads === 0) for (const resolve of this.#whenUnread.splice(0)) resolve()
    }
  }

  /** Offset, lengths, codec and hash of a block that can be read: what a reader needs to make sense of it before there is a table. */
  entry(block: number): ReturnType<GrowingTable['entry']> {
    if (!(block >= 0 && block < this.#written)) throw new SkimmerError('NOT_FOUND', `${this.temporaryId}: block ${block} is not here yet`)
    return this.#table.entry(block)
  }

  /**
   * Ends it: waits for the last write and makes it the whole resource `finalId`, without copying. When the store has that already, what it
   * lacks is filled in and that one is the answer. After an error it is discarded. Errors: NO_SPACE, INVALID_DATA, CONFLICT.
   */
  async seal(finalId: string, options: { diffId?: string; origin?: Record<string, unknown> } = {}): Promise<Resource> {
    if (this.#ended) throw new SkimmerError('CONFLICT', `${this.temporaryId}: it is ended already`)
    this.#ended = true
    try {
      while (this.#flushing !== undefined) await this.#flushing
      if (this.#failure !== undefined) throw this.#failure
      this.#sealed = await this.#keeper.adopt(this, finalId, this.#table.finish(), options)
    } catch (error) {
      await this.#abandon(error as SkimmerError)
      throw error
    }
    this.emit('sealed', this.#sealed)
    return this.#sealed
  }

  /** Gives up: what was written goes. Nothing to do after seal(). */
  async discard(): Promise<void> {
    if (this.#ended) return
    this.#ended = true
    while (this.#flushing !== undefined) await this.#flushing
    await this.#abandon(this.#failure ?? new SkimmerError('UNAVAILABLE', `${this.temporaryId}: its making was given up`))
  }

  async #abandon(why: SkimmerError): Promise<void> {
    this.#failure = why
    this.#queue = []
    await this.unread()
    await this.#keeper.abandon(this, this.#takenBytes)
    this.emit('discarded')
  }

  /** For the store: resolves when no read is under way. */
  async unread(): Promise<void> {
    while (this.#reads > 0) await new Promise<void>((resolve) => this.#whenUnread.push(resolve))
  }
}
