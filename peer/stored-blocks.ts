// Which blocks of a resource are in its pack, how sure that is, and the way of one block in and out.
import { SkimmerError } from '../oci/errors.ts'
import { blockPackedLength } from '../image/block-table.ts'
import type { BlockTable } from '../image/block-table.ts'
import { isBlock } from './block-codec.ts'
import { ABSENT, STORED, UNPACKED, VERIFIED } from './block-state.ts'
import type { PackFile } from './pack-file.ts'
import type { ResourceKeeper } from './resource-keeper.ts'

/** What was verified so lately is still in the page cache, most likely; later it comes from a disk, which may have changed it. */
const SURE_SECONDS = 60

/** Seconds, 1 and up. */
const now = (): number => 1 + Math.floor(performance.now() / 1000)

export class StoredBlocks {
  readonly state: Uint8Array<SharedArrayBuffer>
  readonly #id: string
  readonly #table: BlockTable
  readonly #pack: PackFile
  readonly #keeper: ResourceKeeper
  readonly #takeRoom: (bytes: number, priority: 'demand' | 'background') => Promise<void> | undefined
  readonly #onLost: (block: number) => void
  /** When the *pack's* bytes were verified last, seconds of `now`; 0: not since the start. State 3 may come from the raw file alone. */
  readonly #packVerified: Uint32Array
  readonly #writing = new Map<number, Promise<void>>()
  #count = 0
  #bytes = 0
  #removed = false
  #busy = 0
  #whenIdle: (() => void)[] = []

  constructor(components: {
    id: string; table: BlockTable; pack: PackFile; state: Uint8Array<SharedArrayBuffer>; keeper: ResourceKeeper
    /** See ResourceKeeper.takePacked. */
    takeRoom: (bytes: number, priority: 'demand' | 'background') => Promise<void> | undefined
    onLost: (block: number) => void
  }) {
    this.#id = components.id
    this.#table = components.table
    this.#pack = components.pack
    this.#keeper = components.keeper
    this.#takeRoom = components.takeRoom
    this.#onLost = components.onLost
    this.state = components.state
    this.#packVerified = new Uint32Array(this.#table.count)
    for (let block = 0; block < this.#table.count; block++) {
      if (this.state[block] === ABSENT) continue
      this.#count++
      this.#bytes += blockPackedLength(this.#table, block)
      if (this.state[block] === VERIFIED) this.#packVerified[block] = now()
    }
  }

  get count(): number { return this.#count }
  get bytes(): number { return this.#bytes }
  get whole(): boolean { return this.#count === this.#table.count }
  get removed(): boolean { return this.#removed }
  /** Something is being written, read or proved just now. */
  get busy(): boolean { return this.#busy > 0 }

  isPackVerified(block: number): boolean {
    return this.#packVerified[block] !== 0 && this.state[block] !== ABSENT
  }

  /** Writes a verified block; two at once are one. `onStored` runs when readers can have it, once. */
  write(block: number, packed: Uint8Array, priority: 'demand' | 'background', onStored: () => void): Promise<void> {
    const already = this.#writing.get(block)
    if (already !== undefined) return already
    const writing = this.#write(block, packed, priority, onStored).finally(() => this.#writing.delete(block))
    this.#writing.set(block, writing)
    return writing
  }

  async #write(block: number, packed: Uint8Array, priority: 'demand' | 'background', onStored: () => void): Promise<void> {
    const leave = this.enter()
    let taken = 0
    try {
      // A block that is stored but doubted has its room already, and nobody drops it while it is being written.
      if (this.state[block] === ABSENT) {
        const room = this.#takeRoom(packed.length, priority)
        if (room !== undefined) await room
        taken = packed.length
      }
      this.#pack.prepare()
      await this.#pack.write(this.#table.packedOffsets[block], packed)
      this.#pack.note(block, true)
      if (this.#removed) throw this.gone()
      this.#packVerified[block] = now()
      Atomics.store(this.state, block, VERIFIED)
      if (taken > 0) {
        this.#count++
        this.#bytes += taken
        taken = 0
      }
    } catch (error) {
      if (error instanceof SkimmerError && error.code === 'NO_SPACE') this.#keeper.metrics.refused()
      throw error
    } finally {
      if (taken > 0) this.#keeper.give('packed', taken)
      leave()
    }
    onStored()
  }

  /** A stored block's bytes, verified if that was not done in the last minute or is asked for; one that is not what it was is dropped. */
  async read(block: number, options: { verify?: boolean } = {}): Promise<Buffer | undefined> {
    if (this.state[block] === ABSENT) return undefined
    const leave = this.enter()
    try {
      const packed = await this.#pack.read(this.#table.packedOffsets[block], blockPackedLength(this.#table, block))
      if (this.#removed) return undefined
      // A thread that found a verified block unreadable has put its state back to "stored".
      const sure = options.verify !== true && this.state[block] >= VERIFIED && this.#packVerified[block] !== 0 && now() - this.#packVerified[block] < SURE_SECONDS
      if (packed !== undefined && (sure || isBlock(this.#table, block, packed))) {
        if (!sure) this.#keeper.metrics.verified()
        if (!sure) this.#packVerified[block] = now()
        Atomics.compareExchange(this.state, block, STORED, VERIFIED)
        return packed
      }
      this.drop(block)
      return undefined
    } finally {
      leave()
    }
  }

  /** A block that is damaged on disk is not here any more. */
  drop(block: number): void {
    // Written anew this moment: what was read was the old bytes.
    if (this.#writing.has(block) || Atomics.exchange(this.state, block, ABSENT) === ABSENT) return
    const bytes = blockPackedLength(this.#table, block)
    this.#packVerified[block] = 0
    this.#count--
    this.#bytes -= bytes
    this.#keeper.give('packed', bytes)
    this.#keeper.metrics.corrupt()
    this.#keeper.logger.warn({ resource: this.#id, block }, 'dropped a block that is damaged on disk')
    try {
      this.#pack.note(block, false)
    } catch (error) {
      this.#keeper.logger.warn({ resource: this.#id, block, err: error }, 'could not note that a block is gone; it will be verified again after a restart')
    }
    this.#onLost(block)
  }

  /** The proof has seen all packed bytes; `unpacked`: they are also in the raw file that was just published. */
  proved(unpacked: boolean): void {
    const to = unpacked ? UNPACKED : VERIFIED
    for (let block = 0; block < this.#table.count; block++) {
      for (let is = Atomics.load(this.state, block); is !== ABSENT && is < to; is = Atomics.load(this.state, block)) {
        this.#packVerified[block] = now()
        if (Atomics.compareExchange(this.state, block, is, to) === is) break
      }
    }
  }

  /** There is no raw file any more. Blocks whose pack bytes were not looked at since the start must be verified before the pack serves them. */
  packOnly(): void {
    for (let block = 0; block < this.#table.count; block++) Atomics.compareExchange(this.state, block, UNPACKED, this.#packVerified[block] !== 0 ? VERIFIED : STORED)
  }

  /** Something that was read was wrong all the same: each block must be verified again before it is used. */
  doubt(): void {
    for (let block = 0; block < this.#table.count; block++) {
      this.#packVerified[block] = 0
      for (const sure of [UNPACKED, VERIFIED]) Atomics.compareExchange(this.state, block, sure, STORED)
    }
  }

  /** No block is here any more, and none will be. */
  clear(): void {
    this.#removed = true
    for (let block = 0; block < this.#table.count; block++) Atomics.store(this.state, block, ABSENT)
    this.#keeper.give('packed', this.#bytes)
    this.#count = 0
    this.#bytes = 0
  }

  /** Until the answer is called, the pack's fd stays open. NOT_FOUND when the resource was removed. */
  enter(): () => void {
    if (this.#removed) throw this.gone()
    this.#busy++
    return () => {
      if (--this.#busy === 0) for (const resolve of this.#whenIdle.splice(0)) resolve()
    }
  }

  async idle(): Promise<void> {
    while (this.#busy > 0) await new Promise<void>((resolve) => this.#whenIdle.push(resolve))
  }

  gone(): SkimmerError {
    return new SkimmerError('NOT_FOUND', `${this.#id} was removed from the block store`)
  }
}
