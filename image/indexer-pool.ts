// Indexes layers in worker threads: feeds them the blobs, hands their blocks to the sinks, survives their deaths.
import { availableParallelism } from 'node:os'
import { Worker } from 'node:worker_threads'
import { SkimmerError } from '../oci/errors.ts'
import { abortable } from './abortable.ts'
import { decodeLayerIndexHead } from './index-format.ts'
import { errorFromNote, INPUT_PIECE_LENGTH } from './index-messages.ts'
import type { FromWorker, JobOptions, ToWorker } from './index-messages.ts'
import { indexedLayer } from './indexer.ts'
import type { IndexedLayer, IndexOptions } from './indexer.ts'

/** A thread takes several layers at once, because most of them wait for the network. */
const JOBS_PER_THREAD = 4
const WORKER_FILE = new URL(import.meta.url.endsWith('.ts') ? './index-worker.ts' : './index-worker.js', import.meta.url)

interface Thread {
  readonly worker: Worker
  readonly jobs: Map<number, Job>
}

export class IndexerPool {
  readonly #threads: Thread[] = []
  readonly #most: number
  readonly #waiting: (() => void)[] = []
  #lastJob = 0
  #closed = false

  /** `threads`: most worker threads, by default one a core; they start when they are needed. */
  constructor(options: { threads?: number } = {}) {
    this.#most = options.threads ?? availableParallelism()
  }

  /**
   * As indexLayer, but in a thread. Blocks come to the sink in order and in the calling thread, several as views of one
   * buffer that is theirs alone. Layers beyond 4 a thread wait for their turn. The pieces of `input` are copied.
   */
  async index(input: AsyncIterable<Uint8Array>, options: IndexOptions): Promise<IndexedLayer> {
    const thread = await this.#freeThread(options.signal)
    const job = new Job(++this.#lastJob, thread.worker, input, options)
    thread.jobs.set(job.id, job)
    thread.worker.ref() // an idle pool does not keep the process alive
    try {
      return await job.run()
    } finally {
      thread.jobs.delete(job.id)
      if (thread.jobs.size === 0) thread.worker.unref()
      this.#waiting.shift()?.()
    }
  }

  /** Ends the threads; layers under way fail with ABORTED. */
  async close(): Promise<void> {
    this.#closed = true
    for (const wake of this.#waiting.splice(0)) wake()
    await Promise.all(this.#threads.splice(0).map(async ({ worker, jobs }) => {
      for (const job of jobs.values()) job.fail(new SkimmerError('ABORTED', 'the indexer is being closed'))
      await worker.terminate()
    }))
  }

  async #freeThread(signal: AbortSignal | undefined): Promise<Thread> {
    for (;;) {
      if (this.#closed) throw new SkimmerError('ABORTED', 'the indexer is closed')
      if (signal?.aborted === true) throw new SkimmerError('ABORTED', 'indexing the layer was given up', { cause: signal.reason })
      const thread = this.#threads.toSorted((a, b) => a.jobs.size - b.jobs.size).at(0)
      if ((thread === undefined || thread.jobs.size > 0) && this.#threads.length < this.#most) return this.#startThread()
      if (thread !== undefined && thread.jobs.size < JOBS_PER_THREAD) return thread
      await this.#turn(signal)
    }
  }

  /** Resolves when a job has ended, the signal fires or the pool closes. */
  async #turn(signal: AbortSignal | undefined): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#waiting.push(resolve)
    signal?.addEventListener('abort', () => resolve(), { once: true })
    await promise
    const position = this.#waiting.indexOf(resolve)
    if (position !== -1) this.#waiting.splice(position, 1)
  }

  #startThread(): Thread {
    const worker = new Worker(WORKER_FILE, { name: 'skimmer-indexer' })
    const thread: Thread = { worker, jobs: new Map() }
    worker.unref()
    worker.on('message', (message: FromWorker) => thread.jobs.get(message.job)?.receive(message))
    const die = (why: unknown): void => {
      const position = this.#threads.indexOf(thread)
      if (position !== -1) this.#threads.splice(position, 1)
      for (const job of thread.jobs.values()) job.fail(new SkimmerError('INTERNAL', 'an indexer thread died', { cause: why }))
    }
    worker.on('error', die)
    worker.on('exit', die)
    this.#threads.push(thread)
    return thread
  }
}

/** One layer, seen from the main thread. */
class Job {
  readonly id: number
  readonly #worker: Worker
  readonly #input: AsyncGenerator<Uint8Array>
  readonly #options: IndexOptions
  readonly #result = Promise.withResolvers<IndexedLayer>()
  #sinking: Promise<void> = Promise.resolve()
  #wanted = 0
  #wake: (() => void) | undefined
  #ended = false

  constructor(id: number, worker: Worker, input: AsyncIterable<Uint8Array>, options: IndexOptions) {
    this.id = id
    this.#worker = worker
    this.#input = abortable(input, options.signal)
    this.#options = options
  }

  async run(): Promise<IndexedLayer> {
    const { sink: _sink, signal, ...rest } = this.#options
    const options: JobOptions = rest
    const onAbort = (): void => this.fail(new SkimmerError('ABORTED', 'indexing the layer was given up', { cause: signal?.reason }))
    signal?.addEventListener('abort', onAbort, { once: true })
    try {
      this.#post({ type: 'start', job: this.id, options })
      void this.#feed()
      return await this.#result.promise
    } finally {
      signal?.removeEventListener('abort', onAbort)
      this.#ended = true
      this.#wake?.()
      void this.#input.return(undefined)
    }
  }

  receive(message: FromWorker): void {
    if (message.type === 'want') {
      this.#wanted++
      this.#wake?.()
    } else if (message.type === 'blocks') this.#sinking = this.#sinking.then(() => this.#sink(message)).catch((error: unknown) => this.fail(error))
    else if (message.type === 'failed') this.#result.reject(errorFromNote(message.error))
    else {
      const encoded = Buffer.from(message.encoded.buffer)
      void this.#sinking.then(() => this.#result.resolve(indexedLayer(decodeLayerIndexHead(encoded), encoded)))
    }
  }

  /** The caller gets `error`; the worker is told to stop. */
  fail(error: unknown): void {
    if (this.#ended) return
    this.#ended = true
    this.#result.reject(error)
    this.#post({ type: 'fail', job: this.id })
  }

  async #feed(): Promise<void> {
    try {
      for await (const bytes of gather(this.#input)) {
        while (this.#wanted === 0 && !this.#ended) await new Promise<void>((resolve) => (this.#wake = resolve))
        if (this.#ended) return
        this.#wanted--
        this.#post({ type: 'piece', job: this.id, bytes }, bytes.buffer)
      }
      this.#post({ type: 'end', job: this.id })
    } catch (error) {
      this.fail(error)
    }
  }

  async #sink(message: FromWorker & { type: 'blocks' }): Promise<void> {
    let at = 0
    for (const { packedLength, rawLength, codec, hash } of message.blocks) {
      if (this.#ended) return
      const taken = this.#options.sink.block({ packed: message.packed.subarray(at, at + packedLength), rawLength, codec, hash })
      if (taken !== undefined) await taken
      at += packedLength
    }
    this.#post({ type: 'taken', job: this.id, bytes: at })
  }

  #post(message: ToWorker, ...transfer: ArrayBuffer[]): void {
    this.#worker.postMessage(message, transfer)
  }
}

/**
 * Pieces of INPUT_PIECE_LENGTH in memory of their own, fit for transfer: what comes from a socket shares its memory with others.
 */
async function* gather(input: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  let piece = new Uint8Array(INPUT_PIECE_LENGTH)
  let filled = 0
  for await (const bytes of input) {
    for (let at = 0; at < bytes.length; ) {
      const used = Math.min(bytes.length - at, INPUT_PIECE_LENGTH - filled)
      piece.set(bytes.subarray(at, at + used), filled)
      at += used
      filled += used
      if (filled < INPUT_PIECE_LENGTH) continue
      yield piece
      piece = new Uint8Array(INPUT_PIECE_LENGTH)
      filled = 0
    }
  }
  if (filled > 0) yield piece.subarray(0, filled)
}
