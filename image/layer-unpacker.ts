// A layer blob goes in piece by piece; its stream comes out in spans of whole blocks, hashed and with its files noted on the way.
import { createHash } from 'node:crypto'
import { SkimmerError } from '../oci/errors.ts'
import { BlockCutter, LONGEST_BLOCK } from './block-cutter.ts'
import type { BlockTable } from './block-table.ts'
import { FileTableEncoder } from './file-table-encoder.ts'
import { assembleLayerIndex } from './index-format.ts'
import { LayerDecoder } from './layer-decoder.ts'
import type { LayerCompression } from './layer-decoder.ts'
import { TarReader } from './tar-reader.ts'

/** Memory for one span: several blocks, so that little has to be carried over, but not more than a core's cache. */
export const SPAN_LENGTH = 1024 * 1024

export const DEFAULT_MAX_RAW_BYTES = 64 * 2 ** 30
/** zstd can say 32 KiB in one byte; real layers stay below 100. Only asked of layers beyond RATIO_FREE_BYTES. */
export const DEFAULT_MAX_RATIO = 10_000
const RATIO_FREE_BYTES = 4 * 2 ** 30

export interface UnpackOptions {
  readonly layerDigest: string
  readonly layerSize: number
  readonly compression: LayerCompression
  readonly expectedDiffId?: string
  readonly maxRawBytes?: number
  readonly maxRatio?: number
}

/** 'hungry': all input is used up. 'full': it needs memory for another span. 'ended': the whole layer was in order. */
export type UnpackState = 'hungry' | 'full' | 'ended'

export class LayerUnpacker {
  readonly #options: UnpackOptions
  readonly #decoder: LayerDecoder
  readonly #stream = createHash('sha256')
  readonly #files = new FileTableEncoder()
  readonly #cutter: BlockCutter
  readonly #tar: TarReader
  readonly #onSpan: (memory: Uint8Array, blockLengths: number[]) => void
  readonly #spare: Uint8Array[] = []
  #span: Uint8Array | undefined
  #filled = 0
  /** Blocks that end in the span. */
  #blockLengths: number[] = []
  /** The start of a block whose end the last span did not hold. */
  readonly #carried = Buffer.allocUnsafeSlow(LONGEST_BLOCK)
  #carriedLength = 0
  #length = 0
  #inputEnded = false
  #diffId = ''

  /** `onSpan` gets memory back, with the lengths of the blocks that stand one after another at its start. */
  constructor(options: UnpackOptions, onSpan: (memory: Uint8Array, blockLengths: number[]) => void) {
    this.#options = options
    this.#onSpan = onSpan
    this.#decoder = new LayerDecoder(options.compression)
    this.#cutter = new BlockCutter((length) => this.#blockLengths.push(length))
    this.#tar = new TarReader((entry, dataOffset, dataLength) => {
      this.#files.add(entry)
      this.#cutter.entry(dataOffset, dataLength)
    })
  }

  /** SPAN_LENGTH bytes of memory to fill. */
  lend(memory: Uint8Array): void {
    this.#spare.push(memory)
  }

  /** More of the blob. It must stay as it is until run() says 'hungry'. */
  push(piece: Uint8Array): void {
    this.#decoder.push(piece)
  }

  /** The blob has no more. */
  end(): void {
    this.#decoder.end()
    this.#inputEnded = true
  }

  /**
   * Works until it needs something. Throws INVALID_DATA (broken compression or tar), UNSUPPORTED (legal, but must be unpacked the ordinary
   * way), LIMIT_EXCEEDED (a bomb), DIGEST_MISMATCH (not the expected diffID); then only close() may be called.
   */
  run(): UnpackState {
    for (;;) {
      const span = this.#open()
      if (span === undefined) return 'full'
      const read = this.#decoder.read(span, this.#filled)
      if (read === 0) {
        if (!this.#inputEnded) return 'hungry'
        this.#finish()
        return 'ended'
      }
      this.#length += read
      this.#checkBomb()
      const piece = span.subarray(this.#filled, this.#filled + read)
      this.#filled += read
      this.#stream.update(piece)
      this.#tar.push(piece)
      this.#cutter.push(read)
      if (this.#filled === span.length) this.#handOn()
    }
  }

  /** After 'ended': the layer index, once the blocks' table is there. */
  index(blocks: BlockTable): { diffId: string; fileCount: number; encoded: Buffer } {
    const { layerDigest, layerSize } = this.#options
    const head = { diffId: this.#diffId, layerDigest, layerSize, blocks, fileCount: this.#files.count }
    return { diffId: head.diffId, fileCount: head.fileCount, encoded: assembleLayerIndex(head, this.#files) }
  }

  close(): void {
    this.#decoder.close()
  }

  #open(): Uint8Array | undefined {
    if (this.#span !== undefined) return this.#span
    this.#span = this.#spare.shift()
    if (this.#span === undefined) return undefined
    this.#span.set(this.#carried.subarray(0, this.#carriedLength))
    this.#filled = this.#carriedLength
    this.#carriedLength = 0
    return this.#span
  }

  #handOn(): void {
    const span = this.#span as Uint8Array
    const lengths = this.#blockLengths
    const end = lengths.reduce((sum, length) => sum + length, 0)
    this.#carried.set(span.subarray(end, this.#filled))
    this.#carriedLength = this.#filled - end
    this.#span = undefined
    this.#blockLengths = []
    this.#onSpan(span, lengths)
  }

  #finish(): void {
    this.#tar.end()
    this.#cutter.end()
    this.#handOn()
    const { layerDigest, expectedDiffId } = this.#options
    this.#diffId = `sha256:${this.#stream.digest('hex')}`
    if (expectedDiffId !== undefined && this.#diffId !== expectedDiffId) {
      throw new SkimmerError('DIGEST_MISMATCH', `layer ${layerDigest} unpacks to ${this.#diffId}, not to the diffID ${expectedDiffId} of its image's config`)
    }
  }

  #checkBomb(): void {
    const { layerDigest, layerSize, maxRawBytes = DEFAULT_MAX_RAW_BYTES, maxRatio = DEFAULT_MAX_RATIO } = this.#options
    if (this.#length > maxRawBytes) throw new SkimmerError('LIMIT_EXCEEDED', `layer ${layerDigest} unpacks to more than ${maxRawBytes} bytes`)
    if (this.#length > RATIO_FREE_BYTES && this.#length > layerSize * maxRatio) throw new SkimmerError('LIMIT_EXCEEDED', `layer ${layerDigest} unpacks to more than ${maxRatio} times its size`)
  }
}
