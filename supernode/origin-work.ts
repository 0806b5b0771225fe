// One piece of making at the origin: shared by all who want its result, with progress for each, and stopped only with the origin.

export interface OriginProgress {
  /** Bytes read from the source so far. */
  readonly bytes: number
  readonly total: number
}

/** Progress goes to watchers at most this often, milliseconds; the last word always. */
const PROGRESS_MS = 200

export class OriginWork<Result> {
  readonly started = Date.now()
  readonly total: number
  readonly result: Promise<Result>
  #bytes = 0
  #told = 0
  readonly #watchers = new Set<(progress: OriginProgress) => void>()

  constructor(total: number, work: (self: OriginWork<Result>) => Promise<Result>) {
    this.total = total
    this.result = work(this)
    // Whoever waits sees the error; nobody may be waiting.
    this.result.catch(() => {})
  }

  get bytes(): number {
    return this.#bytes
  }

  /** What streams by counts as read. */
  async *counted<Chunk extends Uint8Array>(source: AsyncIterable<Chunk>, onBytes?: (bytes: number) => void): AsyncGenerator<Chunk> {
    for await (const chunk of source) {
      this.#bytes += chunk.length
      onBytes?.(chunk.length)
      this.#tell()
      yield chunk
    }
  }

  /** The result, unless `signal` ends the wait first (the work goes on for the others). */
  async wait(options: { signal?: AbortSignal; onProgress?: (progress: OriginProgress) => void } = {}): Promise<Result> {
    const { signal, onProgress } = options
    signal?.throwIfAborted()
    if (onProgress !== undefined) this.#watchers.add(onProgress)
    let stop: (() => void) | undefined
    try {
      if (signal === undefined) return await this.result
      return await Promise.race([this.result, new Promise<never>((_, reject) => {
        stop = () => { reject(signal.reason as Error) }
        signal.addEventListener('abort', stop, { once: true })
      })])
    } finally {
      if (stop !== undefined) signal!.removeEventListener('abort', stop)
      if (onProgress !== undefined) {
        this.#watchers.delete(onProgress)
        onProgress({ bytes: this.#bytes, total: this.total })
      }
    }
  }

  #tell(): void {
    const now = Date.now()
    if (now - this.#told < PROGRESS_MS) return
    this.#told = now
    for (const watcher of this.#watchers) watcher({ bytes: this.#bytes, total: this.total })
  }
}
