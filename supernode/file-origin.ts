// Files by URL: which version the source has now, who the source lets have it, and one download of each version for all of them.
import { createHmac } from 'node:crypto'
import { LRUCache } from 'lru-cache'
import type { Logger } from 'pino'
import { SkimmerError, hasCode } from '../oci/errors.ts'
import type { ControlRequest } from '../peer/control.ts'
import { blockBytesFor } from '../peer/file-blocks.ts'
import { streamedDigest } from '../source/content-digest.ts'
import { credentialHeaders, normalizeHeaders } from '../source/request-headers.ts'
import { resumable } from '../source/resumable.ts'
import type { Source, SourceAnswer, SourceHead } from '../source/source.ts'
import type { Sources } from '../source/sources.ts'
import { fileResourceId, taskHash, taskKey } from '../source/task-key.ts'
import { DEFAULT_FILE_EXPIRE_MS } from './defaults.ts'
import { DEFAULT_PRIORITY } from './priority-slots.ts'
import { SingleFlight } from './single-flight.ts'
import type { StreamCheck } from './stream-fill.ts'
import type { StreamOrigin } from './stream-origin.ts'
import type { StreamRecord } from './stream-record.ts'
import type { StreamWork } from './stream-work.ts'

export type FileRequest = ControlRequest<'file.open'> & { url: string }

export interface FileOriginOptions {
  /** How long the source's answer to the same request with the same credentials is believed, unless the request says otherwise, milliseconds. */
  expireMs?: number
  /** Keys the hashes under which it is remembered who was answered. */
  secret: Buffer
}

/** Answers remembered: who may have which version of which file. */
const MAX_ANSWERS = 65_536
/** A source that tells when a file changes is asked so often at most, milliseconds, when nobody says otherwise: a crowd comes at once. */
const ASKED_LATELY_MS = 10_000
/** A request may not want an answer to be believed longer than this, milliseconds. */
const MAX_EXPIRE_MS = 24 * 3_600_000
/** The source's refusals are remembered for seconds, so that a crowd does not hammer. */
const REFUSAL_MS = 5_000
const REFUSALS = ['NOT_FOUND', 'UNAUTHORIZED', 'FORBIDDEN', 'UNAVAILABLE', 'TIMEOUT'] as const
/** What a source may take to answer at all, retries included, milliseconds. */
const ASK_MS = 60_000

interface Answer { readonly version: string; readonly at: number }

/** One request in the making: what it means, and who asks. */
interface Asking {
  readonly request: FileRequest
  readonly key: string
  readonly task: string
  /** A keyed hash of the URL and the credentials: whoever has the same is the same to the source. */
  readonly asker: string
}

export class FileOrigin {
  readonly #streams: StreamOrigin
  readonly #sources: Sources
  readonly #logger: Logger
  readonly #options: Required<FileOriginOptions>
  readonly #answers = new LRUCache<string, Answer>({ max: MAX_ANSWERS })
  readonly #refusals = new LRUCache<string, { error: SkimmerError }>({ max: 10_000 })
  readonly #asks = new SingleFlight<StreamWork>()
  /** Files that are asked for the first time: others wait to hear of a version, so that they can ask whether it is still that. */
  readonly #firsts = new Map<string, Promise<unknown>>()

  constructor(components: { streams: StreamOrigin; sources: Sources; logger: Logger }, options: FileOriginOptions) {
    this.#streams = components.streams
    this.#sources = components.sources
    this.#logger = components.logger
    this.#options = { expireMs: DEFAULT_FILE_EXPIRE_MS, ...options }
  }

  /**
   * What the URL answers to this caller: stored, on its way already, or begun now. Errors: what the source answers (NOT_FOUND, UNAUTHORIZED,
   * FORBIDDEN, UNAVAILABLE, TIMEOUT …), INVALID_ARGUMENT, UNSUPPORTED, FORBIDDEN for addresses that are not fetched from.
   */
  async open(request: FileRequest, signal: AbortSignal): Promise<StreamWork> {
    const headers = normalizeHeaders(request.headers)
    const key = taskKey({ ...request, headers })
    const task = taskHash(key)
    const asker = createHmac('sha256', this.#options.secret).update(JSON.stringify([request.url, Object.entries(credentialHeaders(headers)).toSorted()])).digest('base64url')
    const asking: Asking = { request, key, task, asker }
    const since = Date.now()
    for (let again = true;;) {
      signal.throwIfAborted()
      const refused = this.#refusals.get(`${task} ${asker}`)
      if (refused !== undefined && request.fresh !== true) throw refused.error
      const believed = request.fresh === true ? undefined : await this.#believed(asking)
      if (believed !== undefined) return believed
      const known = await this.#streams.known(task) ?? await this.#streams.known(`${task} ${asker}`)
      // Somebody else's question was answered while we looked: that answer was given after we came.
      if (again && request.fresh !== true && (this.#answers.get(`${task} ${asker}`)?.at ?? 0) >= since) {
        again = false
        continue
      }
      const first = known === undefined ? this.#firsts.get(task) : undefined
      if (first === undefined) return joined(await this.#ask(asking, known), request)
      // Its credentials may be refused, ours not.
      await first.catch(() => {})
    }
  }

  /** The version that the source answered to this asker lately, when it can be given without asking again. */
  async #believed(asking: Asking): Promise<StreamWork | undefined> {
    const { request, task, asker } = asking
    const answer = this.#answers.get(`${task} ${asker}`)
    if (answer === undefined) return undefined
    for (const key of [task, `${task} ${asker}`]) {
      const record = await this.#streams.known(key)
      // Who tells when it changes is asked, but for a crowd's sake not by each.
      const expireMs = request.expireMs ?? (record?.validated === true ? Math.min(ASKED_LATELY_MS, this.#options.expireMs) : this.#options.expireMs)
      const good = Date.now() - answer.at < Math.min(MAX_EXPIRE_MS, expireMs)
      // From here on without waiting: nobody else may begin it meanwhile.
      const work = this.#streams.running(key)
      // A version that cannot be asked for again ends with its download: a second one beside it would help nobody.
      if (work?.record.head.version === answer.version && (good || !work.record.validated)) return joined(work, request)
      if (work !== undefined || !good || record?.head.version !== answer.version) continue
      const stored = this.#streams.stored(key, record)
      if (stored !== undefined || !record.validated) return stored
      return this.#begin(asking, key, record, this.#source(request), {})
    }
    return undefined
  }

  /** Asks the source with the caller's own words; many who ask with the same words are one. */
  #ask(asking: Asking, known: StreamRecord | undefined): Promise<StreamWork> {
    const { task, asker } = asking
    const asked = this.#asks.run(`${task} ${asker} ${known?.head.version ?? ''}`, async () => {
      try {
        return await this.#answered(asking, known)
      } catch (error) {
        if (hasCode(error, ...REFUSALS)) this.#refusals.set(`${task} ${asker}`, { error }, { ttl: REFUSAL_MS })
        throw error
      }
    })
    if (known === undefined && !this.#firsts.has(task)) {
      const first = asked.finally(() => this.#firsts.delete(task))
      first.catch(() => { /* whoever asked hears of it */ })
      this.#firsts.set(task, first)
    }
    return asked
  }

  async #answered(asking: Asking, known: StreamRecord | undefined): Promise<StreamWork> {
    const { request, task, asker } = asking
    const source = this.#source(request)
    let slot: (() => void) | undefined
    let answer: SourceAnswer | undefined
    let begun = false
    try {
      // A body that waits for its turn would hold a connection that others could use. Most questions about a known version have an answer without.
      if (known?.validated !== true) slot = await this.#streams.slot(request.priority ?? DEFAULT_PRIORITY)
      answer = await this.#inTime(signal => source.open({ ...rangeOf(request), ...(known?.validated === true && { ifNot: known.head.version }), signal }))
      const { head } = answer
      const key = head.validated ? task : `${task} ${asker}`
      const before = await this.#streams.known(key) ?? known
      // From here on without waiting: nobody else may begin it meanwhile.
      this.#answers.set(`${task} ${asker}`, { version: head.version, at: Date.now() })
      const work = this.#streams.running(key)
      if (work?.record.head.version === head.version) return work
      const record = before?.head.version === head.version ? before : this.#recordOf(asking, head, source)
      const stored = this.#streams.stored(key, record)
      if (stored !== undefined) return stored
      begun = true
      if (answer.body === undefined) return this.#begin(asking, key, record, source, { slot })
      if (slot !== undefined || !this.#streams.busy || !head.validated) return this.#begin(asking, key, record, source, { slot, answer })
      answer.body.return?.().catch(() => { /* nobody reads it */ })
      return this.#begin(asking, key, record, source, {})
    } finally {
      if (!begun) {
        slot?.()
        await answer?.body?.return?.()
        await source.close()
      }
    }
  }

  /** Bounds the answer, not the body behind it. */
  async #inTime(ask: (signal: AbortSignal) => Promise<SourceAnswer>): Promise<SourceAnswer> {
    const late = new AbortController()
    const timer = setTimeout(() => { late.abort(new DOMException('no answer', 'TimeoutError')) }, ASK_MS)
    try {
      return await ask(AbortSignal.any([late.signal, this.#streams.signal]))
    } finally {
      clearTimeout(timer)
    }
  }

  #recordOf({ request, key }: Asking, head: SourceHead, source: Source): StreamRecord {
    const { version, etag, contentType, contentEncoding, lastModified, validated } = head
    const length = lengthOf(request, head.length)
    return {
      kind: 'file', name: source.url.href, resource: fileResourceId(key, version), validated, blockBytes: blockBytesFor(length, request.pieceLength), length: length ?? 0, complete: false, madeAt: Date.now(), lastUse: Date.now(),
      head: { version, ...(length !== undefined && { length }), ...(contentType !== undefined && { contentType }), ...(contentEncoding !== undefined && { contentEncoding }), ...(etag !== undefined && { etag }), ...(lastModified !== undefined && { lastModified }) },
      ...(request.digest?.startsWith('sha256:') && { digest: request.digest }),
    }
  }

  /** Downloads what is missing of a version, as the asker; `answer` is all of it, just being answered; `slot` is taken already. */
  #begin({ request }: Asking, key: string, record: StreamRecord, source: Source, { answer, slot }: { answer?: SourceAnswer; slot?: () => void }): StreamWork {
    const { start, length } = request.range === undefined ? { start: 0, length: undefined } : { start: request.range.start, length: request.range.end - request.range.start + 1 }
    let unread = answer
    return this.#streams.begin(key, record, {
      priority: request.priority ?? DEFAULT_PRIORITY, slot,
      read: signal => from => {
        const whole = from.offset === 0 && from.length === undefined
        const rest = from.length ?? (record.head.length ?? length ?? Infinity) - from.offset
        const options = {
          offset: start + from.offset, ...(Number.isFinite(rest) && (length !== undefined || from.length !== undefined) && { length: rest }),
          version: record.head.version, ...(whole && unread !== undefined && { answer: unread }), signal,
          onRetry: (error: SkimmerError, position: number) => { this.#logger.info({ name: record.name, position, code: error.code, err: error }, 'a broken download of a file goes on') },
        }
        if (whole) unread = undefined
        return midway(resumable(source, options), record.name)
      },
      ...(request.digest !== undefined && { check: () => checkOf(request.digest!, record.name) }),
      done: () => {
        void (async () => {
          await unread?.body?.return?.()
          await source.close()
        })().catch((error: unknown) => { this.#logger.debug({ err: error }, 'a source could not be closed well') })
      },
    })
  }

  #source(request: FileRequest): Source {
    return this.#sources.open(request.url, { headers: request.headers, ca: request.ca, insecure: request.insecure })
  }
}

/** Somebody with more need wants it too. */
function joined(work: StreamWork, request: FileRequest): StreamWork {
  work.priority = Math.min(work.priority, request.priority ?? DEFAULT_PRIORITY)
  return work
}

function rangeOf({ range }: FileRequest): { offset?: number; length?: number } {
  return range === undefined ? {} : { offset: range.start, length: range.end - range.start + 1 }
}

/** Bytes of what is asked for, as far as the source tells. */
function lengthOf({ range }: FileRequest, total: number | undefined): number | undefined {
  if (total === undefined || range === undefined) return total
  return Math.max(0, Math.min(range.end + 1, total) - range.start)
}

function checkOf(digest: string, name: string): StreamCheck {
  const running = streamedDigest(digest)
  return { update: chunk => { running.update(chunk) }, verify: () => { running.verify(name) } }
}

/**
 * What goes wrong after the source had answered well says nothing to others who follow: their credentials may be good, and what was
 * deleted has changed.
 */
async function* midway(bytes: AsyncIterable<Buffer>, name: string): AsyncGenerator<Buffer, void, undefined> {
  try {
    yield* bytes
  } catch (error) {
    if (hasCode(error, 'UNAUTHORIZED', 'FORBIDDEN')) throw new SkimmerError('UNAVAILABLE', `${name}: the source refused in the middle what it gave before; ask again`, { cause: error })
    if (hasCode(error, 'NOT_FOUND')) throw new SkimmerError('CONFLICT', `${name}: it went away while it was read; ask again`, { cause: error })
    throw error
  }
}
