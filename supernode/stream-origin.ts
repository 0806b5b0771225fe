// The origin of files and blobs: each version is brought once however many ask, kept as resources, remembered, and gone on with where it broke off.
import type { Logger } from 'pino'
import type { Registry as Metrics } from 'prom-client'
import { z } from 'zod'
import { SkimmerError, hasCode } from '../oci/errors.ts'
import type { BlockStore } from '../peer/block-store.ts'
import { PART_BYTES } from '../peer/file-blocks.ts'
import { DEFAULT_FILE_MEMORY_MS, DEFAULT_MAX_FILE_BYTES, DEFAULT_MAX_FILE_RECORDS, DEFAULT_PARALLEL_FILES } from './defaults.ts'
import { PrioritySlots } from './priority-slots.ts'
import type { SharedState, StateSpace } from './shared-state.ts'
import { fillStream } from './stream-fill.ts'
import type { StreamCheck, StreamReader } from './stream-fill.ts'
import { partsOf, streamRecordSchema } from './stream-record.ts'
import type { StreamRecord } from './stream-record.ts'
import { StreamMetrics } from './stream-metrics.ts'
import { StreamWork } from './stream-work.ts'

export interface StreamOriginOptions {
  /** Streams that are downloaded at the same time; others wait, the most urgent first. */
  parallel?: number
  /** The longest file or blob taken, bytes. */
  maxBytes?: number
  /** How long what nobody opens is remembered, milliseconds; the cache may drop its bytes before. */
  memoryMs?: number
  maxRecords?: number
}

export interface StreamMaking {
  /** Called in its turn. Its bytes are of the record's version. */
  readonly read: (signal: AbortSignal) => StreamReader
  readonly check?: (all: boolean) => StreamCheck | undefined
  readonly priority: number
  /** A slot that was taken already: given back at the end. */
  readonly slot?: () => void
  /** Called once, at the end, whatever the end. */
  readonly done?: () => void
}

/** After these nothing that came is worth keeping: another version, wrong bytes, or no room. */
const SPOILT = ['CONFLICT', 'DIGEST_MISMATCH', 'INVALID_DATA', 'LIMIT_EXCEEDED', 'NO_SPACE'] as const
/** What could not be removed because somebody read it is tried again for so long, milliseconds. */
const REMOVE_TRIES = 60
const REMOVE_PAUSE_MS = 1_000
/** How long a version without validators is kept after it was opened last: nodes may still be trading it, milliseconds. */
const UNVALIDATED_MS = 24 * 3_600_000
/** A record's last use is written at most this often, milliseconds. */
const TOUCH_MS = 60_000

export class StreamOrigin {
  readonly maxBytes: number
  readonly #store: BlockStore
  readonly #logger: Logger
  readonly #records: StateSpace<StreamRecord>
  /** First part's id -> key of the record. */
  readonly #keys: StateSpace<{ key: string }>
  readonly #works = new Map<string, StreamWork>()
  readonly #ends = new Set<Promise<void>>()
  readonly #slots: PrioritySlots
  readonly #options: Required<StreamOriginOptions>
  readonly #stop = new AbortController()
  readonly #metrics: StreamMetrics | undefined
  #added = 0

  constructor(components: { store: BlockStore; state: SharedState; logger: Logger; metrics?: Metrics }, options: StreamOriginOptions = {}) {
    this.#store = components.store
    this.#logger = components.logger
    this.#records = components.state.space('streams', streamRecordSchema)
    this.#keys = components.state.space('stream-resources', z.object({ key: z.string() }))
    this.#options = { parallel: DEFAULT_PARALLEL_FILES, maxBytes: DEFAULT_MAX_FILE_BYTES, memoryMs: DEFAULT_FILE_MEMORY_MS, maxRecords: DEFAULT_MAX_FILE_RECORDS, ...options }
    this.maxBytes = this.#options.maxBytes
    this.#slots = new PrioritySlots(this.#options.parallel)
    this.#metrics = components.metrics === undefined ? undefined : new StreamMetrics(components.metrics, { works: this.#works, slots: this.#slots })
  }

  /** Aborted when the supernode stops. */
  get signal(): AbortSignal {
    return this.#stop.signal
  }

  /** Whether a stream that is begun now would wait for others. */
  get busy(): boolean {
    return this.#slots.free === 0
  }

  /** A slot for a stream that is going to be begun, when its turn comes; call the answer if it is not. */
  async slot(priority: number): Promise<() => void> {
    return await this.#slots.take({ priority }, this.#stop.signal)
  }

  /** What is being brought under this key right now. */
  running(key: string): StreamWork | undefined {
    return this.#works.get(key)
  }

  /** What was last brought, or begun, under this key. */
  async known(key: string): Promise<StreamRecord | undefined> {
    return this.#works.get(key)?.record ?? await this.#records.get(key)
  }

  /** A record that is complete and all of whose bytes are here, ready to be followed; else undefined. */
  stored(key: string, record: StreamRecord): StreamWork | undefined {
    if (!record.complete) return undefined
    const parts = partsOf(record, PART_BYTES).map(({ resource, offset }) => ({ resource: this.#store.get(resource), offset }))
    if (!parts.every(({ resource }) => resource !== undefined && !resource.open && resource.whole && !resource.quarantined)) return undefined
    const work = new StreamWork(key, record)
    for (const { resource, offset } of parts) work.add({ resource: work.hold(resource!), offset })
    work.end()
    this.#used(key, record)
    return work
  }

  /**
   * Brings a stream: from its beginning, or what is missing of it. The caller has looked that nothing is running under this key, or that
   * what runs is another version: that one goes on for those who follow it, under no key.
   */
  begin(key: string, record: StreamRecord, making: StreamMaking): StreamWork {
    const work = new StreamWork(key, { ...record, complete: false, lastUse: Date.now() }, { priority: making.priority, checked: making.check === undefined })
    this.#works.set(key, work)
    const end = this.#bring(work, making).finally(() => {
      this.#ends.delete(end)
      making.done?.()
    })
    this.#ends.add(end)
    return work
  }

  /** Whether something of a resource is here. */
  holds(resource: string): boolean {
    return this.#store.get(resource) !== undefined
  }

  /** Changes what is remembered of a stream; `initial` is changed when nothing is. */
  async change(key: string, initial: StreamRecord, change: (record: StreamRecord) => StreamRecord): Promise<void> {
    const work = this.#works.get(key)
    if (work !== undefined) work.record = change(work.record)
    await this.#records.update(key, record => change(record ?? initial))
  }

  /** Bytes came from a source. */
  received(kind: StreamRecord['kind'], bytes: number): void {
    this.#metrics?.received(kind, bytes)
  }

  /** For a node that was told to hold it: the stream whose first part this is, if it is here or on its way. */
  async byResource(resource: string): Promise<StreamWork | undefined> {
    const entry = await this.#keys.get(resource)
    if (entry === undefined) return undefined
    const work = this.#works.get(entry.key)
    if (work?.record.resource === resource) return work
    const record = await this.#records.get(entry.key)
    return record?.resource === resource ? this.stored(entry.key, record) : undefined
  }

  /** What is being brought. */
  inWork(): StreamWork[] {
    return [...this.#works.values()]
  }

  records(): AsyncIterable<[string, StreamRecord]> {
    return this.#records.entries()
  }

  /**
   * Forgets a stream by its first part's id and drops what is here of it; false when there is none. CONFLICT while it is being brought,
   * held or read.
   */
  async remove(resource: string): Promise<boolean> {
    const key = (await this.#keys.get(resource))?.key
    const record = key === undefined ? undefined : await this.known(key)
    if (key === undefined || record?.resource !== resource) return false
    if (this.#works.has(key)) throw new SkimmerError('CONFLICT', `${record.name} is being brought just now; wait until it has come`)
    for (const part of partsOf(record, PART_BYTES)) await this.#store.remove(part.resource)
    await this.#forget(key, record)
    return true
  }

  /** Forgets what nobody opened for long and what is no longer here, and more when there are too many. */
  async prune(): Promise<void> {
    const oldest = Date.now() - this.#options.memoryMs
    const kept: { key: string; record: StreamRecord }[] = []
    for await (const [key, record] of this.#records.entries()) {
      if (this.#works.has(key)) continue
      const resource = this.#store.get(record.resource)
      // What cannot be asked for again is worth nothing without its bytes, or when nobody believes the old answer any more.
      const stale = !record.validated && resource?.pinned !== true && record.lastUse < Date.now() - UNVALIDATED_MS
      if (stale) for (const part of partsOf(record, PART_BYTES)) this.#remove(part.resource, 0)
      if (stale || record.lastUse < oldest || (resource === undefined && !record.validated)) await this.#forget(key, record)
      else kept.push({ key, record })
    }
    kept.sort((a, b) => a.record.lastUse - b.record.lastUse)
    for (const { key, record } of kept.slice(0, Math.max(0, kept.length - this.#options.maxRecords))) await this.#forget(key, record)
    this.#added = 0
  }

  async close(): Promise<void> {
    this.#stop.abort(new SkimmerError('ABORTED', 'the supernode is stopping'))
    await Promise.allSettled(this.#ends)
  }

  async #bring(work: StreamWork, making: StreamMaking): Promise<void> {
    const { kind, name } = work.record
    const { signal } = this.#stop
    const controller = new AbortController()
    const stop = AbortSignal.any([signal, controller.signal])
    let release = making.slot
    try {
      this.#mayTake(work.record)
      await this.#keep(work)
      release ??= await this.#slots.take(work, signal)
      const begun = performance.now()
      await fillStream(work, {
        store: this.#store, read: making.read(stop), check: making.check, partBytes: PART_BYTES, maxBytes: this.maxBytes,
        received: bytes => {
          work.fetched += bytes
          this.#metrics?.received(kind, bytes)
          work.touch()
        },
        grown: record => this.#save(work, record),
      })
      await this.#save(work, { ...work.record, complete: true, lastUse: Date.now() })
      const ms = Math.round(performance.now() - begun)
      this.#logger.info({ kind, name, resource: work.record.resource, bytes: work.fetched, ms }, 'brought from its source')
      this.#metrics?.ended(kind, 'success', ms / 1000)
      this.#leave(work)
      work.end()
    } catch (cause) {
      const error = told(name, cause)
      controller.abort(error)
      if (!signal.aborted) {
        this.#metrics?.ended(kind, error.code)
        this.#logger.warn({ kind, name, resource: work.record.resource, code: error.code, err: error }, 'a file or blob could not be brought')
      }
      this.#leave(work)
      work.end(error)
      const spoilt = hasCode(error, ...SPOILT) || !work.record.validated
      if (!signal.aborted && spoilt) await this.#discard(work).catch((failure: unknown) => { this.#logger.warn({ name, err: failure }, 'what is left of a broken download could not be dropped') })
    } finally {
      release?.()
    }
  }

  #mayTake({ name, head: { length } }: StreamRecord): void {
    if (length === undefined) return
    if (length > this.maxBytes) throw new SkimmerError('LIMIT_EXCEEDED', `${name}: it has ${length} bytes, more than the ${this.maxBytes} that this supernode takes (files.max-size)`)
    // Else everything here would be dropped for something that cannot be kept anyway.
    const { capBytes } = this.#store.usage()
    if (length > capBytes) throw new SkimmerError('NO_SPACE', `its ${length} bytes do not fit into a cache of ${capBytes} (cache.size)`)
  }

  async #keep(work: StreamWork): Promise<void> {
    const before = await this.#records.get(work.key)
    if (before !== undefined && before.resource !== work.record.resource) await this.#keys.delete(before.resource)
    await this.#keys.put(work.record.resource, { key: work.key })
    await this.#save(work, work.record)
    if (++this.#added >= this.#options.maxRecords / 4) {
      this.#added = 0
      this.prune().catch((error: unknown) => { this.#logger.warn({ err: error }, 'forgetting old files failed') })
    }
  }

  /** A work whose key went to a newer version writes no record. */
  async #save(work: StreamWork, record: StreamRecord): Promise<void> {
    work.record = record
    if (this.#works.get(work.key) === work) await this.#records.put(work.key, record)
  }

  #leave(work: StreamWork): void {
    if (this.#works.get(work.key) === work) this.#works.delete(work.key)
  }

  #used(key: string, record: StreamRecord): void {
    if (Date.now() - record.lastUse < TOUCH_MS) return
    this.#records.update(key, now => (now?.resource === record.resource ? { ...now, lastUse: Date.now() } : undefined))
      .catch((error: unknown) => { this.#logger.debug({ err: error }, 'the last use of a file could not be saved') })
  }

  /** Nothing of it stays. What somebody reads right now goes as soon as he is done. */
  async #discard(work: StreamWork): Promise<void> {
    const { key, record } = work
    const known = await this.#records.get(key)
    if (known?.resource === record.resource && !this.#works.has(key)) await this.#forget(key, record)
    // A part that was being made is not in the record yet.
    const places = partsOf({ ...record, length: record.length + PART_BYTES }, PART_BYTES)
    for (const { resource } of places) this.#remove(resource, REMOVE_TRIES)
  }

  #remove(id: string, tries: number): void {
    const wanted = (): boolean => [...this.#works.values()].some(work => id === work.record.resource || id.startsWith(`${work.record.resource}.`))
    if (this.#stop.signal.aborted || this.#store.get(id) === undefined || wanted()) return
    const removing = this.#store.remove(id).catch((error: unknown) => {
      if (tries === 0) this.#logger.warn({ resource: id, err: error }, 'a broken download is still being read; the cache drops it later')
      else setTimeout(() => { this.#remove(id, tries - 1) }, REMOVE_PAUSE_MS).unref()
    }).finally(() => this.#ends.delete(removing))
    this.#ends.add(removing)
  }

  async #forget(key: string, record: StreamRecord): Promise<void> {
    await this.#records.delete(key)
    const entry = await this.#keys.get(record.resource)
    if (entry?.key === key) await this.#keys.delete(record.resource)
  }
}

/** As nodes hear it: they do not see whose disk is full. */
function told(name: string, cause: unknown): SkimmerError {
  if (hasCode(cause, 'NO_SPACE')) return new SkimmerError('NO_SPACE', `${name}: the supernode has no room for it: ${cause.message}`, { cause })
  return cause instanceof SkimmerError ? cause : new SkimmerError('INTERNAL', `${name} could not be brought: the supernode failed; its log says why`, { cause })
}
