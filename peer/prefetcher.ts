// The prefetcher: makes whole, in the background, what containers use: the trace first, the rest once the start has gone quiet.
import { EventEmitter } from 'node:events'
import type { Logger } from 'pino'
import { Counter, Gauge } from 'prom-client'
import type { Registry } from 'prom-client'
import { SkimmerError, hasCode } from '../oci/errors.ts'
import type { Trace } from './control.ts'
import type { Fetcher } from './fetcher.ts'
import type { Resource } from './resource.ts'
import { pause } from './pause.ts'
import { traceRuns } from './trace.ts'

export interface PrefetcherOptions {
  /** The rest of an image is not fetched before this time after hold(), milliseconds. Default 1,500. */
  startMs?: number
  /** Nor before no reader missed a block for this long, milliseconds. Default 1,000. */
  quietMs?: number
  /** Yet it is fetched after this time even while readers still miss, milliseconds: they overtake it anyway. Default 30,000. */
  patienceMs?: number
  /** Between attempts that fail, milliseconds: doubled from the first to the second. Default 1,000 and 60,000. */
  backoffMs?: readonly [number, number]
}

export interface HoldOptions {
  /** Blocks to bring at once. */
  trace?: Trace
  /** For logs and progress. */
  image: string
  /** Do not wait for quiet: preheat, dfget. */
  now?: boolean
}

export interface HoldProgress { readonly image: string; readonly bytes: number; readonly total: number; readonly whole: boolean; readonly proved: boolean }

/** One held set of resources. Ends with 'whole' and 'proved', or when released. */
export class Hold extends EventEmitter<{ progress: [HoldProgress]; whole: []; proved: []; failed: [error: Error] }> {
  readonly resources: readonly Resource[]
  readonly image: string
  readonly abort = new AbortController()
  constructor(resources: readonly Resource[], image: string) {
    super()
    this.resources = resources
    this.image = image
  }

  get progress(): HoldProgress {
    const { resources, image } = this
    return {
      image,
      bytes: resources.reduce((sum, resource) => sum + resource.storedBytes, 0),
      total: resources.reduce((sum, { table }) => sum + table.packedOffsets[table.count], 0),
      whole: resources.every(resource => resource.whole),
      proved: resources.every(resource => resource.proved),
    }
  }

  /** Stops the work; what is here stays. */
  release(): void {
    this.abort.abort(new SkimmerError('ABORTED', `${this.image} is no longer held`))
  }
}

let holds = 0

export class Prefetcher {
  readonly #fetcher: Fetcher
  readonly #logger: Logger
  readonly #options: Required<PrefetcherOptions>
  readonly #holds = new Set<Hold>()
  readonly #proofs: Counter<'result'>
  /** Called when a resource is whole but not what its image's config promised: it is quarantined, and others should know. */
  onQuarantined: ((resourceId: string, reason: string) => void) | undefined

  constructor(components: { fetcher: Fetcher; logger: Logger; metrics: Registry }, options: PrefetcherOptions = {}) {
    this.#fetcher = components.fetcher
    this.#logger = components.logger
    this.#options = { startMs: options.startMs ?? 1_500, quietMs: options.quietMs ?? 1_000, patienceMs: options.patienceMs ?? 30_000, backoffMs: options.backoffMs ?? [1_000, 60_000] }
    const registers = [components.metrics]
    this.#proofs = new Counter({ name: 'skimmer_peer_prefetch_proofs_total', help: 'Whole resources that were proved, or failed it', labelNames: ['result'], registers })
    const held = this.#holds
    void new Gauge({ name: 'skimmer_peer_prefetch_images', help: 'Images being made whole', registers, collect() { this.set(held.size) } })
  }

  /** Make these whole and prove them; goes on through failures, with pauses, until released. The resources are pinned meanwhile. */
  hold(resources: readonly Resource[], options: HoldOptions): Hold {
    const hold = new Hold(resources, options.image)
    this.#holds.add(hold)
    void this.#run(hold, options)
    return hold
  }

  stop(): void {
    for (const hold of this.#holds) hold.release()
  }

  async #run(hold: Hold, options: HoldOptions): Promise<void> {
    const pin = `prefetch:${++holds}`
    const { signal } = hold.abort
    const closers = hold.resources.map(resource => this.#fetcher.open(resource))
    for (const resource of hold.resources) resource.pin(pin)
    let moved = false
    const onBlock = (): void => { moved = true }
    for (const resource of hold.resources) resource.on('block', onBlock)
    const ticker = setInterval(() => {
      if (moved) hold.emit('progress', hold.progress)
      moved = false
    }, 250)
    ticker.unref()
    try {
      let backoff = this.#options.backoffMs[0]
      let quiet = options.now === true
      for (;;) {
        try {
          if (options.trace !== undefined) await this.#bringTrace(hold, options.trace)
          if (!quiet) await this.#untilQuiet(hold)
          quiet = true
          await this.#bringAll(hold)
          break
        } catch (error) {
          if (signal.aborted) return
          if (hasCode(error, 'DIGEST_MISMATCH')) throw error
          this.#logger.warn({ image: hold.image, error: (error as Error).message, retryMs: backoff }, 'prefetching stopped; it goes on later')
          await pause(backoff * (0.75 + Math.random() / 2), signal)
          if (signal.aborted) return
          backoff = Math.min(this.#options.backoffMs[1], backoff * 2)
        }
      }
      hold.emit('progress', hold.progress)
      hold.emit('proved')
      this.#logger.info({ image: hold.image }, 'an image is whole and proved')
    } catch (error) {
      this.#logger.error({ image: hold.image, err: error }, 'an image is not what its manifest promises')
      hold.emit('failed', error as Error)
    } finally {
      clearInterval(ticker)
      for (const resource of hold.resources) {
        resource.off('block', onBlock)
        resource.unpin(pin)
      }
      for (const close of closers) close()
      this.#holds.delete(hold)
    }
  }

  /** The trace's order holds within a resource; resources go side by side, as the start read them. */
  async #bringTrace(hold: Hold, trace: Trace): Promise<void> {
    const { signal } = hold.abort
    const byId = new Map(hold.resources.map(resource => [resource.id, resource]))
    const blocks = new Map<Resource, number[]>()
    for (const run of traceRuns(trace)) {
      const resource = byId.get(run.resource)
      if (resource === undefined) continue
      const list = blocks.get(resource)
      if (list === undefined) blocks.set(resource, run.blocks)
      else for (const block of run.blocks) list.push(block)
    }
    await Promise.all([...blocks].map(([resource, list]) => this.#fetcher.ensureInOrder(resource, list, signal)))
  }

  async #untilQuiet(hold: Hold): Promise<void> {
    const { signal } = hold.abort
    const { startMs, quietMs, patienceMs } = this.#options
    const ids = hold.resources.map(resource => resource.id)
    const begun = performance.now()
    for (;;) {
      const now = performance.now()
      const wait = Math.max(begun + startMs - now, Math.min(this.#fetcher.lastDemand(ids) + quietMs, begun + patienceMs) - now)
      if (wait <= 0) return
      await pause(wait, signal)
      signal.throwIfAborted()
    }
  }

  /**
   * All blocks first, then the proofs: a proof unpacks and hashes everything, and while others still wait for blocks from here, that is worth
   * less than passing blocks on.
   */
  async #bringAll(hold: Hold): Promise<void> {
    const { signal } = hold.abort
    const bring = (resource: Resource): Promise<unknown> => this.#fetcher.ensure(resource, [{ from: 0, to: resource.table.count }], { priority: 'background', signal })
    await settleAll(hold.resources.map(bring))
    hold.emit('whole')
    await settleAll(hold.resources.filter(resource => resource.diffId !== undefined && !resource.proved).map(async resource => {
      for (;;) {
        try {
          await resource.prove()
          this.#proofs.inc({ result: 'proved' })
          return
        } catch (error) {
          if (hasCode(error, 'DIGEST_MISMATCH')) {
            this.#proofs.inc({ result: 'false' })
            this.onQuarantined?.(resource.id, (error as Error).message)
          }
          if (!hasCode(error, 'NOT_FOUND', 'CONFLICT')) throw error
          signal.throwIfAborted()
          // A damaged block that the proof found is brought again.
          await bring(resource)
        }
      }
    }))
  }
}

/** Waits for all, then throws the first failure: nothing goes on unwatched behind an error. */
async function settleAll(works: readonly Promise<unknown>[]): Promise<void> {
  const failed = (await Promise.allSettled(works)).find(outcome => outcome.status === 'rejected')
  if (failed !== undefined) throw failed.reason
}
