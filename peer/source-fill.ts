// Back to source: this node reads what is missing of a download itself, and serves it to peers as it comes.
import { SkimmerError, hasCode } from '../oci/errors.ts'
import type { DownloadContent } from './download-content.ts'
import type { DownloadPart } from './download-part.ts'
import type { DownloadRequest, SourceAnswer } from './download-request.ts'
import { PART_BYTES } from './file-blocks.ts'
import type { Pace } from './pace.ts'
import { pause } from './pause.ts'
import type { Peer } from './peer.ts'
import { StreamFill } from './stream-fill.ts'

type OpenSource = NonNullable<DownloadRequest['source']>

/** So much that is here already is worth a new request to jump over it. */
const SKIP_BYTES = 8 * 1024 * 1024
/** A source that fails without having given anything is asked again so often, with pauses of so many milliseconds. */
const RETRIES = 3
const RETRY_MS = 500
/** Blocks that peers have are left to them while something comes, and for so long after, milliseconds. */
const LEAVE_TO_PEERS_MS = 3_000

/** CONFLICT when the source answers with something else than what was told of it before. */
export function checkAnswer(content: DownloadContent, answer: SourceAnswer): void {
  const first = content.parts[0]
  if (first !== undefined ? answer.resourceId(0) !== first.resource.id : content.head !== undefined && answer.version !== content.head.version) throw content.changedAtSource()
}

/** A source is the caller's: what it throws may be anything. */
export function sourceError(content: DownloadContent, cause: unknown): SkimmerError {
  return cause instanceof SkimmerError ? cause : new SkimmerError('UNAVAILABLE', `${content.name}: the source cannot be read: ${(cause as Error).message}`, { cause })
}

/** Resources that some download of this node reads from their source right now, without a limit: others need not read the same. */
export type SourceReads = Set<string>

export class SourceFill {
  readonly #peer: Peer
  readonly #content: DownloadContent
  readonly #source: OpenSource
  readonly #signal: AbortSignal
  readonly #reads: SourceReads
  readonly #paid: ReturnType<Pace['stream']>
  readonly #shared: boolean
  #opened: { answer: SourceAnswer; offset: number; abort: AbortController } | undefined
  /** Of a stream whose length is not known: what does not make a part yet. */
  #rest: Buffer | undefined
  #restLength = 0

  constructor(components: { peer: Peer; content: DownloadContent; pace: Pace; source: OpenSource; reads: SourceReads }, signal: AbortSignal) {
    this.#peer = components.peer
    this.#content = components.content
    this.#paid = components.pace.stream()
    this.#shared = components.pace.free
    this.#reads = components.reads
    this.#source = components.source
    this.#signal = signal
  }

  /** Resolves when all is here; or when the store is full, and readers must read for themselves (`content.direct`). Errors: the source's; CONFLICT when it changed. */
  async run(): Promise<void> {
    let failures = 0
    let before = -1
    for (;;) {
      try {
        await this.#fill()
        return
      } catch (cause) {
        this.#signal.throwIfAborted()
        const error = sourceError(this.#content, cause)
        if (error.code === 'NO_SPACE') {
          this.#content.full = this.#content.direct = true
          this.#content.changed()
          return
        }
        const here = this.#content.storedBytes + this.#restLength
        failures = here > before ? 1 : failures + 1
        before = here
        if (!hasCode(error, 'UNAVAILABLE', 'TIMEOUT') || failures > RETRIES) throw error
        await pause(RETRY_MS * failures, this.#signal)
      } finally {
        this.#close()
      }
    }
  }

  async #fill(): Promise<void> {
    const content = this.#content
    if (content.head === undefined || (content.parts.length === 0 && !content.complete)) await this.#begin()
    if (content.head!.length === undefined) await this.#fillUnknown()
    else if (!content.complete) throw new SkimmerError('INVALID_DATA', `${content.name}: its ${content.head!.length} bytes are in more than one part`)
    else for (const part of content.parts) await this.#fillOnce(part)
  }

  /** Nothing is known yet but what the source says now. */
  async #begin(): Promise<void> {
    const content = this.#content
    const answer = await this.#open(0)
    const { version, length, contentType, contentEncoding, etag, lastModified } = answer
    if (content.head === undefined) content.setHead({ version, length, contentType, contentEncoding, etag, lastModified })
    if (length === 0) content.finish()
    else if (length !== undefined) content.openPart(await content.addPart({ resource: answer.resourceId(0), offset: 0, length, blockBytes: answer.blockBytes, last: true }))
  }

  async #open(offset: number): Promise<SourceAnswer> {
    if (this.#opened?.offset === offset) return this.#opened.answer
    this.#close()
    const abort = new AbortController()
    const answer = await this.#source({ offset, version: this.#content.head?.version, signal: AbortSignal.any([this.#signal, abort.signal]) })
    this.#opened = { answer, offset, abort }
    checkAnswer(this.#content, answer)
    return answer
  }

  /** An answer is read once, from where it begins. */
  #take(): void {
    if (this.#opened !== undefined) this.#opened.offset = -1
  }

  #close(): void {
    this.#opened?.abort.abort(new SkimmerError('ABORTED', 'enough was read'))
    this.#opened = undefined
  }

  async #fillOnce(part: DownloadPart): Promise<void> {
    const { id } = part.resource
    while (this.#reads.has(id) && !part.resource.whole) {
      this.#close()
      await this.#content.change(LEAVE_TO_PEERS_MS, this.#signal)
    }
    if (this.#shared) this.#reads.add(id)
    try {
      await this.#fillPart(part)
    } finally {
      if (this.#shared) this.#reads.delete(id)
    }
  }

  /** First what no peer has, then what peers did not give. */
  async #fillPart(part: DownloadPart): Promise<void> {
    const { id, table } = part.resource
    const peers = this.#peer.pool
    const others = (block: number): boolean => part.resource.knows(block) && peers.connected().some(peer => !peer.supernode && peer.has(id, block))
    for (let covered = (block: number): boolean => part.has(block) || others(block); !part.resource.whole; covered = block => part.has(block)) {
      for (let block = 0; block < table.count;) {
        if (covered(block)) block++
        else block = await this.#fillGap(part, block, covered)
      }
      await this.#leaveToPeers(part)
    }
  }

  async #leaveToPeers(part: DownloadPart): Promise<void> {
    let stored = -1
    while (!part.resource.whole && part.resource.storedBytes > stored) {
      stored = part.resource.storedBytes
      const until = performance.now() + LEAVE_TO_PEERS_MS
      while (part.resource.storedBytes === stored && performance.now() < until) await this.#content.change(LEAVE_TO_PEERS_MS, this.#signal)
    }
  }

  /** Reads from block `from` on, to the end or to much that need not be read. Answers the block where it stopped. */
  async #fillGap(part: DownloadPart, from: number, covered: (block: number) => boolean): Promise<number> {
    const { body } = await this.#open(part.startOf(from))
    this.#take()
    const fill = new StreamFill(part.resource, { from })
    const { accounting } = this.#peer.fetcher
    let block = from
    try {
      for await (const chunk of body) {
        this.#signal.throwIfAborted()
        // Paid before more is taken from the source, which waits meanwhile.
        await this.#paid(chunk.length, this.#signal)
        accounting.add(part.resource.id, 'source', chunk.length, undefined, 0)
        for (let at = 0; at < chunk.length;) {
          if (block === part.resource.table.count) throw new SkimmerError('INVALID_DATA', `${this.#content.name}: the source gives more than the ${part.length} bytes that were announced`)
          part.ask(block, block + 1)
          const take = Math.min(chunk.length - at, part.startOf(block + 1) - part.offset - fill.position)
          const writing = fill.write(take === chunk.length ? chunk : chunk.subarray(at, at + take))
          if (writing !== undefined) await writing
          at += take
          if (part.offset + fill.position < part.startOf(block + 1)) continue
          block++
          if (block < part.resource.table.count && skippable(part, block, covered)) {
            await fill.finish()
            return block
          }
        }
      }
      await fill.finish()
      if (block < part.resource.table.count) throw new SkimmerError('UNAVAILABLE', `${this.#content.name}: the source ended at byte ${part.startOf(block)} of ${part.end}`)
      return block
    } catch (error) {
      if (hasCode(error, 'CONFLICT')) throw new SkimmerError('CONFLICT', `${this.#content.name}: ${error.message}`, { cause: error, details: { discard: true } })
      throw error
    } finally {
      part.forget(from, Math.min(block + 1, part.resource.table.count))
    }
  }

  /** Parts of fixed size, each a resource once it has been read. */
  async #fillUnknown(): Promise<void> {
    const content = this.#content
    const { body, resourceId, blockBytes } = await this.#open(content.end + this.#restLength)
    this.#take()
    for await (const chunk of body) {
      this.#signal.throwIfAborted()
      await this.#paid(chunk.length, this.#signal)
      for (let at = 0; at < chunk.length;) {
        this.#rest ??= Buffer.allocUnsafeSlow(PART_BYTES)
        const take = Math.min(chunk.length - at, PART_BYTES - this.#restLength)
        this.#rest.set(chunk.subarray(at, at + take), this.#restLength)
        this.#restLength += take
        at += take
        if (this.#restLength === PART_BYTES) await this.#addPart(resourceId, blockBytes)
      }
    }
    if (this.#restLength > 0) await this.#addPart(resourceId, blockBytes)
    content.finish()
  }

  async #addPart(resourceId: SourceAnswer['resourceId'], blockBytes: number): Promise<void> {
    const content = this.#content
    const bytes = this.#rest!.subarray(0, this.#restLength)
    const part = await content.addPart({ resource: resourceId(content.parts.length), offset: content.end, length: bytes.length, blockBytes })
    this.#peer.fetcher.accounting.add(part.resource.id, 'source', bytes.length, undefined, 0)
    part.ask(0, part.resource.table.count)
    const fill = new StreamFill(part.resource)
    const writing = fill.write(bytes)
    if (writing !== undefined) await writing
    await fill.finish()
    this.#restLength = 0
  }
}

function skippable(part: DownloadPart, block: number, covered: (block: number) => boolean): boolean {
  const end = Math.min(part.end, part.startOf(block) + SKIP_BYTES)
  for (; block < part.resource.table.count && part.startOf(block) < end; block++) if (!covered(block)) return false
  return true
}
