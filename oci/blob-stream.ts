// A blob as a stream: resumed by Range where a connection broke, cut to what was asked, its digest proved before the last byte is given away.
import { parseContentRange } from './content-range.ts'
import { DEFAULT_RESUMES, RESUME_PROGRESS_BYTES } from './defaults.ts'
import type { RegistryClientOptions } from './defaults.ts'
import { digestMismatch, finishDigest, startDigest } from './digest.ts'
import { SkimmerError } from './errors.ts'
import { isTransient, networkError } from './network-errors.ts'
import { backoffMs, pause } from './retry.ts'
import type { HttpResponse } from './transport.ts'

export interface BlobRange {
  readonly offset: number
  readonly length: number
}

export interface BlobOpening {
  /** Asks for bytes from..to (inclusive), or for all when `range` is undefined. Statuses 200, 206 and 416 come back as answers. */
  open(range: { from: number; to: number } | undefined): Promise<HttpResponse>
  /** The last source's bytes were not the blob. */
  blame?(): void
  onResume?(offset: number, why: string): void
  onBytes?(bytes: number): void
}

/**
 * Yields `range` of the blob (by default all of it), in the chunks the network gives. For a whole blob the digest is checked
 * while the bytes pass, and the last chunk is held back until it is known to be right: whoever has seen every byte has seen
 * the right ones. Throws DIGEST_MISMATCH (also for a wrong size), UNAVAILABLE or TIMEOUT when resuming does not help, ABORTED.
 */
export async function* streamBlob(
  descriptor: { readonly digest: string; readonly size: number },
  opening: BlobOpening,
  what: string,
  options: RegistryClientOptions & { range?: BlobRange; signal?: AbortSignal } = {},
): AsyncGenerator<Buffer, void, undefined> {
  const { signal } = options
  const { offset, length } = options.range ?? { offset: 0, length: descriptor.size }
  const whole = offset === 0 && length === descriptor.size
  const running = whole ? startDigest(descriptor.digest) : undefined
  const wrong = (why: string): SkimmerError => {
    opening.blame?.()
    return new SkimmerError('DIGEST_MISMATCH', `${what}: ${why}`, { details: { digest: descriptor.digest, size: descriptor.size } })
  }
  const checkSize = (size: number | undefined): void => {
    if (size !== undefined && size !== descriptor.size) throw wrong(`the registry holds ${size} bytes, the manifest says ${descriptor.size}`)
  }

  let position = offset
  const end = offset + length
  let held: Buffer | undefined
  let failures = 0
  let progressFrom = position

  while (position < end) {
    let response: HttpResponse | undefined
    try {
      response = await opening.open(position === 0 && end === descriptor.size ? undefined : { from: position, to: end - 1 })
      let skip = 0
      if (response.status === 206) {
        const range = parseContentRange(response.headers['content-range'])
        if (range === undefined || range.start !== position) throw wrong(`asked for bytes from ${position}, the answer is of ${String(response.headers['content-range']).slice(0, 80)}`)
        checkSize(range.total)
      } else if (response.status === 416) {
        throw wrong(`the registry says that it has no byte ${position} of a blob of ${descriptor.size}`)
      } else {
        // A server that ignores Range sends everything: pass over what is already here.
        skip = position
        const announced = response.headers['content-length']
        if (announced !== undefined && response.headers['content-encoding'] === undefined) checkSize(Number(announced))
      }
      for await (const received of response.body as AsyncIterable<Buffer>) {
        let chunk = received
        if (skip > 0) {
          const passed = Math.min(skip, chunk.length)
          skip -= passed
          if (passed === chunk.length) continue
          chunk = chunk.subarray(passed)
        }
        if (position + chunk.length > end) {
          if (whole) throw wrong(`the registry sends more than the ${descriptor.size} bytes that the manifest says`)
          chunk = chunk.subarray(0, end - position)
        }
        if (chunk.length === 0) continue
        position += chunk.length
        opening.onBytes?.(chunk.length)
        running?.update(chunk)
        if (position === end && !whole) {
          yield chunk
          return // the rest, if a server sends more, is not wanted
        }
        if (!whole) yield chunk
        else {
          if (held !== undefined) yield held
          held = chunk
        }
      }
      if (position < end) throw Object.assign(new Error('the body ended early'), { code: 'ECONNRESET' })
    } catch (error) {
      const failure = response === undefined ? error : networkError(error, response.url, what, signal)
      const transient = response === undefined ? error instanceof SkimmerError && error.details.transient === true : !(error instanceof SkimmerError) && isTransient(error)
      if (position - progressFrom >= RESUME_PROGRESS_BYTES) failures = 0
      progressFrom = position
      failures++
      if (signal?.aborted || !transient || failures > (options.resumes ?? DEFAULT_RESUMES)) throw failure
      opening.onResume?.(position, (failure as Error).message)
      await pause(backoffMs(failures, options), what, signal)
    } finally {
      // Also when the reader stops early: the connection must not stay half read.
      response?.body.on('error', () => {}).destroy()
    }
  }
  if (running !== undefined) {
    const actual = finishDigest(descriptor.digest, running)
    if (actual !== descriptor.digest) {
      opening.blame?.()
      throw digestMismatch(what, descriptor.digest, actual)
    }
    if (held !== undefined) yield held
  }
}
