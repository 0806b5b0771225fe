// Length-prefixed frames over a libp2p stream: cut from what arrives, with one copy, and sent with the stream's back-pressure.
import type { Stream } from '@libp2p/interface'
import { SkimmerError } from '../oci/errors.ts'
import { borrowBuffer } from './lent-buffers.ts'
import { spendBytes } from './spent-buffers.ts'

/** Anything that yields its bytes as chunks: a Uint8Array or a Uint8ArrayList. */
type Chunks = Uint8Array | Iterable<Uint8Array>

/** A body up to this length is copied: what it came with, a thousand times larger, is not needed for its sake. */
const SMALL_BYTES = 64

/**
 * Cuts `u32 length, body` frames. A body that lies whole in one chunk is passed on as a view; one that spans chunks is
 * assembled once, into a buffer of its own. Throws LIMIT_EXCEEDED for a length over `maxLength`: the caller must drop the stream.
 */
export class FrameCutter {
  #header = Buffer.allocUnsafe(4)
  #headerBytes = 0
  #body: Buffer | undefined
  #bodyBytes = 0
  readonly #maxLength: number
  readonly #onFrame: (body: Buffer) => void

  constructor(maxLength: number, onFrame: (body: Buffer) => void) {
    this.#maxLength = maxLength
    this.#onFrame = onFrame
  }

  push(data: Chunks): void {
    if (data instanceof Uint8Array) this.#cut(data)
    else for (const chunk of data) this.#cut(chunk)
  }

  /** Bytes of a frame that is begun but not complete. */
  get pending(): number {
    return this.#headerBytes + this.#bodyBytes
  }

  #cut(chunk: Uint8Array): void {
    let at = 0
    /** Bytes of the chunk that somebody still looks at. */
    let lent = 0
    while (at < chunk.length) {
      if (this.#body === undefined) {
        while (this.#headerBytes < 4 && at < chunk.length) this.#header[this.#headerBytes++] = chunk[at++]
        if (this.#headerBytes < 4) break
        const length = this.#header.readUInt32BE(0)
        if (length > this.#maxLength) throw new SkimmerError('LIMIT_EXCEEDED', `a frame of ${length} bytes arrived; at most ${this.#maxLength} are allowed`)
        if (chunk.length - at >= length) {
          this.#headerBytes = 0
          const body = length > SMALL_BYTES ? Buffer.from(chunk.buffer, chunk.byteOffset + at, length) : Buffer.from(chunk.subarray(at, at + length))
          if (length > SMALL_BYTES) lent += length
          at += length
          this.#onFrame(body)
          continue
        }
        // Not from Node's shared pool: blocks live on in queues, and a view would keep a whole pool slab alive.
        this.#body = borrowBuffer(length)
        this.#bodyBytes = 0
        continue
      }
      const take = Math.min(this.#body.length - this.#bodyBytes, chunk.length - at)
      this.#body.set(at === 0 && take === chunk.length ? chunk : chunk.subarray(at, at + take), this.#bodyBytes)
      this.#bodyBytes += take
      at += take
      if (this.#bodyBytes === this.#body.length) {
        const body = this.#body
        this.#body = undefined
        this.#headerBytes = 0
        this.#bodyBytes = 0
        this.#onFrame(body)
      }
    }
    spendBytes(chunk, at - lent)
  }
}

/** `u32 length` and the JSON, in one buffer. */
export function jsonFrame(value: unknown, maxLength: number): Buffer {
  const text = JSON.stringify(value)
  const length = Buffer.byteLength(text)
  if (length > maxLength) throw new SkimmerError('LIMIT_EXCEEDED', `a message of ${length} bytes is too long to send; at most ${maxLength} are allowed`)
  const frame = Buffer.allocUnsafe(4 + length)
  frame.writeUInt32BE(length, 0)
  frame.write(text, 4)
  return frame
}

export function parseJson(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString('utf8'))
  } catch (cause) {
    throw new SkimmerError('INVALID_DATA', 'a message is not JSON', { cause })
  }
}

/**
 * Resolves when the stream takes more; rejects when it closes or `signal` aborts. Not the stream's own `onDrain`: in
 * @libp2p/utils 7 that keeps its first promise, and so resolves at once ever after.
 */
export function drained(stream: Stream, signal?: AbortSignal): Promise<void> {
  if (!stream.writableNeedsDrain) return Promise.resolve()
  return new Promise((resolve, reject) => {
    const stop = (error?: Error): void => {
      stream.removeEventListener('drain', onDrain)
      stream.removeEventListener('close', onClose)
      signal?.removeEventListener('abort', onAbort)
      if (error === undefined) resolve()
      else reject(error)
    }
    // The stream sends on in a microtask after 'drain', and may fill again at once.
    const onDrain = (): void => queueMicrotask(() => { if (!stream.writableNeedsDrain) stop() })
    const onClose = (): void => stop(new SkimmerError('UNAVAILABLE', 'the stream closed while sending'))
    const onAbort = (): void => stop(new SkimmerError('ABORTED', 'given up while sending', { cause: signal?.reason }))
    stream.addEventListener('drain', onDrain)
    stream.addEventListener('close', onClose)
    signal?.addEventListener('abort', onAbort, { once: true })
    if (stream.writeStatus !== 'writable') onClose()
    else if (signal?.aborted) onAbort()
  })
}

/** Send, and wait when the stream's buffer is full. */
export async function sendAll(stream: Stream, data: Uint8Array, signal?: AbortSignal): Promise<void> {
  if (!stream.send(data)) await drained(stream, signal)
}
