// What is known of a download so far: what the source said, the parts of its stream, how it ended; and who waits for any of that to change.
import { fixedBlockTable, MAX_BLOCKS, rawLength } from '../image/block-table.ts'
import { SkimmerError } from '../oci/errors.ts'
import { DownloadPart } from './download-part.ts'
import type { DownloadHead } from './download-request.ts'
import type { Peer } from './peer.ts'
import type { Resource } from './resource.ts'

export interface PartDescription {
  readonly resource: string
  readonly offset: number
  readonly length: number
  readonly blockBytes: number
  readonly last?: boolean
}

export interface ContentOptions {
  /** What errors call it. */
  name: string
  pin: string
  lastingPin?: string
  peers: boolean
  /** A part was added or let go of. */
  onPart: (resource: string, change: 1 | -1) => void
  /** Something is new. */
  onChange: () => void
}

/** Who waits for long looks again so often, milliseconds. */
const CLOCK_MS = 500

export class DownloadContent {
  readonly name: string
  /** In the stream's order, without gaps. */
  readonly parts: DownloadPart[] = []
  head: DownloadHead | undefined
  /** There are no more parts. */
  complete = false
  failure: SkimmerError | undefined
  /** The store has no room: readers get what is not stored straight from whoever has it. */
  full = false
  /** There is no room, and nobody but the source to ask: each reader reads it for itself. */
  direct = false
  /** Bytes that were read for readers alone, while there was no part to count them with. */
  passed = 0
  /** Grows with each reset: what was known before means nothing. */
  generation = 0
  /** When a block came last, performance.now(). */
  arrivedAt = -Infinity
  /** Peer id of the supernode that tells about it. */
  supernode: string | undefined
  readonly #peer: Peer
  readonly #options: ContentOptions
  #next: PromiseWithResolvers<void> | undefined
  #waking = false
  #clock: NodeJS.Timeout | undefined
  readonly #heard = new WeakSet<AbortSignal>()
  readonly #onChange = (): void => this.changed()
  readonly #onBlock = (): void => {
    this.arrivedAt = performance.now()
    this.changed()
  }

  constructor(peer: Peer, options: ContentOptions) {
    this.#peer = peer
    this.#options = options
    this.name = options.name
  }

  /** Bytes of the whole, once they are known. */
  get length(): number | undefined {
    return this.complete ? this.end : this.head?.length
  }

  /** Bytes of the parts so far. */
  get end(): number {
    return this.parts.at(-1)?.end ?? 0
  }

  /** Whatever can be known before the first bytes come. */
  get begun(): boolean {
    return this.head !== undefined && (this.parts.length > 0 || this.complete || this.direct || this.head.length === undefined)
  }

  get whole(): boolean {
    return this.complete && this.parts.every(({ resource }) => resource.whole)
  }

  /** All hashes of all parts are known: nothing more can be told. */
  get known(): boolean {
    return this.complete && this.parts.every(({ resource }) => !resource.open)
  }

  /** Grows with every part and every hash that becomes known. */
  get news(): number {
    return this.parts.reduce((sum, { learnt }) => sum + learnt, this.parts.length)
  }

  get storedBytes(): number {
    return this.parts.reduce((sum, { resource }) => sum + resource.storedBytes, 0)
  }

  /** CONFLICT when it is not what was said before: nothing of two versions may be mixed. */
  setHead(head: DownloadHead): void {
    if (this.head === undefined) this.head = head
    // Parts are told anew, and their ids are compared: those of two versions differ.
    else if (this.parts.length === 0 && this.head.version !== head.version) throw this.changedAtSource()
    this.changed()
  }

  changedAtSource(): SkimmerError {
    const why = this.head !== undefined && this.head.etag === undefined && this.head.lastModified === undefined
      ? 'broke off at its source, or changed there: a source without ETag and Last-Modified cannot be gone on with'
      : 'changed at its source while it was read'
    return new SkimmerError('CONFLICT', `${this.name} ${why}; ask for it again`)
  }

  /** The part that holds the stream's byte at `position`. */
  partAt(position: number): DownloadPart | undefined {
    const { parts } = this
    let low = 0
    let high = parts.length - 1
    while (low <= high) {
      const middle = (low + high) >>> 1
      if (position < parts[middle].offset) high = middle - 1
      else if (position >= parts[middle].end) low = middle + 1
      else return parts[middle]
    }
    return undefined
  }

  /** The resource that is all of the stream and is called by this digest, when there is one: a blob's. */
  blob(digest: string | undefined): Resource | undefined {
    const [first, second] = this.parts
    return digest !== undefined && second === undefined && first?.resource.diffId === digest ? first.resource : undefined
  }

  part(resource: string): DownloadPart | undefined {
    // The last one is meant nearly always.
    return this.parts.findLast((part) => part.resource.id === resource)
  }

  /**
   * The part a supernode or the source tells of: made in the store, or what the store has of it already. One that is known is only compared.
   * CONFLICT when the stream is another one than before, INVALID_DATA when it makes no sense.
   */
  async addPart(told: PartDescription): Promise<DownloadPart> {
    const known = this.partAt(told.offset) ?? this.parts.find(({ length }) => length === 0)
    if (known !== undefined) {
      if (known.resource.id !== told.resource || known.offset !== told.offset || known.length !== told.length) throw this.changedAtSource()
      this.#end(told.last)
      return known
    }
    if (this.complete || told.offset !== this.end) throw new SkimmerError('INVALID_DATA', `${this.name}: a part at ${told.offset} does not follow the ${this.end} bytes before it`)
    if (told.length < 1 && this.head?.length !== 0) throw new SkimmerError('INVALID_DATA', `${this.name}: a part without bytes at ${told.offset}`)
    if (Math.ceil(told.length / told.blockBytes) > MAX_BLOCKS) throw new SkimmerError('LIMIT_EXCEEDED', `${this.name}: ${told.length} bytes in blocks of ${told.blockBytes} are more than ${MAX_BLOCKS} blocks`)
    const table = fixedBlockTable(told.length, told.blockBytes)
    const digest = told.resource.startsWith('blob:') ? told.resource.slice('blob:'.length) : undefined
    const resource = await this.#peer.store.add(told.resource, table, { open: true, diffId: digest })
    return this.adopt(resource, told)
  }

  /** The same for a resource that is in the store. */
  adopt(resource: Resource, at: { offset: number; length?: number; last?: boolean }): DownloadPart {
    if (resource.quarantined) throw new SkimmerError('DIGEST_MISMATCH', `${this.name}: ${resource.id} is quarantined; an operator can end that at the supernode and here`)
    const { pin, lastingPin, onPart } = this.#options
    const part = new DownloadPart(this.#peer, { resource, offset: at.offset, length: at.length ?? rawLength(resource.table) }, { pin, lastingPin, onBlock: this.#onBlock, onChange: this.#onChange })
    this.parts.push(part)
    onPart(resource.id, 1)
    this.#end(at.last)
    return part
  }

  /** It will be fetched: whoever has it is looked up and connected to. */
  openPart(part: DownloadPart): void {
    part.open({ peers: this.#options.peers, supernode: this.supernode })
  }

  /** No more parts come. */
  finish(): void {
    this.#end(true)
  }

  #end(last: boolean | undefined): void {
    if (last === true || (this.head?.length !== undefined && this.end === this.head.length)) this.complete = true
    this.changed()
  }

  /** Forgets everything: what is asked for next is another version. `discard`: what the store has of this one is worth nothing either. */
  async reset(discard: boolean): Promise<void> {
    const parts = this.parts.splice(0)
    this.#closeAll(parts)
    this.head = undefined
    this.complete = this.direct = false
    this.generation++
    this.changed()
    // One that others use stays; they find out for themselves.
    if (discard) for (const { resource } of parts) await this.#peer.store.remove(resource.id).catch(() => {})
  }

  fail(error: SkimmerError): void {
    this.failure ??= error
    this.changed()
  }

  /** The parts are let go of; what is here stays in the store. */
  close(): void {
    this.#closeAll(this.parts)
    this.changed()
  }

  #closeAll(parts: readonly DownloadPart[]): void {
    for (const part of parts) {
      part.close()
      this.#options.onPart(part.resource.id, -1)
    }
  }

  /** Wakes all who wait, once for all that changes in this turn of the event loop: with a block several things do. */
  changed(): void {
    if (this.#next !== undefined && !this.#waking) {
      this.#waking = true
      setImmediate(() => {
        this.#waking = false
        this.#next?.resolve()
        this.#next = undefined
      })
    }
    this.#options.onChange()
  }

  /**
   * Resolves when anything changed, and sooner or later anyway: after `millis` or, when that is long, with the clock. Rejects with the reason of `signal`.
   * One promise, one clock and one listener for all who wait: several do for each block. The listener stays on `signal`, which must end when its waiter does.
   */
  async change(millis: number, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    if (!this.#heard.has(signal)) {
      this.#heard.add(signal)
      signal.addEventListener('abort', () => this.changed(), { once: true })
    }
    const { promise } = (this.#next ??= Promise.withResolvers())
    if (millis < CLOCK_MS) {
      const timer = setTimeout(() => this.changed(), millis)
      await promise
      clearTimeout(timer)
    } else {
      this.#clock ??= setInterval(() => this.#tick(), CLOCK_MS)
      await promise
    }
    signal.throwIfAborted()
  }

  #tick(): void {
    if (this.#next !== undefined) return this.changed()
    clearInterval(this.#clock)
    this.#clock = undefined
  }
}
