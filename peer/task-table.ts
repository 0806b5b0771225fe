// The blocks of one resource that are being brought: a task each, which of them readers wait for, and how tasks and their waiters end.
import type { BackgroundQueue } from './background-queue.ts'
import type { FetchContext } from './fetch-context.ts'
import type { Ask, FetchTask, Waiter } from './fetch-task.ts'
import type { RemotePeer } from './remote-peer.ts'
import { hedgeDelay } from './source-choice.ts'

export class TaskTable {
  readonly #context: FetchContext
  readonly #queue: BackgroundQueue
  readonly #onEmpty: () => void
  readonly #tasks = new Map<number, FetchTask>()
  readonly #demand = new Set<FetchTask>()

  /** `onEmpty`: called when the last task ended. */
  constructor(context: FetchContext, queue: BackgroundQueue, onEmpty: () => void) {
    this.#context = context
    this.#queue = queue
    this.#onEmpty = onEmpty
  }

  get size(): number {
    return this.#tasks.size
  }

  /** Those that a reader waits for. */
  get demanded(): Iterable<FetchTask> {
    return this.#demand
  }

  get(block: number): FetchTask | undefined {
    return this.#tasks.get(block)
  }

  has(block: number): boolean {
    return this.#tasks.has(block)
  }

  /** It has not ended. */
  isOpen(task: FetchTask): boolean {
    return this.#tasks.get(task.block) === task
  }

  create(block: number): FetchTask {
    const task: FetchTask = { block, demand: false, waiters: [], asks: [], failed: undefined, since: performance.now(), hedgeAt: Infinity, storing: false, atOrigin: false }
    this.#tasks.set(block, task)
    return task
  }

  /** A reader waits for it from now on. */
  promote(task: FetchTask): void {
    task.demand = true
    this.#demand.add(task)
    this.#context.demand(1)
    for (const ask of task.asks) {
      ask.peer.promote(ask.number)
      task.hedgeAt = performance.now() + hedgeDelay(ask.peer, 0)
    }
  }

  remove(task: FetchTask): void {
    this.#tasks.delete(task.block)
    this.#queue.settled(task.block)
    if (this.#demand.delete(task)) this.#context.demand(-1)
    if (this.#tasks.size === 0) this.#onEmpty()
  }

  fail(task: FetchTask, error: Error): void {
    this.remove(task)
    for (const waiter of task.waiters) waiter.fail(error)
  }

  failAll(error: Error): void {
    for (const task of this.#tasks.values()) this.fail(task, error)
  }

  /** Nobody waits in the background any more. What is under way goes on. */
  failBackground(error: Error): void {
    for (const task of this.#tasks.values()) {
      for (const waiter of task.waiters) if (!waiter.demand) waiter.fail(error)
      if (!task.demand && !task.storing && task.asks.length === 0) this.remove(task)
    }
  }

  /** One waiter gives up: its blocks are no longer brought unless others wait, or they are under way. */
  abandon(waiter: Waiter, blocks: readonly number[], error: Error): void {
    waiter.fail(error)
    for (const block of blocks) {
      const task = this.#tasks.get(block)
      if (task === undefined) continue
      const index = task.waiters.indexOf(waiter)
      if (index >= 0) task.waiters.splice(index, 1)
      if (task.waiters.length === 0 && task.asks.length === 0 && !task.storing) this.remove(task)
    }
  }
}

/** The request no longer stands for the task. */
export function unask(task: FetchTask, ask: Ask): void {
  const index = task.asks.indexOf(ask)
  if (index >= 0) task.asks.splice(index, 1)
}

/** The peer is not asked for this block again for a while. */
export function failedAt(task: FetchTask, peer: RemotePeer, reason: string): void {
  task.failed ??= new Map()
  task.failed.set(peer.id, reason)
}
