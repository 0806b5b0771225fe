// A source read through broken connections: gone on with where it broke, and never a mixture of two versions.
import { createHash } from 'node:crypto'
import type { Hash } from 'node:crypto'
import { performance } from 'node:perf_hooks'
import { RESUME_PROGRESS_BYTES } from '../oci/defaults.ts'
import { SkimmerError } from '../oci/errors.ts'
import { backoffMs, pause } from '../oci/retry.ts'
import type { Source, SourceAnswer, SourceHead } from './source.ts'

const DEFAULT_STALL_MS = 60_000
/** Servers without ranges are read again from the start: so many times what was gained, at most. */
const MAX_REREADS = 4
const REREAD_FLOOR_BYTES = 64 * 1024 * 1024

export interface ResumableOptions {
  /** First byte wanted; default 0. */
  readonly offset?: number
  /** Bytes wanted; default to the end. */
  readonly length?: number
  /** The version to read; default: what the first answer has. */
  readonly version?: string
  /** An answer that is open already, of these very options. */
  readonly answer?: SourceAnswer
  /** Without progress for so long, breaks are not retried any more; default 60 s. */
  readonly stallMs?: number
  readonly backoffMs?: number
  readonly signal?: AbortSignal
  readonly onHead?: (head: SourceHead) => void
  readonly onRetry?: (error: SkimmerError, position: number) => void
}

/**
 * All bytes in order, in the chunks the network gives; ends whole or with an error. A source with validators is gone on with by
 * Range, or by passing over what a server without ranges sends again. One without validators is read again from the start, and
 * what was given away before must come again byte for byte (compared by SHA-256): what follows then belongs to it. Throws
 * CONFLICT when the source changed, LIMIT_EXCEEDED when reading again would never end, and what the source's `open` throws.
 */
export async function* resumable(source: Source, options: ResumableOptions = {}): AsyncGenerator<Buffer, void, undefined> {
  const { signal, stallMs = DEFAULT_STALL_MS } = options
  const start = options.offset ?? 0
  const what = `reading ${source.url.href}`
  let head: SourceHead | undefined
  let answer = options.answer
  let given: Hash | undefined
  let position = start
  let progressFrom = start
  let progressAt = performance.now()
  let failures = 0
  let rereadBytes = 0

  const open = async (): Promise<SourceAnswer> => {
    const blind = head !== undefined && !head.validated
    const from = blind ? start : position
    const timer = new AbortController()
    const timeout = setTimeout(() => timer.abort(new DOMException('no progress', 'TimeoutError')), Math.max(1, progressAt + stallMs - performance.now()))
    try {
      return await source.open({
        offset: from,
        ...(options.length !== undefined && { length: start + options.length - from }),
        ...(!blind && (head?.version ?? options.version) !== undefined && { version: head?.version ?? options.version }),
        signal: signal === undefined ? timer.signal : AbortSignal.any([signal, timer.signal]),
      })
    } finally {
      clearTimeout(timeout)
    }
  }

  for (;;) {
    try {
      answer ??= await open()
      if (answer.body === undefined) throw new SkimmerError('INVALID_ARGUMENT', `${what}: an answer without a body cannot be read`)
      if (head === undefined) {
        head = answer.head
        if (!head.validated) given = createHash('sha256')
        options.onHead?.(head)
      } else {
        checkSame(head, answer.head, what)
        if (!answer.head.ranges || given !== undefined) rereadBytes += position
      }
      let again = given !== undefined && position > start ? { left: position - start, hash: createHash('sha256') } : undefined
      for await (const received of answer.body) {
        let chunk = received
        if (again !== undefined) {
          const repeated = chunk.length <= again.left ? chunk : chunk.subarray(0, again.left)
          again.hash.update(repeated)
          again.left -= repeated.length
          if (again.left > 0) continue
          if (!again.hash.digest().equals(given!.copy().digest())) throw changed(what)
          again = undefined
          chunk = chunk.subarray(repeated.length)
          if (chunk.length === 0) continue
        }
        given?.update(chunk)
        position += chunk.length
        yield chunk
        if (position - progressFrom >= RESUME_PROGRESS_BYTES) {
          progressFrom = position
          failures = 0
        }
        // Also when the reader took its time: that is not the source's fault.
        if (failures === 0) progressAt = performance.now()
      }
      if (again !== undefined) throw changed(what)
      return
    } catch (error) {
      if (!(error instanceof SkimmerError) || error.details.transient !== true || signal?.aborted) throw error
      failures++
      const asked = typeof error.details.retryAfterSeconds === 'number' ? error.details.retryAfterSeconds * 1000 : 0
      const waitMs = Math.max(asked, backoffMs(failures, options))
      if (performance.now() + waitMs - progressAt > stallMs) throw error
      if (rereadBytes > MAX_REREADS * (position - start) + REREAD_FLOOR_BYTES) {
        throw new SkimmerError('LIMIT_EXCEEDED', `${what}: it breaks again and again and must be read from the start each time; it does not give parts or does not tell its versions`, { cause: error })
      }
      options.onRetry?.(error, position)
      await pause(waitMs, what, signal)
      answer = undefined
    }
  }
}

function checkSame(before: SourceHead, now: SourceHead, what: string): void {
  if (before.length !== undefined && now.length !== undefined && before.length !== now.length) throw changed(what)
  if (before.contentEncoding !== now.contentEncoding) throw changed(what)
}

const changed = (what: string): SkimmerError => new SkimmerError('CONFLICT', `${what}: it changed at the source while it was read; ask again from the start`)
