// Packs raw blocks: each becomes a zstd frame of its own with a hash, one after another in memory that the caller gives.
import { hash } from 'node:crypto'
import { constants, createZstdCompress } from 'node:zlib'
import { SkimmerError } from '../oci/errors.ts'
import { CODEC_RAW, CODEC_ZSTD, HASH_LENGTH } from './block-table.ts'
import { LONGEST_BLOCK } from './block-cutter.ts'
import { SyncCodec } from './sync-codec.ts'

/** A block as it goes into the pack. */
export interface PackedBlock {
  readonly packed: Uint8Array
  readonly rawLength: number
  /** CODEC_RAW when compressing does not shrink it, else CODEC_ZSTD: one frame that states its content size. */
  readonly codec: number
  /** sha256 of `packed`. */
  readonly hash: Uint8Array
}

/** Takes the blocks of a layer in stream order, some MiB at a time at most. */
export interface PackSink {
  /** The blocks' bytes are lent until the promise, if any, has resolved; so long there are no others. */
  blocks(batch: readonly PackedBlock[]): void | Promise<void>
}

/** What is made of some blocks: the packed bytes stand elsewhere, without gaps. */
export interface PackedSpan {
  readonly rawLengths: readonly number[]
  readonly packedLengths: readonly number[]
  readonly codecs: readonly number[]
  /** HASH_LENGTH bytes a block. */
  readonly hashes: Uint8Array
}

/** zstd's bound for what a block that does not compress may grow by (ZSTD_COMPRESSBOUND), on the safe side. */
export const PACK_MARGIN = LONGEST_BLOCK / 256 + 64

export class BlockPacker {
  readonly #zstd: SyncCodec

  constructor(options: { level: number }) {
    // Flushed with ZSTD_e_end every write is a frame that states its content size; the context, some MiB of memory, is kept.
    this.#zstd = new SyncCodec(createZstdCompress({ params: { [constants.ZSTD_c_compressionLevel]: options.level } }))
  }

  /** Packs the blocks that stand one after another at the start of `raw`; `into` must be PACK_MARGIN longer than they are. */
  pack(raw: Uint8Array, rawLengths: readonly number[], into: Uint8Array): PackedSpan {
    const packedLengths: number[] = []
    const codecs: number[] = []
    const hashes = new Uint8Array(rawLengths.length * HASH_LENGTH)
    let from = 0
    let to = 0
    rawLengths.forEach((rawLength, i) => {
      const block = raw.subarray(from, from + rawLength)
      this.#zstd.write(constants.ZSTD_e_end, block, 0, into, to)
      if (this.#zstd.room === 0 || this.#zstd.unread > 0) throw new SkimmerError('INTERNAL', 'a block did not fit its place after compressing')
      const framed = into.length - to - this.#zstd.room
      const shrinks = framed < rawLength
      if (!shrinks) into.set(block, to)
      const packedLength = shrinks ? framed : rawLength
      hashes.set(hash('sha256', into.subarray(to, to + packedLength), 'buffer'), i * HASH_LENGTH)
      packedLengths.push(packedLength)
      codecs.push(shrinks ? CODEC_ZSTD : CODEC_RAW)
      from += rawLength
      to += packedLength
    })
    return { rawLengths, packedLengths, codecs, hashes }
  }

  close(): void {
    this.#zstd.close()
  }
}

/** The blocks of a span as a sink takes them: views of `packed` and of the span's hashes. */
export function packedBlocks({ rawLengths, packedLengths, codecs, hashes }: PackedSpan, packed: Uint8Array): PackedBlock[] {
  let at = 0
  return rawLengths.map((rawLength, i) => {
    const from = at
    at += packedLengths[i]
    return { packed: packed.subarray(from, at), rawLength, codec: codecs[i], hash: hashes.subarray(i * HASH_LENGTH, (i + 1) * HASH_LENGTH) }
  })
}
