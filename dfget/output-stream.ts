// `-O -` and special files: bytes that cannot be taken back.
import { SkimmerError } from '../oci/errors.ts'
import type { Output } from './output.ts'
import { fileError } from './output-file.ts'

/** Whoever reads us has had enough: no error, and nothing more to do. */
export class ReaderGone extends SkimmerError {
  constructor() {
    super('ABORTED', 'whoever reads the output has stopped')
  }
}

export class OutputStream implements Output {
  readonly name: string
  readonly restartable = false
  #position = 0
  readonly #stream: NodeJS.WritableStream
  readonly #close: boolean
  #failure: SkimmerError | undefined

  /** `close`: the stream is ours. */
  constructor(stream: NodeJS.WritableStream, options: { name: string; close?: boolean }) {
    this.#stream = stream
    this.#close = options.close === true
    this.name = options.name
    stream.on('error', (error) => this.#failed(error))
  }

  #failed(error: NodeJS.ErrnoException): SkimmerError {
    return (this.#failure ??= error.code === 'EPIPE' || error.code === 'ERR_STREAM_DESTROYED' ? new ReaderGone() : fileError(error, this.name))
  }

  get position(): number {
    return this.#position
  }

  async expect(): Promise<void> {}

  async write(chunks: readonly Buffer[]): Promise<void> {
    for (const chunk of chunks) {
      if (this.#failure !== undefined) throw this.#failure
      this.#position += chunk.length
      await new Promise<void>((resolve, reject) => this.#stream.write(chunk, (error) => {
        if (error) reject(this.#failed(error))
        else resolve()
      }))
    }
  }

  async restart(): Promise<void> {
    throw new SkimmerError('CONFLICT', `${this.name}: it changed at its source after some of it was written out; ask again`)
  }

  async finish(): Promise<void> {
    if (this.#close) await new Promise<void>((resolve) => this.#stream.end(resolve))
    if (this.#failure !== undefined) throw this.#failure
  }

  async discard(): Promise<void> {
    if (this.#close) (this.#stream as NodeJS.WritableStream & { destroy(): void }).destroy()
  }
}
