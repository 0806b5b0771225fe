// One resource being fetched: who waits for which block, whom it was asked of, and what happens when that fails.
import { SkimmerError, hasCode } from '../oci/errors.ts'
import { BackgroundFill } from './background-fill.ts'
import { BackgroundQueue } from './background-queue.ts'
import { sourceOf } from './fetch-context.ts'
import type { FetchContext } from './fetch-context.ts'
import { FetchFailures } from './fetch-failures.ts'
import { giveBack } from './lent-buffers.ts'
import { bringFromOrigin } from './origin-fetch.ts'
import { Waiter } from './fetch-task.ts'
import type { Ask, FetchTask, UnsavedBlocks } from './fetch-task.ts'
import { ReadAhead } from './read-ahead.ts'
import type { RemotePeer } from './remote-peer.ts'
import type { Resource } from './resource.ts'
import { chooseSource, hedgeDelay } from './source-choice.ts'
import { pieceBlocks } from './stripes.ts'
import { TaskTable, failedAt, unask } from './task-table.ts'

const TICK_MS = 25
/** While more bytes than this have arrived and are being written, no more is asked for in the background. */
const MAX_STORING = 8 * 1024 * 1024
/** How long a peer that refused is left alone for this resource, milliseconds. */
const REFUSED_MS = 500
const STALLED_MS = 10_000
/** A peer that sends, but not what it was asked for, gets so many times the stall timeout. */
const PATIENCE = 8
/** Peers that failed for a block are tried again after this, milliseconds: they may have it by now. */
const RETRY_MS = 1_000
/** Background work asks the origin for so much at once. */
const ORIGIN_BYTES = 16 * 1024 * 1024

export class ResourceFetch {
  readonly resource: Resource
  readonly #context: FetchContext
  readonly #tasks: TaskTable
  readonly #asks = new Set<Ask>()
  readonly #queue: BackgroundQueue
  readonly #fill: BackgroundFill
  readonly #readAhead = new ReadAhead()
  /** Peers that are left alone until then. */
  readonly #resting = new Map<string, number>()
  readonly #failures = new FetchFailures()
  #timer: NodeJS.Timeout | undefined
  #fillSoon = false
  /** Bytes that have arrived and are being written. */
  #storing = 0
  #progressAt = 0
  #retryAt = 0

  constructor(context: FetchContext, resource: Resource) {
    this.#context = context
    this.resource = resource
    this.#queue = new BackgroundQueue(resource.table.count, pieceBlocks(resource.table))
    this.#tasks = new TaskTable(context, this.#queue, () => {
      clearInterval(this.#timer)
      this.#timer = undefined
      this.#failures.clear()
    })
    this.#fill = new BackgroundFill(context, resource, this.#queue, peer => this.#mayAsk(peer), (peer, blocks) => this.#ask(peer, blocks, false))
  }

  get idle(): boolean {
    return this.#tasks.size === 0
  }

  /** Sorted absent blocks. Resolves when all are here; see BlockSource.ensure. `ordered`: background work in just this order. */
  wait(blocks: readonly number[], demand: boolean, ordered: boolean, signal?: AbortSignal): Promise<UnsavedBlocks | undefined> {
    const waiter = new Waiter(blocks.length, demand)
    const dispatch: FetchTask[] = []
    const queued: number[] = []
    if (this.#tasks.size === 0) this.#progressAt = performance.now()
    for (const block of blocks) {
      let task = this.#tasks.get(block)
      if (task === undefined) {
        task = this.#tasks.create(block)
        if (demand) dispatch.push(task)
        else queued.push(block)
      } else if (demand && !task.demand && this.#queue.take(block)) dispatch.push(task)
      task.waiters.push(waiter)
      if (demand && !task.demand) this.#tasks.promote(task)
    }
    this.#timer ??= setInterval(() => this.#tick(), TICK_MS)
    if (queued.length > 0) this.#queue.add(queued, ordered)
    if (dispatch.length > 0) this.#dispatch(dispatch, this.#ahead(dispatch))
    if (!demand) this.#fillLater()
    if (signal !== undefined) {
      const onAbort = (): void => this.#tasks.abandon(waiter, blocks, new SkimmerError('ABORTED', `${this.resource.id}: given up by the caller`, { cause: signal.reason }))
      if (signal.aborted) onAbort()
      else {
        signal.addEventListener('abort', onAbort, { once: true })
        waiter.onSettled = () => signal.removeEventListener('abort', onAbort)
      }
    }
    return waiter.promise
  }

  /** A peer connected, or came to have something. */
  onSource(): void {
    if (this.#tasks.size === 0) return
    const unasked = [...this.#tasks.demanded].filter(task => task.asks.length === 0 && !task.storing)
    if (unasked.length > 0) this.#dispatch(unasked)
    this.#fillLater()
  }

  /** A block came by another way: written by someone else. */
  onStored(block: number): void {
    const task = this.#tasks.get(block)
    if (task === undefined || task.storing) return
    const { id, table } = this.resource
    if (task.atOrigin) this.#context.accounting.add(id, 'registry', table.packedOffsets[block + 1] - table.packedOffsets[block])
    this.#done(task)
  }

  stop(error: SkimmerError): void {
    for (const ask of this.#asks) ask.peer.cancel(ask.number)
    this.#asks.clear()
    this.#tasks.failAll(error)
  }

  /** Blocks to bring along behind a miss that walks in order. */
  #ahead(tasks: readonly FetchTask[]): FetchTask[] {
    const { table, state } = this.resource
    const ahead: FetchTask[] = []
    const from = tasks[0].block
    const to = tasks.at(-1)!.block + 1
    const end = this.#readAhead.until(table, from, to)
    for (let block = to; block < end; block++) {
      if (state[block] !== 0 || !this.resource.knows(block)) continue
      const task = this.#tasks.get(block)
      if (task === undefined) ahead.push(this.#tasks.create(block))
      else if (this.#queue.take(block)) ahead.push(task)
    }
    return ahead
  }

  #mayAsk(peer: RemotePeer): boolean {
    if (!peer.connected) return false
    const until = this.#resting.get(peer.id)
    return until === undefined || until < performance.now()
  }

  /** Ask for these now. Those that nobody can be asked for stay until someone can, or their time is up. `ahead` go where the last one goes. */
  #dispatch(tasks: readonly FetchTask[], ahead: readonly FetchTask[] = []): void {
    const { id, table } = this.resource
    const peers = this.#context.peers(id).filter(peer => this.#mayAsk(peer))
    const supernodes = this.#context.supernodes(id).filter(peer => this.#mayAsk(peer))
    const groups = new Map<RemotePeer, number[]>()
    let last: RemotePeer | undefined
    for (const task of tasks) {
      const asked = (peer: RemotePeer): boolean => task.failed?.has(peer.id) === true || task.asks.some(ask => ask.peer === peer)
      const candidates = peers.filter(peer => peer.has(id, task.block) && !asked(peer))
      const supernode = supernodes.find(peer => !asked(peer))
      if (supernode !== undefined) candidates.push(supernode)
      const source = chooseSource(candidates, table.packedOffsets[task.block + 1] - table.packedOffsets[task.block])
      if (source === undefined) continue
      last = source
      const group = groups.get(source)
      if (group === undefined) groups.set(source, [task.block])
      else group.push(task.block)
    }
    for (const task of ahead) {
      if (last !== undefined && (last.supernode || last.has(id, task.block))) groups.get(last)!.push(task.block)
      else this.#requeue(task)
    }
    for (const [peer, blocks] of groups) this.#ask(peer, blocks.sort((a, b) => a - b), true)
  }

  #ask(peer: RemotePeer, blocks: readonly number[], demand: boolean): void {
    const now = performance.now()
    const { id, table } = this.resource
    const ask: Ask = { peer, number: 0, blocks, demand, progressAt: now, startedAt: now, bytes: 0, failures: 0 }
    try {
      ask.number = peer.request(id, table, blocks, demand ? 'demand' : 'background', {
        block: (block, packed) => this.#onBlock(ask, block, packed),
        end: (left, _, error) => this.#onEnd(ask, left, error),
      })
    } catch (error) {
      this.#failures.note(peer.id, (error as Error).message)
      for (const block of blocks) this.#requeue(this.#tasks.get(block)!)
      return
    }
    this.#asks.add(ask)
    const hedgeAt = now + hedgeDelay(peer, 0)
    for (const block of blocks) {
      const task = this.#tasks.get(block)!
      task.asks.push(ask)
      task.hedgeAt = hedgeAt
    }
  }

  #onBlock(ask: Ask, block: number, packed: Buffer): void {
    ask.progressAt = this.#progressAt = performance.now()
    ask.bytes += packed.length
    const task = this.#tasks.get(block)
    if (task !== undefined) unask(task, ask)
    if (task?.storing === true || this.resource.state[block] >= 2) return // the slower of two
    if (task !== undefined) task.storing = true
    this.#storing += packed.length
    void this.#store(task, ask, block, packed)
  }

  async #store(task: FetchTask | undefined, ask: Ask, block: number, packed: Buffer): Promise<void> {
    try {
      await this.resource.putBlock(block, packed, { priority: task?.demand === true ? 'demand' : 'background' })
    } catch (error) {
      this.#storing -= packed.length
      this.#notStored(task, ask, packed, error as Error)
      return
    }
    this.#storing -= packed.length
    this.#context.accounting.add(this.resource.id, sourceOf(ask.peer), packed.length, ask.peer.id)
    giveBack(packed)
    this.#fill.progressed(ask.peer.supernode)
    if (task !== undefined) this.#done(task)
  }

  #notStored(task: FetchTask | undefined, ask: Ask, packed: Buffer, error: Error): void {
    if (hasCode(error, 'DIGEST_MISMATCH')) {
      ask.failures++
      this.#failures.note(ask.peer.id, error.message)
      this.#context.ban(ask.peer, `it sent a wrong block of ${this.resource.id}`)
      if (task !== undefined) {
        task.storing = false
        failedAt(task, ask.peer, error.message)
        this.#requeue(task)
      }
      return
    }
    if (task === undefined) return
    if (hasCode(error, 'NO_SPACE') && task.demand) {
      // The reader gets it all the same: from memory, while others find no room.
      this.resource.holdBlock(task.block, packed)
      this.#context.accounting.add(this.resource.id, sourceOf(ask.peer), packed.length, ask.peer.id)
      for (const waiter of task.waiters) {
        if (waiter.demand) waiter.arrived(task.block, packed)
        else waiter.fail(error)
      }
      this.#tasks.remove(task)
      return
    }
    this.#tasks.fail(task, error)
    if (hasCode(error, 'NO_SPACE')) this.#tasks.failBackground(error)
  }

  #onEnd(ask: Ask, left: ReadonlySet<number>, error: SkimmerError | undefined): void {
    this.#asks.delete(ask)
    const { peer } = ask
    const millis = performance.now() - ask.startedAt
    if (error !== undefined) {
      ask.failures++
      this.#failures.note(peer.id, error.message)
      if (peer.connected) {
        this.#resting.set(peer.id, performance.now() + REFUSED_MS)
        this.#context.refused(peer, this.resource.id, error)
      }
    }
    this.#context.served(this.resource.id, peer, ask.bytes, ask.blocks.length - left.size, ask.failures, millis)
    for (const block of left) {
      const task = this.#tasks.get(block)
      if (task === undefined) continue
      unask(task, ask)
      if (error !== undefined) failedAt(task, peer, error.message)
      if (!task.storing && task.asks.length === 0) this.#requeue(task)
    }
    this.#fillLater()
  }

  #requeue(task: FetchTask): void {
    if (task.demand) {
      // Not at once: several blocks come back together, and then go out together.
      queueMicrotask(() => { if (task.asks.length === 0 && !task.storing && this.#tasks.isOpen(task)) this.#dispatch([task]) })
    } else if (task.waiters.length === 0) this.#tasks.remove(task)
    else {
      this.#queue.putBack(task.block)
      this.#fillLater()
    }
  }

  #done(task: FetchTask): void {
    this.#progressAt = performance.now()
    this.#tasks.remove(task)
    for (const waiter of task.waiters) waiter.arrived(task.block)
    // A second request for the same is called off once nothing of it is needed.
    for (const ask of task.asks) {
      if (ask.blocks.some(block => this.#tasks.has(block))) continue
      this.#asks.delete(ask)
      ask.peer.cancel(ask.number)
    }
    this.#fillLater()
  }

  #fillLater(): void {
    if (this.#fillSoon || this.#queue.size === 0) return
    this.#fillSoon = true
    setImmediate(() => {
      this.#fillSoon = false
      this.#fillNow()
    })
  }

  #fillNow(): void {
    if (this.#queue.size > 0 && this.#storing < MAX_STORING && !this.#context.demandWaits()) this.#fill.fill(() => this.#asks.size > 0)
  }

  #tick(): void {
    const now = performance.now()
    const { limits } = this.#context
    const { id, table } = this.resource
    const retry = now - this.#retryAt > RETRY_MS
    if (retry) this.#retryAt = now
    const dispatch: FetchTask[] = []
    for (const task of this.#tasks.demanded) {
      if (now - task.since > limits.demandTimeout) {
        this.#tasks.fail(task, this.#failures.outOfTime(id, task, limits.demandTimeout, this.#asks))
        continue
      }
      if (task.storing) continue
      if (retry) task.failed = undefined
      if (task.asks.length === 0) dispatch.push(task)
      else if (task.asks.length < 2 && now > task.hedgeAt) {
        task.hedgeAt = Infinity
        dispatch.push(task)
      }
    }
    if (dispatch.length > 0) {
      this.#dispatch(dispatch)
      void this.#toOrigin(dispatch.filter(task => task.asks.length === 0 && !task.atOrigin && now - task.since > limits.originAfter))
    }
    for (const ask of this.#asks) {
      // While it sends at all, what was asked for may be next in its queue, or a large block half-way: on a slow link that takes its time.
      const quiet = now - ask.progressAt
      if (quiet < limits.stallTimeout || (now - ask.peer.receivedAt < limits.stallTimeout && quiet < PATIENCE * limits.stallTimeout)) continue
      // Nothing came for a long time: what it was asked for is asked of others.
      ask.peer.cancel(ask.number)
      this.#resting.set(ask.peer.id, now + STALLED_MS)
      ask.failures++
      this.#onEnd(ask, new Set(ask.blocks.filter(block => this.#tasks.get(block)?.asks.includes(ask))), new SkimmerError('TIMEOUT', `peer ${ask.peer.id} sent nothing for ${limits.stallTimeout} ms`))
      this.#resting.set(ask.peer.id, now + STALLED_MS)
      this.#context.morePeers(this.resource)
    }
    if (this.#queue.size > 0) {
      if (this.#context.demandWaits()) this.#progressAt = now
      if (now - this.#progressAt > limits.originAfter && this.#asks.size === 0 && this.#context.origin !== undefined && this.#context.supernodes(id).length === 0) {
        const blocks = this.#queue.choose(ORIGIN_BYTES, block => table.packedOffsets[block + 1] - table.packedOffsets[block], () => true, () => 0)
        void this.#toOrigin(blocks.flatMap(block => this.#tasks.get(block) ?? []))
      }
      if (now - this.#progressAt > limits.backgroundTimeout) this.#tasks.failBackground(new SkimmerError('UNAVAILABLE', `${id}: nothing came for ${limits.backgroundTimeout} ms; ${this.#failures.tried(this.#asks)}`))
      this.#fillNow()
    }
  }

  async #toOrigin(tasks: readonly FetchTask[]): Promise<void> {
    if (this.#context.origin === undefined || tasks.length === 0) return
    await bringFromOrigin(this.#context.origin, this.resource, tasks, this.#context.limits.demandTimeout, this.#failures)
    for (const task of tasks) {
      if (!this.#tasks.isOpen(task)) continue
      if (this.resource.state[task.block] !== 0) this.#done(task)
      else if (!task.demand && task.asks.length === 0 && !task.storing) this.#requeue(task)
    }
  }
}
