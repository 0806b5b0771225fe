// The indexer: a layer blob streams in; blocks go out to a sink as they are made; at the end there is a checked layer index.
import { hash } from 'node:crypto'
import { hasCode } from '../oci/errors.ts'
import { BlockPacker, packedBlocks, PACK_MARGIN } from './block-packer.ts'
import type { PackSink } from './block-packer.ts'
import { BlockTableBuilder } from './block-table-builder.ts'
import { decodeLayerIndex } from './index-format.ts'
import type { LayerIndexHead } from './index-format.ts'
import { checkRest, layerBlob } from './layer-blob.ts'
import type { BlobExpectation } from './layer-blob.ts'
import type { LayerCompression } from './layer-decoder.ts'
import type { LayerIndex } from './layer-index.ts'
import { LayerUnpacker, SPAN_LENGTH } from './layer-unpacker.ts'
import type { UnpackState } from './layer-unpacker.ts'

export type { PackedBlock, PackSink } from './block-packer.ts'
export type { LayerCompression } from './layer-decoder.ts'

export const DEFAULT_LEVEL = 1

export interface IndexOptions extends BlobExpectation {
  /** See LayerCompression; 'detect' is right for everything but a media type that says "uncompressed". */
  readonly compression: LayerCompression
  /** The diffID that the image's config names for this layer. */
  readonly expectedDiffId?: string
  /** Where blocks go, while the layer is still coming: they are only to be trusted once the index is there. */
  readonly sink: PackSink
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
 * Indexes one layer in the calling thread, in memory bounded by a few MiB and about 30 bytes for each file. IndexerPool does the same
 * in threads of its own. A piece of `input` must not be changed before the next one is asked for.
 *
 * Throws DIGEST_MISMATCH (blob or diffID), INVALID_DATA (broken compression or tar), UNSUPPORTED (legal, but must be
 * unpacked the ordinary way), LIMIT_EXCEEDED (a bomb), ABORTED; and what `input` and `sink` throw. Then there is no index.
 */
export async function indexLayer(input: AsyncIterable<Uint8Array>, options: IndexOptions): Promise<IndexedLayer> {
  const blob = layerBlob(input, options)
  const blocks = new BlockTableBuilder()
  const packed = Buffer.allocUnsafeSlow(SPAN_LENGTH + PACK_MARGIN)
  const raw = Buffer.allocUnsafeSlow(SPAN_LENGTH)
  let lengths: number[] = []
  const unpacker = new LayerUnpacker(options, (_raw, blockLengths) => (lengths = blockLengths))
  const packer = new BlockPacker({ level: options.level ?? DEFAULT_LEVEL })
  const work = async (): Promise<void> => {
    for (let state: UnpackState = 'full'; state === 'full'; ) {
      state = unpacker.run()
      if (lengths.length > 0) {
        const span = packer.pack(raw, lengths, packed)
        lengths = []
        blocks.add(span)
        await options.sink.blocks(packedBlocks(span, packed))
      }
      if (state === 'full') unpacker.lend(raw)
    }
  }
  try {
    for (;;) {
      const next = await blob.next()
      if (next.done === true) break
      unpacker.push(next.value)
      await work()
    }
    unpacker.end()
    await work()
    const table = blocks.finish()
    const { diffId, fileCount, encoded } = unpacker.index(table)
    return indexedLayer({ diffId, layerDigest: options.layerDigest, layerSize: options.layerSize, blocks: table, fileCount }, encoded)
  } catch (error) {
    if (hasCode(error, 'INVALID_DATA')) await checkRest(blob)
    throw error
  } finally {
    await blob.return(undefined)
    unpacker.close()
    packer.close()
  }
}

export function indexedLayer(head: LayerIndexHead, encoded: Buffer): IndexedLayer {
  return { ...head, encoded, indexDigest: `sha256:${hash('sha256', encoded, 'hex')}`, decode: () => decodeLayerIndex(encoded) }
}
