// Takes raw blocks as they are cut, has them compressed several at once, and hands them on in order with their hashes.
import { hash } from 'node:crypto'
import { BlockCompressor } from './block-compressor.ts'
import { CODEC_RAW, CODEC_ZSTD } from './block-table.ts'

/** A block as it goes into the pack. */
export interface PackedBlock {
  readonly packed: Uint8Array
  readonly rawLength: number
  /** CODEC_RAW when compressing does not shrink it, else CODEC_ZSTD: one frame that states its content size. */
  readonly codec: number
  /** sha256 of `packed`. */
  readonly hash: Uint8Array
}

/** Takes the blocks of a layer in stream order. The next one comes when the promise, if any, has resolved. */
export interface PackSink {
  block(block: PackedBlock): void | Promise<void>
}

/** Blocks being compressed or waiting for their turn: enough to keep every core busy, few enough for a few MiB a layer. */
const MOST_PENDING = 8
/** Contexts of zstd a layer: libuv has four threads. */
const LANES = 4

export class BlockPacker {
  readonly #sink: PackSink
  readonly #compressor: BlockCompressor
  readonly #pending: Promise<PackedBlock>[] = []
  #running: Promise<void> | undefined
  #failure: unknown
  #changed: (() => void) | undefined

  constructor(sink: PackSink, options: { level: number }) {
    this.#sink = sink
    this.#compressor = new BlockCompressor({ lanes: LANES, level: options.level })
  }

  /** Starts a block on its way. `raw` must not change until it is through. Errors come out of room() and finish(). */
  add(raw: Uint8Array): void {
    const packed = this.#pack(raw)
    packed.catch(() => {}) // it is looked at in its turn
    this.#pending.push(packed)
    this.#running ??= this.#run()
  }

  /** Resolves when another block may be added. */
  async room(): Promise<void> {
    while (this.#failure === undefined && this.#pending.length >= MOST_PENDING) {
      await new Promise<void>((resolve) => {
        this.#changed = resolve
      })
    }
    if (this.#failure !== undefined) throw this.#failure
  }

  /** Resolves when the sink has taken every block; no more may be added. */
  async finish(): Promise<void> {
    await this.#running
    this.#compressor.close()
    if (this.#failure !== undefined) throw this.#failure
  }

  async #run(): Promise<void> {
    try {
      while (this.#pending.length > 0) {
        const taken = this.#sink.block(await this.#pending[0])
        if (taken !== undefined) await taken
        this.#pending.shift()
        this.#changed?.()
      }
    } catch (error) {
      this.#failure = error
      this.#pending.length = 0
      this.#changed?.()
    }
    this.#running = undefined
  }

  async #pack(raw: Uint8Array): Promise<PackedBlock> {
    const frame = await this.#compressor.compress(raw)
    const shrinks = frame.length < raw.length
    const packed = shrinks ? frame : raw
    return { packed, rawLength: raw.length, codec: shrinks ? CODEC_ZSTD : CODEC_RAW, hash: hash('sha256', packed, 'buffer') }
  }
}
