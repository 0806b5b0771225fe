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
    stream.on('error', (error: NodeJS.ErrnoException) => (this.#failure ??= error.code === 'EPIPE' ? new ReaderGone() : fileError(error, this.name)))
  }

  get position(): number {
    return this.#position
  }

  async expect(): Promise<void> {}

  write(chunk: Buffer): Promise<void> | undefined {
    if (this.#failure !== undefined) throw this.#failure
    this.#position += chunk.length
    if (this.#stream.write(chunk)) return undefined
    return new Promise((resolve, reject) => {
      const end = (): void => {
        this.#stream.off('drain', end)
        this.#stream.off('error', end)
        this.#stream.off('close', end)
        if (this.#failure === undefined) resolve()
        else reject(this.#failure)
      }
      this.#stream.on('drain', end)
      this.#stream.on('error', end)
      this.#stream.on('close', end)
    })
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
