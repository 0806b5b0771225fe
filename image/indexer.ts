// The indexer: a layer blob streams in; blocks go out to a sink as they are made; at the end there is a checked layer index.
import { createHash, hash } from 'node:crypto'
import { hasCode, SkimmerError } from '../oci/errors.ts'
import { BlockCutter } from './block-cutter.ts'
import { BlockPacker } from './block-packer.ts'
import type { PackSink } from './block-packer.ts'
import { BlockTableBuilder } from './block-table-builder.ts'
import { FileTableEncoder } from './file-table-encoder.ts'
import { assembleLayerIndex, decodeLayerIndex } from './index-format.ts'
import type { LayerIndexHead } from './index-format.ts'
import { decompressLayer } from './layer-decompressor.ts'
import type { LayerCompression } from './layer-decompressor.ts'
import type { LayerIndex } from './layer-index.ts'
import { abortable } from './abortable.ts'
import { TarReader } from './tar-reader.ts'

export type { PackedBlock, PackSink } from './block-packer.ts'
export type { LayerCompression } from './layer-decompressor.ts'

export const DEFAULT_LEVEL = 1
export const DEFAULT_MAX_RAW_BYTES = 64 * 2 ** 30
/** zstd can say 32 KiB in one byte; real layers stay below 100. Only asked of layers beyond RATIO_FREE_BYTES. */
export const DEFAULT_MAX_RATIO = 10_000
const RATIO_FREE_BYTES = 4 * 2 ** 30

export interface IndexOptions {
  /** `sha256:<hex>` and size of the blob, as the manifest has them; both are checked. */
  readonly layerDigest: string
  readonly layerSize: number
  /** See LayerCompression; 'detect' is right for everything but a media type that says "uncompressed". */
  readonly compression: LayerCompression
  /** The diffID that the image's config names for this layer. */
  readonly expectedDiffId?: string
  /** Where blocks go, while the layer is still coming: they are only to be trusted once the index is there. */
  readonly sink: PackSink
  readonly signal?: AbortSignal
  /** zstd level of the blocks. */
  readonly level?: number
  /** Most bytes that the uncompressed layer may have, and how many times the blob's size. */
  readonly maxRawBytes?: number
  readonly maxRatio?: number
}

/** What indexing gives: the index as a content-addressed object, and the part of it that storing needs. */
export interface IndexedLayer extends LayerIndexHead {
  readonly encoded: Buffer
  /** `sha256:<hex>` of `encoded`. */
  readonly indexDigest: string
  /** The whole index with its file table: some 300 ms of work for 100,000 files, hence on demand. */
  decode(): LayerIndex
}

/**
 * Indexes one layer in memory bounded by a few MiB of blocks and about 30 bytes for each file, in the calling thread and
 * libuv's. The pieces of `input` must not be changed after they are given.
 *
 * Throws DIGEST_MISMATCH (blob or diffID), INVALID_DATA (broken compression or tar), UNSUPPORTED (legal, but must be
 * unpacked the ordinary way), LIMIT_EXCEEDED (a bomb), ABORTED; and what `input` and `sink` throw. Then there is no index.
 */
export async function indexLayer(input: AsyncIterable<Uint8Array>, options: IndexOptions): Promise<IndexedLayer> {
  const blob = new LayerBlob(input, options)
  const stream = createHash('sha256')
  const files = new FileTableEncoder()
  const blocks = new BlockTableBuilder()
  const packer = new BlockPacker(
    {
      block(block) {
        blocks.add(block)
        return options.sink.block(block)
      },
    },
    { level: options.level ?? DEFAULT_LEVEL },
  )
  const cutter = new BlockCutter((raw) => packer.add(raw))
  const tar = new TarReader((entry, dataOffset, dataLength) => {
    files.add(entry)
    cutter.entry(dataOffset, dataLength)
  })
  let length = 0
  try {
    for await (const piece of decompressLayer(blob.pieces(), options.compression)) {
      length += piece.length
      checkBomb(length, options)
      stream.update(piece)
      tar.push(piece)
      cutter.push(piece)
      await packer.room()
    }
    tar.end()
  } catch (error) {
    await packer.finish().catch(() => {})
    // A broken layer may be the network's work: that it is not the promised blob at all says more.
    if (hasCode(error, 'INVALID_DATA')) await blob.check()
    throw error
  }
  cutter.end()
  await packer.finish()
  await blob.check()
  const diffId = `sha256:${stream.digest('hex')}`
  if (options.expectedDiffId !== undefined && diffId !== options.expectedDiffId) {
    throw new SkimmerError('DIGEST_MISMATCH', `layer ${options.layerDigest} unpacks to ${diffId}, not to the diffID ${options.expectedDiffId} of its image's config`)
  }
  const head: LayerIndexHead = { diffId, layerDigest: options.layerDigest, layerSize: options.layerSize, blocks: blocks.finish(), fileCount: files.count }
  return indexedLayer(head, assembleLayerIndex(head, files))
}

export function indexedLayer(head: LayerIndexHead, encoded: Buffer): IndexedLayer {
  return { ...head, encoded, indexDigest: `sha256:${hash('sha256', encoded, 'hex')}`, decode: () => decodeLayerIndex(encoded) }
}

function checkBomb(length: number, { layerDigest, layerSize, maxRawBytes = DEFAULT_MAX_RAW_BYTES, maxRatio = DEFAULT_MAX_RATIO }: IndexOptions): void {
  if (length > maxRawBytes) throw new SkimmerError('LIMIT_EXCEEDED', `layer ${layerDigest} unpacks to more than ${maxRawBytes} bytes`)
  if (length > RATIO_FREE_BYTES && length > layerSize * maxRatio) throw new SkimmerError('LIMIT_EXCEEDED', `layer ${layerDigest} unpacks to more than ${maxRatio} times its size`)
}

/** The blob as it comes from outside: hashed and counted on its way through. */
class LayerBlob {
  readonly #pieces: AsyncGenerator<Uint8Array>
  readonly #options: IndexOptions
  readonly #hash = createHash('sha256')
  #length = 0

  constructor(input: AsyncIterable<Uint8Array>, options: IndexOptions) {
    if (!/^sha256:[0-9a-f]{64}$/.test(options.layerDigest)) throw new SkimmerError('UNSUPPORTED', `layer digest ${options.layerDigest} is no sha256 digest`)
    this.#options = options
    this.#pieces = this.#counted(abortable(input, options.signal))
  }

  /** For one reader; it may stop early, the rest then stays readable for check(). */
  pieces(): AsyncIterable<Uint8Array> {
    return { [Symbol.asyncIterator]: () => ({ next: () => this.#pieces.next() }) }
  }

  /** Reads what is left and throws DIGEST_MISMATCH when the blob is not the one that was asked for. */
  async check(): Promise<void> {
    for await (const piece of this.#pieces) void piece
    const { layerDigest, layerSize } = this.#options
    if (this.#length !== layerSize) throw new SkimmerError('DIGEST_MISMATCH', `layer ${layerDigest} has ${this.#length} bytes, not the ${layerSize} of its manifest`)
    const digest = `sha256:${this.#hash.digest('hex')}`
    if (digest !== layerDigest) throw new SkimmerError('DIGEST_MISMATCH', `layer ${layerDigest} came as ${digest}`)
  }

  async *#counted(input: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    for await (const piece of input) {
      this.#length += piece.length
      if (this.#length > this.#options.layerSize) throw new SkimmerError('DIGEST_MISMATCH', `layer ${this.#options.layerDigest} has more than the ${this.#options.layerSize} bytes of its manifest`)
      this.#hash.update(piece)
      yield piece
    }
  }
}
