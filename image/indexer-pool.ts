// Indexes layers in worker threads: binds each layer to one, spreads the packing over all, survives their deaths.
import { availableParallelism } from 'node:os'
import { Worker } from 'node:worker_threads'
import { SkimmerError } from '../oci/errors.ts'
import { IndexJob } from './index-job.ts'
import { IndexMemory } from './index-memory.ts'
import type { FromWorker, Task, ToWorker } from './index-messages.ts'
import type { IndexedLayer, IndexOptions } from './indexer.ts'

/** A thread takes several layers at once, because most of them wait for the network. */
const JOBS_PER_THREAD = 4
/** Tasks that a thread has: one that it works at and one to go on with. */
const TASKS_PER_THREAD = 2
/** Unpacking and packing take about as long: one layer keeps two threads busy. */
const THREADS_PER_JOB = 2
const WORKER_FILE = new URL(import.meta.url.endsWith('.ts') ? './index-worker.ts' : './index-worker.js', import.meta.url)

/** Memory with its number in messages. */
interface Numbered {
  readonly number: number
  readonly memory: IndexMemory
}

interface Bound {
  readonly job: IndexJob
  readonly thread: Thread
  readonly memory: Numbered
}

class Thread {
  readonly worker = new Worker(WORKER_FILE, { name: 'skimmer-indexer' })
  readonly bound: Bound[] = []
  readonly known = new Set<number>()
  /** Whose tasks it has. */
  readonly tasks: IndexJob[] = []

  tell(message: ToWorker): void {
    this.worker.postMessage(message)
  }

  /** Tells of the memory when it was not told before. */
  know({ number, memory }: Numbered): void {
    if (this.known.has(number)) return
    this.known.add(number)
    this.tell({ type: 'memory', memory: number, shared: memory.shared })
  }
}

export class IndexerPool {
  readonly #threads: Thread[] = []
  readonly #jobs = new Map<number, Bound>()
  readonly #most: number
  readonly #spareMemory: Numbered[] = []
  readonly #waiting: (() => void)[] = []
  #lastJob = 0
  #lastMemory = 0
  #dispatching = false
  #closed = false

  /** `threads`: most worker threads, by default one a core; they start when they are needed. */
  constructor(options: { threads?: number } = {}) {
    this.#most = options.threads ?? availableParallelism()
  }

  /** Starts the threads that a layer takes, so that the first one need not wait for them. */
  warm(): void {
    this.#startThreads(THREADS_PER_JOB)
  }

  /**
   * As indexLayer, but in threads. Blocks come to the sink in the calling thread. Layers beyond 4 a thread wait for their turn. Each
   * layer under way takes 13 MiB of memory, which later ones use again.
   */
  async index(input: AsyncIterable<Uint8Array>, options: IndexOptions): Promise<IndexedLayer> {
    const thread = await this.#freeThread(options.signal)
    const memory = this.#spareMemory.pop() ?? { number: ++this.#lastMemory, memory: new IndexMemory() }
    const id = ++this.#lastJob
    let job: IndexJob
    try {
      job = new IndexJob(id, memory.memory, input, options, () => this.#changed(id))
    } catch (error) {
      this.#spareMemory.push(memory)
      throw error
    }
    const bound: Bound = { job, thread, memory }
    thread.bound.push(bound)
    this.#jobs.set(id, bound)
    this.#keepAlive()
    const { layerDigest, layerSize, compression, expectedDiffId, maxRawBytes, maxRatio } = options
    thread.know(memory)
    thread.tell({ type: 'start', job: id, memory: memory.number, options: { layerDigest, layerSize, compression, expectedDiffId, maxRawBytes, maxRatio } })
    return await job.run()
  }

  /** Ends the threads; layers under way fail with ABORTED. */
  async close(): Promise<void> {
    this.#closed = true
    for (const wake of this.#waiting.splice(0)) wake()
    for (const { job } of this.#jobs.values()) job.fail(new SkimmerError('ABORTED', 'the indexer is being closed'))
    await Promise.all(this.#threads.splice(0).map(({ worker }) => worker.terminate()))
  }

  async #freeThread(signal: AbortSignal | undefined): Promise<Thread> {
    for (;;) {
      if (this.#closed) throw new SkimmerError('ABORTED', 'the indexer is closed')
      if (signal?.aborted === true) throw new SkimmerError('ABORTED', 'indexing the layer was given up', { cause: signal.reason })
      this.#startThreads((this.#jobs.size + 1) * THREADS_PER_JOB)
      const thread = this.#threads.toSorted((a, b) => a.bound.length - b.bound.length)[0]
      if (thread.bound.length < JOBS_PER_THREAD) return thread
      await this.#turn(signal)
    }
  }

  /** Resolves when a layer is done with, the signal fires or the pool closes. */
  async #turn(signal: AbortSignal | undefined): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#waiting.push(resolve)
    signal?.addEventListener('abort', () => resolve(), { once: true })
    await promise
    const position = this.#waiting.indexOf(resolve)
    if (position !== -1) this.#waiting.splice(position, 1)
  }

  #startThreads(wanted: number): void {
    while (this.#threads.length < Math.min(wanted, this.#most)) this.#startThread()
  }

  #startThread(): void {
    const thread = new Thread()
    thread.worker.unref()
    thread.worker.on('message', ({ job, answer }: FromWorker) => {
      thread.tasks.splice(thread.tasks.findIndex(({ id }) => id === job), 1)
      this.#jobs.get(job)?.job.answer(answer)
      this.#changed(job)
    })
    const die = (why: unknown): void => {
      const position = this.#threads.indexOf(thread)
      if (position !== -1) this.#threads.splice(position, 1)
      const hurt = new Set([...thread.tasks, ...thread.bound.map(({ job }) => job)])
      const tasks = thread.tasks.splice(0)
      for (const job of hurt) {
        job.lost(tasks.filter((task) => task === job).length, why)
        this.#changed(job.id)
      }
    }
    thread.worker.on('error', die)
    thread.worker.on('exit', die)
    this.#threads.push(thread)
    this.#keepAlive()
  }

  /** An idle pool does not keep the process alive. */
  #keepAlive(): void {
    for (const { worker } of this.#threads) {
      if (this.#jobs.size > 0) worker.ref()
      else worker.unref()
    }
  }

  #changed(id: number): void {
    const bound = this.#jobs.get(id)
    if (bound?.job.left === true) {
      this.#jobs.delete(id)
      bound.thread.bound.splice(bound.thread.bound.indexOf(bound), 1)
      bound.thread.tell({ type: 'drop', job: id })
      this.#spareMemory.push(bound.memory)
      this.#keepAlive()
      this.#waiting.shift()?.()
    }
    this.#dispatch()
  }

  /** Gives out tasks as long as there is a thread for one. */
  #dispatch(): void {
    if (this.#dispatching || this.#closed) return
    this.#dispatching = true
    for (let given = true; given; ) {
      given = false
      for (const thread of this.#threads.toSorted((a, b) => a.tasks.length - b.tasks.length)) {
        if (thread.tasks.length < TASKS_PER_THREAD && this.#giveTask(thread)) given = true
      }
    }
    this.#dispatching = false
  }

  /** Unpacking makes work for the other threads, so it comes first unless they have enough. */
  #giveTask(thread: Thread): boolean {
    let toPack = 0
    for (const { job } of this.#jobs.values()) toPack += job.spansToPack
    return toPack > this.#threads.length ? this.#givePacking(thread) || this.#giveBound(thread) : this.#giveBound(thread) || this.#givePacking(thread)
  }

  #giveBound(thread: Thread): boolean {
    for (const bound of thread.bound) {
      const task = bound.job.boundTask()
      if (task === undefined) continue
      this.#give(thread, bound, task)
      // The next one's turn comes first.
      thread.bound.push(...thread.bound.splice(thread.bound.indexOf(bound), 1))
      return true
    }
    return false
  }

  #givePacking(thread: Thread): boolean {
    for (const bound of this.#jobs.values()) {
      const task = bound.job.packTask()
      if (task === undefined) continue
      this.#give(thread, bound, task)
      return true
    }
    return false
  }

  #give(thread: Thread, { job, memory }: Bound, task: Task): void {
    thread.know(memory)
    thread.tasks.push(job)
    thread.tell({ type: 'task', job: job.id, memory: memory.number, task })
  }
}
