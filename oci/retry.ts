// Trying again: which answers are worth it, and how long to wait (exponential backoff with jitter, or what Retry-After says).
import { setTimeout as sleep } from 'node:timers/promises'
import { DEFAULT_ATTEMPTS, DEFAULT_BACKOFF_MS, DEFAULT_MAX_BACKOFF_MS, DEFAULT_MAX_RETRY_AFTER_MS } from './defaults.ts'
import type { RegistryClientOptions } from './defaults.ts'
import { SkimmerError } from './errors.ts'
import { abortedError } from './network-errors.ts'
import { discard } from './transport.ts'
import type { HttpRequest, HttpResponse, Transport } from './transport.ts'

const WORTH_RETRYING = new Set([408, 425, 429, 500, 502, 503, 504])

/** Seconds or a date (RFC 9110 section 10.2.3), as milliseconds from now; undefined when absent or unreadable. */
export function retryAfterMs(header: string | string[] | undefined, now = Date.now()): number | undefined {
  if (typeof header !== 'string') return undefined
  const text = header.trim()
  if (/^[0-9]{1,9}$/.test(text)) return Number(text) * 1000
  const date = /[A-Za-z]/.test(text) && text.length < 64 ? Date.parse(text) : Number.NaN
  return Number.isNaN(date) ? undefined : Math.max(0, date - now)
}

export function backoffMs(failures: number, options: RegistryClientOptions): number {
  const full = Math.min(DEFAULT_MAX_BACKOFF_MS, (options.backoffMs ?? DEFAULT_BACKOFF_MS) * 2 ** (failures - 1))
  return full * (0.5 + Math.random() / 2)
}

export async function pause(milliseconds: number, what: string, signal?: AbortSignal): Promise<void> {
  await sleep(milliseconds, undefined, { signal }).catch(() => {
    throw abortedError(what, signal?.reason)
  })
}

/**
 * Sends until there is an answer worth having, at most `attempts` times; the last answer is returned whatever it is. A body that
 * is a stream is sent once. Throws what the transport throws, the last time.
 */
export async function sendPersistently(
  transport: Transport,
  request: HttpRequest,
  options: RegistryClientOptions & { onRetry?: (why: string, waitMs: number) => void },
): Promise<HttpResponse> {
  const replayable = request.body === undefined || request.body instanceof Uint8Array
  const attempts = replayable ? (options.attempts ?? DEFAULT_ATTEMPTS) : 1
  for (let attempt = 1; ; attempt++) {
    let waitMs = backoffMs(attempt, options)
    let why: string
    try {
      const response = await transport.send(request)
      if (attempt >= attempts || !WORTH_RETRYING.has(response.status)) return response
      const asked = retryAfterMs(response.headers['retry-after'])
      if (asked !== undefined && asked > (options.maxRetryAfterMs ?? DEFAULT_MAX_RETRY_AFTER_MS)) return response
      await discard(response.body)
      if (asked !== undefined) waitMs = Math.max(asked, waitMs)
      why = `status ${response.status}`
    } catch (error) {
      if (attempt >= attempts || !(error instanceof SkimmerError) || error.details.transient !== true) throw error
      why = error.message
    }
    options.onRetry?.(why, waitMs)
    await pause(waitMs, request.what, request.signal)
  }
}
