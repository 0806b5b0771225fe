// A source read by several connections at once, in parts that can be kept and gone on with later.
import { SkimmerError, hasCode } from '../oci/errors.ts'
import { resumable } from './resumable.ts'
import type { Source, SourceAnswer, SourceHead } from './source.ts'

const DEFAULT_CONNECTIONS = 4
const DEFAULT_PART_BYTES = 8 * 1024 * 1024
/** Parts of one request: more saves round trips, fewer keep a slow connection from having too much left at the end. */
const MAX_RUN_PARTS = 4

/** What a later call needs to go on; plain data, kept by the caller. */
export interface PartsState {
  readonly version: string
  /** Of what is downloaded, in bytes. */
  readonly length: number
  readonly partBytes: number
  /** A bit a part, lowest first: 1 when all its bytes were written. Changes as parts get done. */
  readonly done: Uint8Array
}

export interface ParallelOptions {
  readonly connections?: number
  readonly partBytes?: number
  /** Only these bytes of the source (`to` exclusive); positions then count from `from`. */
  readonly range?: { readonly from: number; readonly to?: number }
  /** From an earlier call that did not get to its end, of the same source and range. CONFLICT when the source changed since. */
  readonly resume?: PartsState
  readonly stallMs?: number
  readonly backoffMs?: number
  readonly signal?: AbortSignal
  /** Once, before the first write. Without `state` this download cannot be gone on with later. */
  readonly onHead?: (head: SourceHead, state: PartsState | undefined) => void
  /** All bytes of a part were written; its bit is set. */
  readonly onPart?: (part: number) => void
  readonly onRetry?: (error: SkimmerError, position: number) => void
}

/** Awaited when it returns a promise, which slows the network down: the place for disks and rate limits. */
export type PartWriter = (position: number, chunk: Buffer) => Promise<void> | void

export const partIsDone = (state: PartsState, part: number): boolean => ((state.done[part >> 3] >> (part & 7)) & 1) === 1
export const partCount = (state: PartsState): number => Math.ceil(state.length / state.partBytes)

/** Bytes of the parts that are done. */
export function doneBytes(state: PartsState): number {
  let bytes = 0
  for (let part = 0; part < partCount(state); part++) if (partIsDone(state, part)) bytes += Math.min(state.partBytes, state.length - part * state.partBytes)
  return bytes
}

/**
 * Writes every byte of the source that is not done yet. Falls back to one connection, in order, when the server gives no parts,
 * no length, or no validators to tell that the parts are of one version. Returns when all writes are done. The first error ends
 * all connections; errors as of `resumable`.
 */
export async function parallelRanges(source: Source, write: PartWriter, options: ParallelOptions = {}): Promise<{ head: SourceHead; length: number }> {
  const from = options.range?.from ?? 0
  const wanted = options.range?.to === undefined ? undefined : options.range.to - from
  const state = options.resume === undefined ? undefined : checkedState(options.resume)
  const partBytes = state?.partBytes ?? options.partBytes ?? DEFAULT_PART_BYTES
  if (state !== undefined) {
    if (Array.from({ length: partCount(state) }, (_, part) => part).every((part) => partIsDone(state, part))) return await nothingLeft(source, state, from, options)
    return await new ParallelDownload({ source, write }, options, state, undefined).run()
  }
  // The first part is asked for: a server that gives parts tells the whole length with it, another sends everything at once.
  const everything = from === 0 && wanted === undefined
  const first = await source.open({ offset: from, length: Math.min(partBytes, wanted ?? partBytes), orAll: everything, signal: options.signal })
  const { head } = first
  const length = head.length === undefined ? undefined : Math.min(wanted ?? Number.MAX_SAFE_INTEGER, Math.max(0, head.length - from))
  const bodyLength = first.body === undefined ? undefined : first.bodyLength
  const whole = bodyLength === length && (length !== undefined || (everything && !head.ranges))
  if (length === undefined || !head.validated || !head.ranges) {
    if (!whole) await first.body?.return?.()
    return await inOrder({ source, write }, options, { from, wanted, answer: whole ? first : undefined, head })
  }
  const begun: PartsState = { version: head.version, length, partBytes, done: new Uint8Array(Math.ceil(Math.ceil(length / partBytes) / 8)) }
  return await new ParallelDownload({ source, write }, options, begun, first).run()
}

function checkedState(state: PartsState): PartsState {
  const { length, partBytes, done } = state
  const right = Number.isSafeInteger(length) && length >= 0 && Number.isSafeInteger(partBytes) && partBytes > 0 && done.length === Math.ceil(partCount(state) / 8)
  if (!right) throw new SkimmerError('INVALID_ARGUMENT', 'the state of an earlier download does not fit itself; begin anew')
  return state
}

/** All parts were written before: only whether they are still what the source has is asked. */
async function nothingLeft(source: Source, state: PartsState, from: number, options: ParallelOptions): Promise<{ head: SourceHead; length: number }> {
  const { head, body } = await source.open({ offset: from, length: 1, version: state.version, signal: options.signal })
  await body?.return?.()
  options.onHead?.(head, state)
  return { head, length: state.length }
}

async function inOrder(
  { source, write }: { source: Source; write: PartWriter },
  options: ParallelOptions,
  { from, wanted, answer, head }: { from: number; wanted: number | undefined; answer: SourceAnswer | undefined; head: SourceHead },
): Promise<{ head: SourceHead; length: number }> {
  let seen = head
  let position = 0
  const { stallMs, backoffMs, signal, onRetry } = options
  const onHead = (now: SourceHead): void => options.onHead?.((seen = now), undefined)
  for await (const chunk of resumable(source, { offset: from, length: wanted, answer, stallMs, backoffMs, signal, onRetry, onHead })) {
    const written = write(position, chunk)
    if (written !== undefined) await written
    position += chunk.length
  }
  return { head: seen, length: position }
}

class ParallelDownload {
  readonly #source: Source
  readonly #write: PartWriter
  readonly #options: ParallelOptions
  readonly #state: PartsState
  readonly #from: number
  readonly #ended = new AbortController()
  readonly #signal: AbortSignal
  readonly #parts: number
  /** Parts below are done or taken. */
  #next = 0
  #head: SourceHead | undefined
  #first: SourceAnswer | undefined

  constructor(components: { source: Source; write: PartWriter }, options: ParallelOptions, state: PartsState, first: SourceAnswer | undefined) {
    this.#source = components.source
    this.#write = components.write
    this.#options = options
    this.#state = state
    this.#from = options.range?.from ?? 0
    this.#parts = partCount(state)
    this.#first = first
    this.#signal = options.signal === undefined ? this.#ended.signal : AbortSignal.any([options.signal, this.#ended.signal])
  }

  async run(): Promise<{ head: SourceHead; length: number }> {
    if (this.#first !== undefined) this.#seen(this.#first.head)
    const connections = Math.max(1, Math.min(this.#options.connections ?? DEFAULT_CONNECTIONS, this.#parts))
    const workers = Array.from({ length: connections }, () => this.#work(connections))
    const results = await Promise.allSettled(workers.map((worker) => worker.catch((error: unknown) => {
      // The first to fail tells why; the others only hear that it is over.
      this.#ended.abort(error)
      throw error
    })))
    const errors = results.flatMap((result) => (result.status === 'rejected' ? [result.reason as unknown] : []))
    if (errors.length > 0) throw this.#options.signal?.aborted ? errors[0] : (errors.find((error) => !hasCode(error, 'ABORTED')) ?? errors[0])
    return { head: this.#head!, length: this.#state.length }
  }

  async #work(connections: number): Promise<void> {
    const { partBytes, length, version } = this.#state
    for (;;) {
      const first = this.#first
      this.#first = undefined
      const run = this.#take(first === undefined ? Math.floor((this.#parts - this.#next) / (2 * connections)) : 1)
      if (run === undefined) {
        await first?.body?.return?.()
        return
      }
      await this.#read(run.from * partBytes, Math.min(length, run.to * partBytes), version, first)
    }
  }

  /** The next parts in a row that are not done, from lowest to highest. */
  #take(wanted: number): { from: number; to: number } | undefined {
    while (this.#next < this.#parts && partIsDone(this.#state, this.#next)) this.#next++
    const from = this.#next
    if (from === this.#parts) return undefined
    const limit = Math.min(this.#parts, from + Math.max(1, Math.min(MAX_RUN_PARTS, wanted)))
    do this.#next++
    while (this.#next < limit && !partIsDone(this.#state, this.#next))
    return { from, to: this.#next }
  }

  async #read(start: number, end: number, version: string, answer: SourceAnswer | undefined): Promise<void> {
    const { partBytes } = this.#state
    const { stallMs, backoffMs, onRetry } = this.#options
    const options = { offset: this.#from + start, length: end - start, version, answer, stallMs, backoffMs, signal: this.#signal, onHead: (head: SourceHead) => this.#seen(head) }
    let position = start
    for await (const chunk of resumable(this.#source, { ...options, onRetry: onRetry && ((error, at) => onRetry(error, at - this.#from)) })) {
      if (position + chunk.length > end) throw new SkimmerError('INTERNAL', `reading ${this.#source.url.href}: more than the part came`)
      const written = this.#write(position, chunk)
      if (written !== undefined) await written
      const before = Math.floor(position / partBytes)
      position += chunk.length
      const now = position === end ? Math.ceil(end / partBytes) : Math.floor(position / partBytes)
      for (let part = before; part < now; part++) this.#done(part)
    }
    if (position !== end) throw new SkimmerError('CONFLICT', `reading ${this.#source.url.href}: it has become shorter; ask again from the start`)
  }

  #done(part: number): void {
    this.#state.done[part >> 3] |= 1 << (part & 7)
    this.#options.onPart?.(part)
  }

  #seen(head: SourceHead): void {
    if (this.#head !== undefined) return
    this.#head = head
    this.#options.onHead?.(head, this.#state)
  }
}
