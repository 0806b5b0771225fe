// One file or blob on its way to this node: who uses it, how much is here, and reading it in order while it comes.
import { EventEmitter } from 'node:events'
import type { Logger } from 'pino'
import { SkimmerError, hasCode } from '../oci/errors.ts'
import { DownloadAttempt } from './download-attempt.ts'
import type { AttemptOptions } from './download-attempt.ts'
import { DownloadContent } from './download-content.ts'
import { DownloadReader } from './download-reader.ts'
import type { ReaderOptions } from './download-reader.ts'
import type { DownloadHead, DownloadRequest, DownloadStats, ReadRange } from './download-request.ts'
import { Pace } from './pace.ts'
import type { pause } from './pause.ts'
import type { Peer } from './peer.ts'
import type { Resource } from './resource.ts'
import type { SourceReads } from './source-fill.ts'

export interface DownloadEvents {
  /** Something came; at most every 100 ms. */
  progress: [stats: DownloadStats]
  /** Whole, failed, or given up by its last user. Readers may still read what is here. */
  end: [stats: DownloadStats]
}

export interface DownloadOptions extends AttemptOptions, ReaderOptions {
  /** Without users, one that is not whole goes on for so long, milliseconds. */
  lingerMs: number
  /** A reader that hashes what it reads, and so proves it, is waited for so long after all is here, milliseconds. */
  slowReaderMs: number
  /** How Pace waits. */
  pause?: typeof pause
}

export interface DownloadComponents {
  peer: Peer
  logger: Logger
  reads: SourceReads
  onPart: (resource: string, change: 1 | -1) => void
  /** It is over, one way or another: who asks with its key begins a new one. */
  onEnd: (download: Download) => void
  /** Nobody uses it any more, and its resources are let go of. */
  onDropped: (download: Download) => void
}

const PROGRESS_MS = 100
const READY_MS = 500
/** A source that changes while it is read is asked so often in all, as long as no reader got anything. */
const ATTEMPTS = 4

let count = 0

export class Download extends EventEmitter<DownloadEvents> {
  /** Short, and unique in this process. */
  readonly id: string
  readonly key: string
  readonly #request: DownloadRequest
  readonly #peer: Peer
  readonly #logger: Logger
  readonly #components: DownloadComponents
  readonly #options: DownloadOptions
  readonly #content: DownloadContent
  readonly #pace: Pace
  readonly #stop = new AbortController()
  #users = 0
  #running = false
  #ended = false
  #dropped = false
  #handedOut = false
  #linger: NodeJS.Timeout | undefined
  #progress: NodeJS.Timeout | undefined
  readonly #readers = new Set<DownloadReader>()
  /** Whole, and not proved yet to be what they are called. */
  #unproved: Resource[] = []
  #fetched: number | undefined
  /** What is said of it when its resources are let go of. */
  #last: DownloadStats | undefined
  #whole!: { promise: Promise<void>; resolve: () => void; reject: (error: Error) => void }
  #attempt: DownloadAttempt | undefined
  #work: Promise<void> = Promise.resolve()

  constructor(components: DownloadComponents, request: DownloadRequest, options: DownloadOptions) {
    super()
    this.setMaxListeners(0)
    this.id = `d${(++count).toString(36)}`
    this.key = request.key
    this.#request = request
    this.#components = components
    this.#peer = components.peer
    this.#logger = components.logger
    this.#options = options
    this.#pace = new Pace(request.bytesPerSecond, { pause: options.pause })
    this.#content = new DownloadContent(components.peer, {
      name: request.name ?? nameOf(request), pin: `download:${this.id}`, lastingPin: request.pin, peers: request.peers ?? true, onPart: components.onPart, onChange: () => this.#onChange(),
    })
    this.#newWhole()
    const local = request.local === undefined ? undefined : this.#peer.store.get(request.local)
    if (local?.whole === true && !local.quarantined) this.#serve(local)
    else this.#begin()
  }

  /** What the source said. This and the length may change until the first bytes went to a reader: the source may change under it. */
  get head(): DownloadHead {
    return this.#content.head ?? { version: '' }
  }

  /** Bytes of the whole; undefined while nobody knows. */
  get length(): number | undefined {
    return this.#content.length
  }

  /** Resolves when all of it is in the store. Rejects with what went wrong; with NO_SPACE when it can only be passed through. */
  get whole(): Promise<void> {
    return this.#whole.promise
  }

  /** The resources of its parts so far. */
  get resources(): string[] {
    return this.#content.parts.map(({ resource }) => resource.id)
  }

  /** Whole, failed or given up. */
  get ended(): boolean {
    return this.#ended
  }

  /**
   * Its bytes in order, block by block as they are here, each verified. Begins with the first block that is wanted, holds two blocks at most, and
   * reads them from the store when the reader wants them. Ends with an error (SkimmerError), never short. With a digest, and the whole being
   * read, the last bytes come only after it was checked.
   */
  async *read(range: ReadRange = {}, options: { signal?: AbortSignal } = {}): AsyncGenerator<Buffer, void, undefined> {
    const { source, digest } = this.#request
    const reader = new DownloadReader({
      peer: this.#peer, content: this.#content, pace: this.#pace, source, digest,
      onBytes: () => { this.#handedOut = true },
      onMissing: () => {
        this.#stop.signal.throwIfAborted()
        if (!this.#running && this.#content.failure === undefined) this.#begin()
      },
      onVain: error => this.#attempt?.onVain(error),
      onRight: () => this.#onRight(),
      onWrong: error => this.#fail(error),
    }, this.#options, range, options.signal)
    this.#readers.add(reader)
    try {
      yield* reader.read()
    } finally {
      this.#readers.delete(reader)
      this.#proveUnseen()
    }
  }

  stats(): DownloadStats {
    if (this.#last !== undefined) return this.#last
    const sum = { local: 0, peer: 0, supernode: 0, source: this.#content.passed }
    for (const { bytes } of this.#content.parts) {
      sum.local += bytes.local
      sum.peer += bytes.peer
      sum.supernode += bytes.supernode
      sum.source += bytes.source
    }
    const { failure } = this.#content
    return {
      length: this.length, storedBytes: this.#content.storedBytes, ...sum, fetched: this.#fetched,
      failed: failure === undefined ? undefined : { code: failure.code, message: failure.message },
    }
  }

  /** This user is done. Without users it goes on for a while; then it is ended, and what is here stays in the store. */
  release(): void {
    if (this.#users === 0 || --this.#users > 0) return
    if (this.#ended) this.#drop()
    else if (this.#content.full) void this.stop(new SkimmerError('ABORTED', `${this.#content.name}: nobody reads it any more, and the store has no room for it`))
    else this.#linger = setTimeout(() => void this.stop(new SkimmerError('ABORTED', `${this.#content.name}: nobody waits for it any more`)), this.#options.lingerMs)
  }

  /** Another user. Each releases it once. */
  use(): void {
    this.#users++
    clearTimeout(this.#linger)
  }

  /** Resolves when whatever can be known before the first bytes is known. */
  async ready(signal: AbortSignal): Promise<void> {
    const over = new AbortController()
    const either = AbortSignal.any([signal, over.signal])
    try {
      while (!this.#content.begun) {
        if (this.#content.failure !== undefined) throw this.#content.failure
        await this.#content.change(READY_MS, either)
      }
    } finally {
      // The caller's signal may live on for long.
      over.abort()
    }
  }

  /** Ends it. Resolves when nothing of it goes on. */
  async stop(reason: SkimmerError): Promise<void> {
    this.#stop.abort(reason)
    if (!this.#ended || this.#users === 0) this.#fail(reason)
    await this.#work
  }

  /** All of it is here: nothing needs to be asked. */
  #serve(resource: Resource): void {
    this.#content.setHead({ version: resource.id, length: resource.table.rawOffsets[resource.table.count] })
    this.#content.adopt(resource, { offset: 0, last: true })
    // Who has just made it will call use() first.
    queueMicrotask(() => this.#onWhole())
  }

  #newWhole(): void {
    let resolve!: () => void
    let reject!: (error: Error) => void
    const promise = new Promise<void>((yes, no) => {
      resolve = yes
      reject = no
    })
    promise.catch(() => {}) // not everyone waits for it
    this.#whole = { promise, resolve, reject }
  }

  #begin(): void {
    this.#running = true
    this.#work = this.#run().finally(() => {
      this.#running = false
    })
  }

  async #run(): Promise<void> {
    const { signal } = this.#stop
    for (let attempt = 1; ; attempt++) {
      try {
        this.#attempt = this.#newAttempt(signal)
        await this.#attempt.run()
        return this.#onWhole()
      } catch (error) {
        if (!hasCode(error, 'CONFLICT') || signal.aborted || this.#handedOut || attempt === ATTEMPTS) return this.#fail(error)
        this.#logger.info({ download: this.id, error: error.message }, 'a download starts again')
        await this.#content.reset(error.details.discard === true)
        this.#fetched = undefined
      }
    }
  }

  #newAttempt(signal: AbortSignal): DownloadAttempt {
    const { peer, logger, reads } = this.#components
    return new DownloadAttempt({
      peer, logger, reads, content: this.#content, pace: this.#pace, request: this.#request,
      onFetched: bytes => {
        this.#fetched = bytes
        this.#content.changed()
      },
      onFull: () => this.#whole.reject(new SkimmerError('NO_SPACE', `${this.#content.name}: the block store has no room for it; readers get it, but it is not kept`)),
    }, this.#options, signal)
  }

  #onChange(): void {
    this.#progress ??= setTimeout(() => {
      this.#progress = undefined
      if (!this.#dropped) this.emit('progress', this.stats())
    }, PROGRESS_MS).unref()
  }

  #onWhole(): void {
    this.#whole.resolve()
    this.#unproved = this.#content.parts.map(({ resource }) => resource).filter((resource) => resource.diffId !== undefined && !resource.proved)
    this.#end()
    this.#proveUnseen()
    if (this.#unproved.length > 0) setTimeout(() => this.#proveUnseen(true), this.#options.slowReaderMs).unref()
  }

  /** A reader has hashed what it read: that is the proof. Bytes that went past the store prove nothing of what is in it. */
  #onRight(): void {
    const blob = this.#content.blob(this.#request.digest)
    if (blob === undefined || blob.proved || !blob.whole) return
    this.#unproved = []
    void this.#prove(blob, blob.provedByReading())
  }

  /** What no reader will have hashed soon is read once more, in the background. */
  #proveUnseen(atOnce = false): void {
    if (!atOnce && [...this.#readers].some((reader) => reader.hashing)) return
    for (const resource of this.#unproved.splice(0)) if (!resource.proved) void this.#prove(resource, resource.prove({ raw: false }))
  }

  /** A blob that is not what it is called is quarantined here, and others should know. */
  async #prove(resource: Resource, proof: Promise<void>): Promise<void> {
    try {
      await proof
    } catch (error) {
      this.#logger.warn({ resource: resource.id, error: (error as Error).message }, 'a download could not be proved')
      if (hasCode(error, 'DIGEST_MISMATCH')) void this.#peer.supernodes.tell('quarantine', { resource: resource.id, reason: error.message.slice(0, 4096) })
    }
  }

  #fail(cause: unknown): void {
    const error = cause instanceof SkimmerError ? cause : new SkimmerError('INTERNAL', `${this.#content.name}: ${(cause as Error).message}`, { cause })
    if (error.code === 'INTERNAL') this.#logger.error({ download: this.id, err: error }, 'a download failed')
    this.#content.fail(error)
    this.#whole.reject(error)
    this.#end()
  }

  #end(): void {
    if (!this.#ended) {
      this.#ended = true
      this.#components.onEnd(this)
      this.emit('end', this.stats())
    }
    if (this.#users === 0) this.#drop()
  }

  #drop(): void {
    if (this.#dropped) return
    this.#dropped = true
    this.#last = this.stats()
    clearTimeout(this.#linger)
    clearTimeout(this.#progress)
    this.#stop.abort(new SkimmerError('ABORTED', `${this.#content.name}: nobody waits for it any more`))
    this.#content.close()
    this.#components.onDropped(this)
  }
}

/** For errors and logs: without what may be secret in a URL. */
function nameOf({ ask, key }: DownloadRequest): string {
  if (ask === undefined) return key
  if (ask.operation === 'blob.open') return `blob ${ask.request.digest} of ${ask.request.reference}`
  if (ask.request.url === undefined) return ask.request.resource ?? key
  try {
    const { protocol, host, pathname } = new URL(ask.request.url)
    return `${protocol}//${host}${pathname}`
  } catch {
    return key
  }
}
