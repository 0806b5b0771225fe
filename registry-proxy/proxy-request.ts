// One request of a client, understood: what it is for, on whose behalf, and where the answer goes.
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Caller } from './caller.ts'
import type { Upstream } from './upstream-choice.ts'

export interface ProxyRequest {
  readonly incoming: IncomingMessage
  readonly response: ServerResponse
  readonly method: 'GET' | 'HEAD'
  /** As in the request line, without the query. */
  readonly path: string
  readonly query: URLSearchParams
  readonly upstream: Upstream
  readonly caller: Caller
  /** Proxies that this request came through. */
  readonly mirrored: string | undefined
  /** The client is gone. */
  readonly signal: AbortSignal
}

/** A header that may stand several times, as one. */
export const headerOf = (value: string | string[] | undefined): string | undefined => (Array.isArray(value) ? value.join(', ') : value)

/** Whether an If-None-Match names this ETag (RFC 9110 section 13.1.2: weakly compared). */
export function isKnown(ifNoneMatch: string | undefined, etag: string): boolean {
  if (ifNoneMatch === undefined) return false
  return ifNoneMatch.trim() === '*' || ifNoneMatch.slice(0, 8192).split(',').some((tag) => tag.trim().replace(/^W\//, '') === etag)
}
