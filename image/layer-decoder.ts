// A layer blob's uncompressed stream: gzip, zstd or plain, told by its first bytes as containerd does.
import { constants, createGunzip, createZstdDecompress } from 'node:zlib'
import { SkimmerError } from '../oci/errors.ts'
import { SyncCodec } from './sync-codec.ts'
import { isSkippableMagic, ZSTD_MAGIC, ZstdFrames } from './zstd-frames.ts'

/**
 * 'none' takes the bytes as they are. The others look at the first bytes, because media types lie: containerd does the same,
 * and takes what is neither gzip nor zstd for an uncompressed tar.
 */
export type LayerCompression = 'none' | 'gzip' | 'zstd' | 'detect'

const MAGIC_LENGTH = 10
const NOTHING = Buffer.alloc(0)

/**
 * Throws INVALID_DATA for corrupt or cut-off input, and for anything but whole gzip members after the first (as Go's gzip
 * reader does); UNSUPPORTED for zstd windows that are too large; UNAVAILABLE without memory. After a throw only close() may be called.
 */
export class LayerDecoder {
  #kind: LayerCompression
  #codec: SyncCodec | undefined
  #frames: ZstdFrames | undefined
  /** What came before the compression could be told. */
  #head = NOTHING
  /** Input that is not used up; of the first so much is. */
  #parts: Uint8Array[] = []
  #partAt = 0
  #ended = false

  constructor(compression: LayerCompression) {
    this.#kind = compression === 'none' ? 'none' : 'detect'
  }

  /** More input. It must stay as it is until read() has answered 0. */
  push(piece: Uint8Array): void {
    if (this.#kind !== 'detect') return this.#take(piece)
    this.#head = Buffer.concat([this.#head, piece])
    if (this.#head.length >= MAGIC_LENGTH) this.#start()
  }

  /** There is no more input. */
  end(): void {
    if (this.#kind === 'detect') this.#start()
    this.#ended = true
  }

  /** Fills `into` from `offset` on, which must leave room, and says with how many bytes. 0: all input is used up. */
  read(into: Uint8Array, offset: number): number {
    try {
      return this.#kind === 'none' ? this.#copy(into, offset) : this.#decode(into, offset)
    } catch (error) {
      throw explain(this.#kind, error)
    }
  }

  close(): void {
    this.#codec?.close()
    this.#codec = undefined
    this.#parts = []
  }

  #start(): void {
    this.#kind = detectCompression(this.#head)
    if (this.#kind === 'gzip') this.#codec = new SyncCodec(createGunzip())
    else if (this.#kind === 'zstd') {
      this.#codec = new SyncCodec(createZstdDecompress({ params: { [constants.ZSTD_d_windowLogMax]: 27 } }))
      this.#frames = new ZstdFrames()
    }
    this.#take(this.#head)
    this.#head = NOTHING
  }

  #take(piece: Uint8Array): void {
    if (this.#frames === undefined) this.#parts.push(piece)
    else for (const part of this.#frames.split(piece)) this.#parts.push(part)
  }

  #copy(into: Uint8Array, offset: number): number {
    for (; this.#parts.length > 0; this.#next()) {
      const part = this.#parts[0].subarray(this.#partAt, this.#partAt + into.length - offset)
      if (part.length === 0) continue
      into.set(part, offset)
      this.#partAt += part.length
      return part.length
    }
    return 0
  }

  #decode(into: Uint8Array, offset: number): number {
    const codec = this.#codec as SyncCodec
    const room = into.length - offset
    while (this.#parts.length > 0) {
      const part = this.#parts[0]
      codec.write(constants.Z_NO_FLUSH, part, this.#partAt, into, offset)
      this.#partAt = part.length - codec.unread
      // With room left it has given all it can: it leaves bytes alone only after the end of a member that none follows.
      if (codec.room > 0 && codec.unread > 0) throw new SkimmerError('INVALID_DATA', `${this.#kind}: the layer has something else after its compressed data`)
      if (codec.room > 0) this.#next()
      if (codec.room < room) return room - codec.room
    }
    if (this.#ended && this.#kind === 'gzip') codec.write(constants.Z_FINISH, NOTHING, 0, into, offset)
    if (this.#ended && this.#frames?.between === false) throw new SkimmerError('INVALID_DATA', 'zstd: the layer is cut off')
    return 0
  }

  #next(): void {
    this.#parts.shift()
    this.#partAt = 0
  }
}

/** By magic numbers; a skippable zstd frame counts when its whole header is there. */
export function detectCompression(head: Buffer): 'none' | 'gzip' | 'zstd' {
  if (head.length >= 3 && head[0] === 0x1f && head[1] === 0x8b && head[2] === 8) return 'gzip'
  if (head.length < 4) return 'none'
  const magic = head.readUInt32LE(0)
  return magic === ZSTD_MAGIC || (head.length >= 8 && isSkippableMagic(magic)) ? 'zstd' : 'none'
}

function explain(kind: string, error: unknown): unknown {
  if (error instanceof SkimmerError) return error
  const code = String((error as { code?: unknown }).code)
  const reason = error instanceof Error ? error.message : String(error)
  if (/memory_allocation|Z_MEM_ERROR/.test(code)) return new SkimmerError('UNAVAILABLE', `${kind}: no memory to decompress the layer`, { cause: error })
  if (code.startsWith('ZSTD_error_frameParameter')) return new SkimmerError('UNSUPPORTED', `${kind}: the layer cannot be decompressed here: ${reason}`, { cause: error })
  if (code.startsWith('Z_') || code.startsWith('ZSTD_')) return new SkimmerError('INVALID_DATA', `${kind}: the layer's compressed data is broken: ${reason}`, { cause: error })
  return error
}
