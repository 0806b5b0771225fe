// Reading a download in order while it comes: from the store when the reader wants it, or past the store when that is full.
import { createHash } from 'node:crypto'
import type { Hash } from 'node:crypto'
import { CODEC_RAW, blockRawLength } from '../image/block-table.ts'
import { SkimmerError, hasCode } from '../oci/errors.ts'
import type { DownloadContent } from './download-content.ts'
import type { DownloadPart } from './download-part.ts'
import type { DownloadRequest, ReadRange } from './download-request.ts'
import type { UnsavedBlocks } from './fetch-task.ts'
import type { Pace } from './pace.ts'
import type { Peer } from './peer.ts'
import { checkAnswer, sourceError } from './source-fill.ts'

export interface ReaderComponents {
  peer: Peer
  content: DownloadContent
  pace: Pace
  source: DownloadRequest['source']
  /** sha256 of the whole. */
  digest: string | undefined
  /** The first bytes go out: there is no other version any more for this download. */
  onBytes: () => void
  /** A block is wanted that is not here: work must be under way. */
  onMissing: () => void
  /** Nobody could bring a block, and this is why. Throws when nothing else can be done. */
  onVain: (error: SkimmerError) => void
  /** The whole was read, and is what the digest says. */
  onRight: () => void
  /** The whole is not what the digest says. */
  onWrong: (error: SkimmerError) => void
}

export interface ReaderOptions {
  /** A block that a reader waits for is fetched on demand when nothing came for so long, milliseconds; ten times as long while other blocks come. */
  demandAfterMs: number
  /** With a full store so much is asked for at once, bytes, one block at least. */
  fullWindowBytes: number
}

const LOOK_MS = 1_000
const PATIENCE = 10
/** Nobody could bring it: it is asked for again after this, milliseconds. */
const AGAIN_MS = 5_000
/** A source that breaks off while a reader reads it past the store is asked again so often without a new byte. */
const RETRIES = 3

interface Ahead { part: DownloadPart; block: number; bytes: Promise<Buffer> }

export class DownloadReader {
  readonly #peer: Peer
  readonly #content: DownloadContent
  readonly #components: ReaderComponents
  readonly #options: ReaderOptions
  readonly #range: ReadRange
  readonly #signal: AbortSignal
  readonly #over = new AbortController()
  #position: number
  #handedOut = false
  #hash: Hash | undefined
  #verified = false
  /** While the end is not known: held back, for it may be the last. */
  #kept: Buffer | undefined
  #ahead: Ahead | undefined
  /** Blocks for which there was no room. */
  #unsaved: UnsavedBlocks | undefined
  #demanding = false
  #demandFailed: Error | undefined
  #demandAt = 0

  constructor(components: ReaderComponents, options: ReaderOptions, range: ReadRange, signal: AbortSignal | undefined) {
    const { from = 0, to } = range
    if (!Number.isSafeInteger(from) || from < 0 || (to !== undefined && (!Number.isSafeInteger(to) || to < from))) throw new SkimmerError('INVALID_ARGUMENT', `bytes ${from} to ${to} are not a range`)
    this.#peer = components.peer
    this.#content = components.content
    this.#components = components
    this.#options = options
    this.#range = range
    this.#position = from
    this.#signal = signal === undefined ? this.#over.signal : AbortSignal.any([signal, this.#over.signal])
  }

  async *read(): AsyncGenerator<Buffer, void, undefined> {
    try {
      let generation = -1
      for (;;) {
        this.#signal.throwIfAborted()
        if (generation !== this.#content.generation) {
          generation = this.#content.generation
          this.#begin()
        }
        if (this.#position >= this.#end) break
        const bytes = await this.#next(generation)
        if (bytes === 'direct') {
          yield* this.#readDirect()
          break
        }
        if (bytes === undefined || generation !== this.#content.generation) continue
        yield* this.#hand(bytes)
      }
      const { from = 0 } = this.#range
      if (this.#content.length !== undefined && from > this.#content.length) throw new SkimmerError('INVALID_ARGUMENT', `${this.#content.name}: byte ${from} is beyond its ${this.#content.length} bytes`)
      if (this.#hash !== undefined && !this.#verified) this.#verify()
      if (this.#kept !== undefined) yield* this.#out(this.#kept)
    } finally {
      this.#over.abort(new SkimmerError('ABORTED', 'the reader is gone'))
    }
  }

  /** It will know whether the whole is what the digest says, as soon as it has read the rest. */
  get hashing(): boolean {
    return this.#hash !== undefined && !this.#verified
  }

  /** Nothing went out yet, or it is the same version. */
  #begin(): void {
    const { digest } = this.#components
    const { from = 0, to } = this.#range
    this.#kept = this.#ahead = this.#unsaved = this.#hash = undefined
    if (this.#handedOut) return
    this.#position = from
    // Also of what was proved once: the disk may have changed since.
    if (digest !== undefined && from === 0 && to === undefined) this.#hash = createHash('sha256')
  }

  get #end(): number {
    return Math.min(this.#range.to ?? Infinity, this.#content.length ?? Infinity)
  }

  /** The next bytes in order. Undefined: look again. */
  async #next(generation: number): Promise<Buffer | 'direct' | undefined> {
    const content = this.#content
    const part = content.partAt(this.#position)
    if (part === undefined) {
      if (content.direct) return 'direct'
      if (content.failure !== undefined) throw content.failure
      await content.change(LOOK_MS, this.#signal)
      return undefined
    }
    const block = part.blockOf(this.#position)
    const bytes = await this.#block(part, block, generation)
    if (bytes === undefined || bytes === 'direct') return bytes
    this.#readAhead(part, block + 1)
    const start = part.startOf(block)
    const end = Math.min(this.#end, start + bytes.length)
    return this.#position === start && end === start + bytes.length ? bytes : bytes.subarray(this.#position - start, end - start)
  }

  async #block(part: DownloadPart, block: number, generation: number): Promise<Buffer | 'direct' | undefined> {
    const content = this.#content
    const since = performance.now()
    for (;;) {
      if (part.has(block)) {
        const bytes = await this.#stored(part, block)
        if (bytes !== undefined) return bytes
      }
      if (generation !== content.generation) return undefined
      const unsaved = this.#unsaved?.get(block)
      if (unsaved !== undefined) return unsaved
      if (content.direct) return 'direct'
      if (content.failure !== undefined) throw content.failure
      this.#components.onMissing()
      if (this.#demandFailed !== undefined) {
        const error = this.#demandFailed
        this.#demandFailed = undefined
        if (!hasCode(error, 'UNAVAILABLE', 'TIMEOUT')) throw error
        this.#demandAt = performance.now() + AGAIN_MS
        this.#components.onVain(error)
      }
      // The first block at once: then the stream starts soon, whatever else is under way.
      // Later ones may be another node's to bring: as long as blocks come at all, this one soon will.
      const { demandAfterMs } = this.#options
      const due = content.full || !this.#handedOut ? 0 : Math.max(since + demandAfterMs, Math.min(content.arrivedAt + demandAfterMs, since + PATIENCE * demandAfterMs))
      const left = Math.max(due, this.#demandAt) - performance.now()
      if (left <= 0 && !this.#demanding && part.resource.knows(block)) void this.#demand(part, block)
      await content.change(left > 0 ? Math.min(LOOK_MS, left) : LOOK_MS, this.#signal)
    }
  }

  /** From the store; undefined when it was found damaged just now. */
  async #stored(part: DownloadPart, block: number): Promise<Buffer | undefined> {
    try {
      const ahead = this.#ahead
      this.#ahead = undefined
      return await (ahead?.part === part && ahead.block === block ? ahead.bytes : readBlock(part, block))
    } catch (error) {
      if (hasCode(error, 'NOT_FOUND') && !part.has(block)) return undefined
      throw error
    }
  }

  /** One block: so that the disk and the reader work at the same time. */
  #readAhead(part: DownloadPart, block: number): void {
    if (block >= part.resource.table.count || !part.has(block) || part.startOf(block) >= this.#end) return
    const bytes = readBlock(part, block)
    bytes.catch(() => {}) // whoever takes it hears of it
    this.#ahead = { part, block, bytes }
  }

  async #demand(part: DownloadPart, block: number): Promise<void> {
    const { pace } = this.#components
    const { resource } = part
    let to = block + 1
    if (this.#content.full) while (to < resource.table.count && resource.knows(to) && part.bytesOf(block, to + 1) <= this.#options.fullWindowBytes) to++
    this.#demanding = true
    // What the background has asked for is paid already.
    const pays = part.asked[block] === 0
    try {
      if (pays) {
        if (!this.#content.full) part.ask(block, to)
        await pace.pay(part.bytesOf(block, to), this.#signal)
      }
      const unsaved = await this.#peer.fetcher.ensure(resource, [{ from: block, to }], { priority: 'demand', signal: this.#signal })
      this.#unsaved = unsaved
      if (unsaved !== undefined) this.#content.full = true
    } catch (error) {
      if (pays) part.forget(block, to)
      if (!this.#signal.aborted) this.#demandFailed = error as Error
    } finally {
      this.#demanding = false
      this.#content.changed()
    }
  }

  /** There is no room, and no supernode: straight from the source, as far as this reader needs it. */
  async *#readDirect(): AsyncGenerator<Buffer, void, undefined> {
    const { source, pace, peer } = this.#components
    const content = this.#content
    if (source === undefined) throw content.failure ?? new SkimmerError('NO_SPACE', `${content.name}: the store is full, and it may not be read from its source`)
    const paid = pace.stream()
    for (let failures = 0; ;) {
      const before = this.#position
      try {
        const answer = await source({ offset: this.#position, version: content.head?.version, signal: this.#signal })
        checkAnswer(content, answer)
        const counted = content.parts[0]?.resource.id
        for await (const chunk of answer.body) {
          await paid(chunk.length, this.#signal)
          if (counted === undefined) content.passed += chunk.length
          peer.fetcher.accounting.add(counted ?? answer.resourceId(0), 'source', chunk.length, undefined, 0)
          const bytes = Buffer.from(chunk.buffer, chunk.byteOffset, Math.min(chunk.length, this.#end - this.#position))
          yield* this.#hand(bytes)
          if (this.#position >= this.#end) return
        }
        if (this.#end === Infinity) return
        throw new SkimmerError('UNAVAILABLE', `${content.name}: the source ended at byte ${this.#position} of ${this.#end}`)
      } catch (cause) {
        this.#signal.throwIfAborted()
        const error = sourceError(content, cause)
        failures = this.#position > before ? 1 : failures + 1
        if (!hasCode(error, 'UNAVAILABLE', 'TIMEOUT') || failures > RETRIES) throw error
      }
    }
  }

  *#hand(bytes: Buffer): Generator<Buffer, void, undefined> {
    this.#position += bytes.length
    if (this.#hash !== undefined) {
      this.#hash.update(bytes)
      if (this.#content.length === undefined) {
        const kept = this.#kept
        this.#kept = bytes
        if (kept === undefined) return
        bytes = kept
      } else if (this.#kept !== undefined) {
        const kept = this.#kept
        this.#kept = undefined
        yield* this.#out(kept)
      }
      if (this.#position === this.#content.length) this.#verify()
    }
    yield* this.#out(bytes)
  }

  *#out(bytes: Buffer): Generator<Buffer, void, undefined> {
    if (!this.#handedOut) this.#components.onBytes()
    this.#handedOut = true
    yield bytes
  }

  #verify(): void {
    const got = `sha256:${this.#hash!.digest('hex')}`
    this.#verified = true
    if (got === this.#components.digest) return this.#components.onRight()
    const blob = this.#content.blob(this.#components.digest)
    const proved = blob?.proved === true
    if (proved) blob.doubt()
    const why = proved ? 'it is damaged on this disk' : 'the source gives other bytes than were asked for'
    const error = new SkimmerError('DIGEST_MISMATCH', `${this.#content.name}: its sha256 is ${got}, not ${this.#components.digest}; ${why}`, { details: { damaged: proved } })
    this.#components.onWrong(error)
    throw error
  }
}

/** The bytes of the stream in a block. Stored as they are, they need no copy. */
function readBlock(part: DownloadPart, block: number): Promise<Buffer> {
  const { resource } = part
  if (resource.table.codecs[block] === CODEC_RAW) return resource.readPacked(block)
  return resource.readRaw(resource.table.rawOffsets[block], blockRawLength(resource.table, block))
}
