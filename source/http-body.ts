// The body of an HTTP answer as an iterator: a window read ahead, a part cut out of it, and an end that is never short without an error.
import type { Readable } from 'node:stream'
import { SkimmerError } from '../oci/errors.ts'
import { isTransient, networkError } from '../oci/network-errors.ts'
import type { SourceBody } from './source.ts'

/** Enough that a reader's pauses do not stop the network; the connection's own window comes on top. */
const WINDOW_BYTES = 1024 * 1024

export interface BodyCut {
  /** Bytes to pass over first: the server sent more than was asked for. */
  readonly skip: number
  /** Bytes to give away afterwards; undefined: to the end. */
  readonly take: number | undefined
  /** Bytes that must come after those passed over; undefined: the server did not tell. */
  readonly expected: number | undefined
  readonly what: string
  readonly url: URL
  readonly signal?: AbortSignal
}

/**
 * Chunks are handed over as the connection brought them, never copied or joined (the iterator of a Node stream joins what has
 * gathered). An unread body that is left by return() frees its connection, which a generator that never ran would not do.
 */
export class HttpBody implements SourceBody {
  readonly #stream: Readable
  readonly #cut: BodyCut
  readonly #chunks: Buffer[] = []
  #queuedBytes = 0
  #skip: number
  #taken = 0
  #ended = false
  #failure: SkimmerError | undefined
  #waiting: { resolve: (result: IteratorResult<Buffer, undefined>) => void; reject: (error: Error) => void } | undefined

  constructor(stream: Readable, cut: BodyCut) {
    this.#stream = stream
    this.#cut = cut
    this.#skip = cut.skip
    stream.on('data', (chunk: Buffer) => this.#received(chunk))
    stream.once('end', () => this.#end())
    stream.on('error', (error) => this.#fail(error))
    stream.once('close', () => this.#fail(Object.assign(new Error('the connection was closed'), { code: 'ECONNRESET' })))
    if (cut.take === 0) this.#finish()
  }

  next(): Promise<IteratorResult<Buffer, undefined>> {
    const chunk = this.#chunks.shift()
    if (chunk !== undefined) {
      this.#queuedBytes -= chunk.length
      if (this.#queuedBytes < WINDOW_BYTES / 2 && !this.#ended && this.#stream.isPaused()) this.#stream.resume()
      return Promise.resolve({ value: chunk, done: false })
    }
    if (this.#failure !== undefined) {
      const failure = this.#failure
      this.#failure = undefined
      return Promise.reject(failure)
    }
    if (this.#ended) return Promise.resolve({ value: undefined, done: true })
    const { promise, resolve, reject } = Promise.withResolvers<IteratorResult<Buffer, undefined>>()
    this.#waiting = { resolve, reject }
    return promise
  }

  return(): Promise<IteratorResult<Buffer, undefined>> {
    this.#chunks.length = 0
    this.#failure = undefined
    this.#finish()
    return Promise.resolve({ value: undefined, done: true })
  }

  [Symbol.asyncIterator](): this {
    return this
  }

  #received(received: Buffer): void {
    if (this.#ended) return
    let chunk = received
    if (this.#skip > 0) {
      const passed = Math.min(this.#skip, chunk.length)
      this.#skip -= passed
      chunk = chunk.subarray(passed)
    }
    const { take } = this.#cut
    if (take !== undefined && chunk.length > take - this.#taken) chunk = chunk.subarray(0, take - this.#taken)
    if (chunk.length > 0) {
      this.#taken += chunk.length
      const waiting = this.#waiting
      if (waiting !== undefined) {
        this.#waiting = undefined
        waiting.resolve({ value: chunk, done: false })
      } else {
        this.#chunks.push(chunk)
        this.#queuedBytes += chunk.length
        if (this.#queuedBytes >= WINDOW_BYTES) this.#stream.pause()
      }
    }
    // What a server sends beyond is not wanted. At the very end of its body the stream ends itself, and the connection lives on.
    if (this.#taken === take && take !== this.#cut.expected) this.#finish()
  }

  #end(): void {
    const { expected, take } = this.#cut
    const wanted = expected === undefined ? undefined : Math.min(expected, take ?? expected)
    if (this.#skip > 0 || (wanted !== undefined && this.#taken < wanted)) {
      this.#fail(Object.assign(new Error('the body ended early'), { code: 'ECONNRESET' }))
    } else this.#finish()
  }

  #fail(error: Error): void {
    if (this.#ended) return
    const { url, what, signal } = this.#cut
    const failure = error instanceof SkimmerError ? error : networkError(error, url, what, signal)
    if (failure !== error) failure.details.transient = !signal?.aborted && isTransient(error)
    this.#ended = true
    const waiting = this.#waiting
    this.#waiting = undefined
    if (waiting === undefined) this.#failure = failure
    else waiting.reject(failure)
    this.#stream.destroy()
  }

  #finish(): void {
    const first = !this.#ended
    this.#ended = true
    const waiting = this.#waiting
    this.#waiting = undefined
    waiting?.resolve({ value: undefined, done: true })
    if (first) this.#stream.destroy()
  }
}
