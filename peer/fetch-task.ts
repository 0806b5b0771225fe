// What the fetcher waits for: one task a wanted block, and the callers that wait for several of them.
import type { RemotePeer } from './remote-peer.ts'

/** Blocks that were delivered but found no room in the store: packed bytes, verified. */
export type UnsavedBlocks = Map<number, Buffer>

/** One call of ensure(): it ends when its last block is here, or with the first error. */
export class Waiter {
  readonly promise: Promise<UnsavedBlocks | undefined>
  readonly demand: boolean
  /** Called once when it ends either way. */
  onSettled: (() => void) | undefined
  #left: number
  #unsaved: UnsavedBlocks | undefined
  #resolve!: (unsaved: UnsavedBlocks | undefined) => void
  #reject!: (error: Error) => void
  #settled = false

  constructor(count: number, demand: boolean) {
    this.#left = count
    this.demand = demand
    this.promise = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
  }

  get settled(): boolean {
    return this.#settled
  }

  arrived(block: number, unsaved?: Buffer): void {
    if (unsaved !== undefined) (this.#unsaved ??= new Map()).set(block, unsaved)
    if (--this.#left > 0 || this.#settled) return
    this.#settled = true
    this.onSettled?.()
    this.#resolve(this.#unsaved)
  }

  fail(error: Error): void {
    if (this.#settled) return
    this.#settled = true
    this.onSettled?.()
    this.#reject(error)
  }
}

/** One block being brought, however many wait for it. */
export interface FetchTask {
  readonly block: number
  /** A reader waits. Else it is read ahead, or background work. */
  demand: boolean
  readonly waiters: Waiter[]
  /** Requests under way for it: two when it was hedged. */
  readonly asks: Ask[]
  /** Peers that failed for this block, and why: they are not asked again for it. */
  failed: Map<string, string> | undefined
  /** Milliseconds of performance.now(). */
  readonly since: number
  hedgeAt: number
  /** The bytes are here and being stored. */
  storing: boolean
  /** The way back to the source is being tried. */
  atOrigin: boolean
}

/** One request to one peer. */
export interface Ask {
  readonly peer: RemotePeer
  number: number
  readonly blocks: readonly number[]
  readonly demand: boolean
  /** When it last brought something, performance.now(). */
  progressAt: number
  readonly startedAt: number
  bytes: number
  failures: number
}

/** Injected: brings blocks without any peer or supernode, for instance by indexing the layer from the registry again. */
export type Origin = (resourceId: string, blocks: readonly number[], signal: AbortSignal) => Promise<void>

