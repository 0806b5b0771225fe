// The remote-snapshotter contract: a layer that can be served lazily is committed by ourselves before containerd downloads it.
import { setTimeout as delay } from 'node:timers/promises'
import type { Logger } from 'pino'
import type { Counter } from 'prom-client'
import { chainId as chainIdOf } from '../oci/chain-id.ts'
import { SkimmerError, hasCode } from '../oci/errors.ts'
import { TARGET_LABEL, isDigest, readImageLabels } from './image-labels.ts'
import { KeyedLock } from './keyed-lock.ts'
import type { ClaimedLayer, LayerClaim, LazyImages } from './lazy-images.ts'
import { isAlreadyExists } from './snapshot-errors.ts'
import type { SnapshotStore } from './snapshot-store.ts'

/** Indexing a never-seen layer of many gigabytes takes minutes, but unpacking it here would take longer. */
export const DEFAULT_CLAIM_TIMEOUT_MS = 10 * 60_000
/** How long a source may be away before the layer is downloaded the ordinary way. */
export const DEFAULT_UNAVAILABLE_WAIT_MS = 10_000
const RETRY_DELAY_MS = 500

export interface LazyClaimOptions {
  readonly claimTimeoutMs?: number
  readonly unavailableWaitMs?: number
}

export interface LayerPrepare {
  readonly parent: string
  readonly labels: Readonly<Record<string, string>>
}

/** `claimed` names the committed snapshot that now holds the layer; otherwise `why` says why it must be unpacked. */
export type ClaimOutcome = { readonly claimed: string } | { readonly claimed?: undefined; readonly why: string }

export class LazyClaims {
  readonly #store: SnapshotStore
  readonly #lazy: LazyImages | undefined
  readonly #logger: Logger
  readonly #counter: Counter<'result'>
  readonly #claimTimeoutMs: number
  readonly #unavailableWaitMs: number
  readonly #targets = new KeyedLock()
  /** Layers that may have lost their last snapshot. Looked at when no claim runs: a claim may be about to name them. */
  readonly #forgettable = new Set<string>()
  #running = 0

  constructor(components: { store: SnapshotStore; lazy: LazyImages | undefined; logger: Logger; counter: Counter<'result'> }, options: LazyClaimOptions = {}) {
    this.#store = components.store
    this.#lazy = components.lazy
    this.#logger = components.logger
    this.#counter = components.counter
    this.#claimTimeoutMs = options.claimTimeoutMs ?? DEFAULT_CLAIM_TIMEOUT_MS
    this.#unavailableWaitMs = options.unavailableWaitMs ?? DEFAULT_UNAVAILABLE_WAIT_MS
  }

  /** @throws ABORTED when the caller gave up; what the store throws when the metadata cannot be written. */
  async attempt(prepare: LayerPrepare, signal: AbortSignal): Promise<ClaimOutcome> {
    const target = prepare.labels[TARGET_LABEL]
    if (target === undefined) return { why: 'not a layer of an image: the caller named no chain ID' }
    if (this.#lazy === undefined) return { why: 'lazy loading is turned off' }
    if (!isDigest(target)) return this.#ordinary('malformed', `the chain ID ${JSON.stringify(target.slice(0, 100))} is not a sha256 digest`)
    const lazy = this.#lazy
    this.#running++
    try {
      // Two namespaces may pull one image at once: the second finds what the first committed.
      return await this.#targets.run(target, () => this.#claim(lazy, target, prepare, signal))
    } finally {
      this.#running--
      this.#forgetUnnamed()
    }
  }

  /** A snapshot that named the layer is gone. */
  released(diffId: string): void {
    this.#forgettable.add(diffId)
    this.#forgetUnnamed()
  }

  async #claim(lazy: LazyImages, target: string, prepare: LayerPrepare, signal: AbortSignal): Promise<ClaimOutcome> {
    const { parent, labels } = prepare
    const existing = this.#store.find(target)
    if (existing !== undefined) {
      const same = existing.kind === 'committed' && existing.parent === parent && existing.labels[TARGET_LABEL] === target
      return same ? this.#claimed('known', target) : this.#ordinary('conflict', `a snapshot named ${target} exists that is not this layer`)
    }
    const ancestors = this.#store.ancestors(parent)
    const unlazy = ancestors.find(each => each.lazy === undefined)
    if (unlazy !== undefined) return this.#ordinary('parent', `the layer below is unpacked the ordinary way (${unlazy.why})`)
    const parentDiffIds = ancestors.flatMap(each => (each.lazy === undefined ? [] : [each.lazy.diffId])).toReversed()
    const claim = { ...readImageLabels(labels), chainId: target, parentDiffIds }
    let layer: ClaimedLayer
    let chainId: string
    try {
      layer = await this.#ask(lazy, claim, signal)
      chainId = chainIdOf([...parentDiffIds, layer.diffId])
    } catch (error) {
      if (signal.aborted) throw new SkimmerError('ABORTED', `the caller gave up on layer ${target}`, { cause: error })
      return this.#refused(target, error)
    }
    // Known until a snapshot names it: should anything below fail, the node is told to forget it.
    this.#forgettable.add(layer.diffId)
    if (chainId !== target) return this.#ordinary('mismatch', `layer ${layer.diffId} does not make the chain ${target} but ${chainId}`, { target })
    try {
      await this.#store.create({
        id: this.#store.nextId(),
        kind: 'committed',
        name: target,
        parent,
        labels,
        usage: { size: layer.size, inodes: layer.inodes },
        lazy: { diffId: layer.diffId, chainId },
        why: 'its blocks come when they are read',
      })
    } catch (error) {
      if (isAlreadyExists(error)) return this.#ordinary('conflict', `a snapshot named ${target} was made meanwhile`)
      throw error
    }
    return this.#claimed('claimed', target)
  }

  /** Asks again while sources are away, but not for long: an ordinary pull is the better answer then. */
  async #ask(lazy: LazyImages, claim: LayerClaim, signal: AbortSignal): Promise<ClaimedLayer> {
    const bounded = AbortSignal.any([signal, AbortSignal.timeout(this.#claimTimeoutMs)])
    const lastRetry = performance.now() + this.#unavailableWaitMs
    for (;;) {
      try {
        return await untilAborted(lazy.claim(claim, bounded), bounded)
      } catch (error) {
        if (!hasCode(error, 'UNAVAILABLE') || bounded.aborted || performance.now() + RETRY_DELAY_MS > lastRetry) throw error
        this.#logger.debug({ chainId: claim.chainId, err: error }, 'no source for a layer yet; asking again')
        await delay(RETRY_DELAY_MS, undefined, { signal: bounded })
      }
    }
  }

  #refused(target: string, error: unknown): ClaimOutcome {
    if (hasCode(error, 'UNSUPPORTED', 'INVALID_DATA', 'NOT_FOUND')) return this.#ordinary('unsupported', error.message, { target })
    if (hasCode(error, 'UNAVAILABLE', 'TIMEOUT', 'ABORTED') || isTimeout(error)) return this.#ordinary('unavailable', messageOf(error), { target, err: error })
    return this.#ordinary('failed', messageOf(error), { target, err: error })
  }

  #claimed(result: string, target: string): ClaimOutcome {
    this.#counter.inc({ result })
    this.#logger.debug({ target, result }, 'layer is served lazily')
    return { claimed: target }
  }

  #ordinary(result: string, why: string, facts: object = {}): ClaimOutcome {
    this.#counter.inc({ result })
    const level = result === 'parent' ? 'debug' : 'warn'
    this.#logger[level]({ result, why, ...facts }, 'layer is unpacked the ordinary way')
    return { why }
  }

  #forgetUnnamed(): void {
    if (this.#running > 0 || this.#forgettable.size === 0 || this.#lazy === undefined) return
    const named = new Set(this.#store.list().map(each => each.lazy?.diffId))
    for (const diffId of this.#forgettable) {
      if (named.has(diffId)) continue
      this.#lazy.forget(diffId).catch((error: unknown) => this.#logger.warn({ diffId, err: error }, 'a layer that no snapshot needs could not be given up'))
    }
    this.#forgettable.clear()
  }
}

/** A claim that ignores its signal must not hold containerd. */
async function untilAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted()
  const { promise: aborted, reject } = Promise.withResolvers<never>()
  const abort = (): void => reject(signal.reason)
  signal.addEventListener('abort', abort, { once: true })
  try {
    return await Promise.race([work, aborted])
  } finally {
    signal.removeEventListener('abort', abort)
  }
}

/** The claim's own bound fired (the caller's signal is looked at before). Its reason is a DOMException, which has a name and no code. */
const isTimeout = (error: unknown): boolean => typeof error === 'object' && error !== null && 'name' in error && (error.name === 'TimeoutError' || error.name === 'AbortError')
const messageOf = (error: unknown): string => (isTimeout(error) ? 'the layer was not ready in time' : error instanceof Error ? error.message : String(error))
