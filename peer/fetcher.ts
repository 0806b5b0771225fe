// The fetcher: brings wanted blocks from wherever they are nearest, once each, however many wait for them.
import { createHash } from 'node:crypto'
import type { Logger } from 'pino'
import type { Registry } from 'prom-client'
import { SkimmerError, hasCode } from '../oci/errors.ts'
import type { BlockStore } from './block-store.ts'
import type { BlockRange } from './exchange-wire.ts'
import { FetchAccounting } from './fetch-accounting.ts'
import type { FetchStats, SourceBytes } from './fetch-accounting.ts'
import { DEFAULT_FETCH_LIMITS } from './fetch-context.ts'
import type { FetchContext, FetchLimits } from './fetch-context.ts'
import type { Origin, UnsavedBlocks } from './fetch-task.ts'
import { FetchMetrics } from './fetch-metrics.ts'
import { ParentSearch } from './parent-search.ts'
import type { PeerPool } from './peer-pool.ts'
import type { RemotePeer } from './remote-peer.ts'
import type { Resource } from './resource.ts'
import { ResourceFetch } from './resource-fetch.ts'
import { peerSeed } from './stripes.ts'
import type { Supernodes } from './supernodes.ts'
import { TokenBucket } from './token-bucket.ts'
import { TransferReports } from './transfer-reports.ts'

export interface EnsureOptions {
  /** 'demand': a reader waits. 'background': when nobody does. */
  priority: 'demand' | 'background'
  signal?: AbortSignal
}

/** What readers need: blockdev/, registry-proxy/ and dfget/ know the fetcher by this. */
export interface BlockSource {
  /**
   * Resolves when all blocks in the ranges (`to` exclusive) are in the store and verified. Blocks for which the store has
   * no room are returned, packed and verified (and held in memory for FUSE threads for a while). One fetch a block however many
   * wait. Errors: UNAVAILABLE or TIMEOUT with what was tried, when the bounded wait ends; NO_SPACE for background work; ABORTED.
   */
  ensure(resource: Resource, ranges: readonly BlockRange[], options: EnsureOptions): Promise<UnsavedBlocks | undefined>
}

export interface FetcherOptions extends Partial<FetchLimits> {
  /** Bytes per second of background work. Default: no limit. */
  backgroundBytesPerSecond?: number
  /** Brings blocks when no peer and no supernode can. */
  origin?: Origin
}

/** A resource nobody fetched from for this long is let go of, milliseconds. */
const IDLE_MS = 60_000
/** A reader counts as waiting for so long after its miss: one that waits in vain must not stop all background work. */
const DEMAND_FRESH_MS = 300

export interface OpenOptions {
  /** False: other peers are not asked, only supernodes. Another holder that wants peers overrules this. */
  peers?: boolean
  /** Peer id of the supernode that is known to have it: it is asked before the one that the resource's id points to. */
  supernode?: string
}

interface Hold { readonly peers: boolean; readonly supernode: string | undefined }
interface Opened { readonly fetch: ResourceFetch; readonly parents: ParentSearch; usedAt: number; demandAt: number; readonly holds: Set<Hold>; searching: boolean; readonly onBlock: (block: number) => void; readonly onQuarantined: (reason: string) => void }

export class Fetcher implements BlockSource {
  readonly accounting: FetchAccounting
  readonly #store: BlockStore
  readonly #pool: PeerPool
  readonly #supernodes: Supernodes
  readonly #logger: Logger
  readonly #context: FetchContext
  readonly #reports: TransferReports
  readonly #metrics: FetchMetrics
  readonly #opened = new Map<string, Opened>()
  readonly #sweep: NodeJS.Timeout
  #demands = 0
  #demandAt = -Infinity
  /** Called when a peer refuses for want of a grant. */
  onForbidden: ((resourceId: string) => void) | undefined
  /** Called when a resource is about to be fetched: others should be told that this node has, and wants, parts of it. */
  onOpened: ((resource: Resource) => void) | undefined

  constructor(components: { self: string; store: BlockStore; pool: PeerPool; supernodes: Supernodes; logger: Logger; metrics: Registry }, options: FetcherOptions = {}) {
    this.#store = components.store
    this.#pool = components.pool
    this.#supernodes = components.supernodes
    this.#logger = components.logger
    this.accounting = new FetchAccounting(components.metrics)
    this.#metrics = new FetchMetrics(components.metrics)
    this.#reports = new TransferReports(components.supernodes)
    const { backgroundBytesPerSecond, origin, ...limits } = options
    this.#context = {
      self: peerSeed(components.self),
      limits: { ...DEFAULT_FETCH_LIMITS, ...limits },
      logger: components.logger,
      accounting: this.accounting,
      background: new TokenBucket(backgroundBytesPerSecond ?? Infinity),
      origin,
      peers: id => this.#mayAskPeers(id) ? this.#pool.connected().filter(peer => !peer.supernode && peer.holdings(id) !== undefined) : [],
      supernodes: id => this.#supernodesFor(id).flatMap(peerId => {
        const peer = this.#pool.get(peerId)
        if (peer?.connected === true) return [peer]
        void this.#pool.connect(peerId, true)
        return []
      }),
      ban: (peer, reason) => this.#pool.ban(peer.id, reason),
      refused: (_, id, error) => { if (hasCode(error, 'FORBIDDEN')) this.onForbidden?.(id) },
      morePeers: resource => this.#opened.get(resource.id)?.parents.soon(),
      served: (id, peer, bytes, blocks, failures, millis) => { if (!peer.supernode) this.#reports.add(id, peer.id, bytes, blocks, failures, millis) },
      demand: change => {
        this.#demands += change
        if (change > 0) this.#demandAt = performance.now()
      },
      demandWaits: () => this.#demands > 0 && performance.now() - this.#demandAt < DEMAND_FRESH_MS,
    }
    this.#sweep = setInterval(() => this.#closeIdle(), 10_000)
    this.#sweep.unref()
  }

  /** Set when the way back to the registry is known only after this was made. */
  setOrigin(origin: Origin): void {
    (this.#context as { origin: Origin | undefined }).origin = origin
  }

  /**
   * A resource will be read from soon: its parents are looked up and connected to now, so that the first miss finds them.
   * The function returned takes that back; without it the resource is let go of a minute after its last fetch.
   */
  open(resource: Resource, options: OpenOptions = {}): () => void {
    const hold: Hold = { peers: options.peers ?? true, supernode: options.supernode }
    const opened = this.#open(resource, hold)
    return () => { opened.holds.delete(hold) }
  }

  async ensure(resource: Resource, ranges: readonly BlockRange[], options: EnsureOptions): Promise<UnsavedBlocks | undefined> {
    return await this.#ensure(resource, this.#absent(resource, ranges, options.priority), options, false)
  }

  /** Background work in just this order: a trace. */
  async ensureInOrder(resource: Resource, blocks: readonly number[], signal?: AbortSignal): Promise<void> {
    const absent = [...new Set(blocks)].filter(block => block < resource.table.count && resource.state[block] === 0 && resource.knows(block))
    await this.#ensure(resource, { absent, doubted: [] }, { priority: 'background', signal }, true)
  }

  /** A content-addressed object (a layer index): supernodes first, then connected peers. NOT_FOUND or UNAVAILABLE with what was tried. */
  async object(digest: string, options: { signal?: AbortSignal } = {}): Promise<Buffer> {
    const local = await this.#store.getObject(digest)
    if (local !== undefined) return local
    const bound = AbortSignal.timeout(this.#context.limits.demandTimeout)
    const signal = options.signal === undefined ? bound : AbortSignal.any([options.signal, bound])
    const reasons: string[] = []
    let notFound = true
    const supernodes = await Promise.all(this.#supernodes.inOrder(`layer:${digest}`).map(({ peerId }) => this.#pool.connect(peerId, true)))
    for (const peer of [...supernodes, ...this.#pool.connected().filter(peer => !peer.supernode)]) {
      if (peer === undefined) continue
      try {
        const bytes = await peer.object(digest, signal)
        if (`sha256:${createHash('sha256').update(bytes).digest('hex')}` !== digest) {
          this.#pool.ban(peer.id, `it sent a wrong object for ${digest}`)
          reasons.push(`${peer.id} sent wrong bytes`)
          continue
        }
        this.accounting.addObject(digest, peer.supernode ? 'supernode' : 'peer', bytes.length, peer.id)
        await this.#keepObject(bytes)
        return bytes
      } catch (error) {
        if (hasCode(error, 'FORBIDDEN')) this.onForbidden?.(`layer:${digest}`)
        if (!hasCode(error, 'NOT_FOUND')) notFound = false
        reasons.push((error as Error).message)
        if (signal.aborted) break
      }
    }
    options.signal?.throwIfAborted()
    throw new SkimmerError(notFound && reasons.length > 0 ? 'NOT_FOUND' : 'UNAVAILABLE', `object ${digest} could not be fetched; ${reasons.length === 0 ? 'no supernode or peer is connected' : `tried ${reasons.slice(0, 8).join('; ')}`}`)
  }

  /** Bytes and blocks that came for a resource since this process started, by source and by time. */
  stats(resourceId: string): FetchStats {
    return this.accounting.stats(resourceId)
  }

  /** Bytes by source for an image's resources that came until `time` (milliseconds since 1970; default now). */
  imageStats(resourceIds: readonly string[], time = Date.now()): SourceBytes {
    return this.accounting.until(resourceIds, time)
  }

  /** When a reader last missed a block of these resources, milliseconds of performance.now(); -Infinity for never. */
  lastDemand(resourceIds: readonly string[]): number {
    return resourceIds.reduce((last, id) => Math.max(last, this.#opened.get(id)?.demandAt ?? -Infinity), -Infinity)
  }

  /** A peer's exchange is open: it is told what is being fetched. */
  onConnected(peer: RemotePeer): void {
    for (const { fetch } of this.#opened.values()) {
      if (!peer.supernode && !fetch.resource.whole && this.#mayAskPeers(fetch.resource.id)) peer.interest(fetch.resource.id, fetch.resource.table)
      if (peer.supernode) fetch.onSource()
    }
  }

  onHave(resourceId: string): void {
    this.#opened.get(resourceId)?.fetch.onSource()
  }

  /** A peer asks for this resource, so it has parts of it or soon will. */
  onInterested(peerId: string, resourceId: string): void {
    const opened = this.#opened.get(resourceId)
    if (opened !== undefined && !opened.fetch.resource.whole && this.#mayAskPeers(resourceId)) void this.#pool.connect(peerId)
  }

  stop(): void {
    clearInterval(this.#sweep)
    this.#reports.stop()
    for (const id of this.#opened.keys()) this.#close(id, new SkimmerError('ABORTED', 'this peer is stopping'))
  }

  #absent(resource: Resource, ranges: readonly BlockRange[], priority: 'demand' | 'background'): { absent: number[]; doubted: number[] } {
    const absent: number[] = []
    const doubted: number[] = []
    let last = 0
    for (const { from, to } of ranges) {
      if (!(from >= last && to >= from && to <= resource.table.count)) throw new SkimmerError('INVALID_ARGUMENT', `${resource.id}: blocks ${from} to ${to} of ${resource.table.count} are not a range in order`)
      last = to
      for (let block = from; block < to; block++) {
        const state = resource.state[block]
        if (state === 0) {
          if (!resource.knows(block)) throw new SkimmerError('INVALID_ARGUMENT', `${resource.id}: the hash of block ${block} is not known yet, so it cannot be fetched`)
          absent.push(block)
        }
        else if (state === 1 && priority === 'demand') doubted.push(block) // in the background the proof of the whole finds what is damaged
      }
    }
    return { absent, doubted }
  }

  async #ensure(resource: Resource, blocks: { absent: number[]; doubted: number[] }, options: EnsureOptions, ordered: boolean): Promise<UnsavedBlocks | undefined> {
    let { absent } = blocks
    options.signal?.throwIfAborted()
    if (blocks.doubted.length > 0) {
      const checked = await Promise.all(blocks.doubted.map(async block => ({ block, good: await resource.check(block) })))
      const bad = checked.filter(({ good }) => !good).map(({ block }) => block)
      if (bad.length > 0) absent = [...absent, ...bad].sort((a, b) => a - b)
    }
    if (absent.length === 0) return undefined
    const demand = options.priority === 'demand'
    const opened = this.#open(resource)
    if (demand) opened.demandAt = performance.now()
    const copies = this.#store.findCopies(resource, absent)
    if (copies.length > 0) {
      const { table } = resource
      const copied = new Set(await this.#store.copyBlocks(resource, copies.map(({ block }) => block), options))
      for (const block of copied) this.accounting.add(resource.id, 'local', table.packedOffsets[block + 1] - table.packedOffsets[block])
      absent = absent.filter(block => resource.state[block] === 0)
      if (absent.length === 0) return undefined
    }
    return await this.#metrics.time(options.priority, opened.fetch.wait(absent, demand, ordered, options.signal))
  }

  #open(resource: Resource, hold?: Hold): Opened {
    let opened = this.#opened.get(resource.id)
    if (opened !== undefined && opened.fetch.resource !== resource) {
      this.#close(resource.id, new SkimmerError('NOT_FOUND', `${resource.id} was replaced in the store`))
      opened = undefined
    }
    if (opened === undefined) {
      const fetch = new ResourceFetch(this.#context, resource)
      opened = {
        fetch, parents: new ParentSearch({ pool: this.#pool, supernodes: this.#supernodes, logger: this.#logger }, resource),
        usedAt: 0, demandAt: -Infinity, holds: new Set(), searching: false, onBlock: block => fetch.onStored(block),
        onQuarantined: reason => fetch.stop(new SkimmerError('DIGEST_MISMATCH', `${resource.id} is quarantined: ${reason}`)),
      }
      this.#opened.set(resource.id, opened)
      resource.on('block', opened.onBlock)
      resource.on('quarantined', opened.onQuarantined)
      if (hold !== undefined) opened.holds.add(hold)
      if (!resource.whole) {
        for (const peerId of this.#supernodesFor(resource.id)) void this.#pool.connect(peerId, true)
        this.onOpened?.(resource)
      }
    } else if (hold !== undefined) opened.holds.add(hold)
    if (!opened.searching && !resource.whole && this.#mayAskPeers(resource.id)) {
      opened.searching = true
      for (const peer of this.#pool.connected()) if (!peer.supernode) peer.interest(resource.id, resource.table)
      opened.parents.start()
    }
    opened.usedAt = performance.now()
    return opened
  }

  #mayAskPeers(id: string): boolean {
    const holds = this.#opened.get(id)?.holds
    if (holds === undefined || holds.size === 0) return true
    for (const { peers } of holds) if (peers) return true
    return false
  }

  #supernodesFor(id: string): string[] {
    const inOrder = this.#supernodes.inOrder(id).map(({ peerId }) => peerId)
    if (inOrder.length < 2) return inOrder
    const first = [...this.#opened.get(id)?.holds ?? []].findLast(({ supernode }) => supernode !== undefined && inOrder.includes(supernode))?.supernode
    return first === undefined ? inOrder : [first, ...inOrder.filter(peerId => peerId !== first)]
  }

  #closeIdle(): void {
    const now = performance.now()
    for (const [id, { fetch, usedAt, holds, parents }] of this.#opened) {
      if (fetch.resource.whole) parents.stop()
      if (fetch.idle && (this.#store.get(id) !== fetch.resource || (now - usedAt > IDLE_MS && (holds.size === 0 || fetch.resource.whole)))) this.#close(id, new SkimmerError('ABORTED', 'idle'))
    }
  }

  #close(id: string, error: SkimmerError): void {
    const opened = this.#opened.get(id)
    if (opened === undefined) return
    this.#opened.delete(id)
    opened.parents.stop()
    opened.fetch.resource.off('block', opened.onBlock)
    opened.fetch.resource.off('quarantined', opened.onQuarantined)
    opened.fetch.stop(error)
    for (const peer of this.#pool.connected()) peer.loseInterest(id)
  }

  async #keepObject(bytes: Buffer): Promise<void> {
    try {
      await this.#store.putObject(bytes)
    } catch (error) {
      this.#logger.warn({ err: error }, 'an object could not be stored; it is used from memory')
    }
  }
}
