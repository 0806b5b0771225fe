// A source: what a URL answers, as a head and a stream of bytes, whichever protocol it speaks.

export interface SourceHead {
  /** Opaque; the same text means the same bytes. Another answer's version may be written differently only if it is another. */
  readonly version: string
  /** Of the whole resource, in bytes, as it is on the wire; undefined: not told (chunked). */
  readonly length?: number
  /** True when the server is known to give parts. */
  readonly ranges: boolean
  readonly contentType?: string
  /** Content-Encoding: the bytes are encoded so, and stay so. */
  readonly contentEncoding?: string
  readonly etag?: string
  readonly lastModified?: string
  /** False: there were no validators, and the version is made of the moment of this answer. */
  readonly validated: boolean
}

export interface SourceOpenOptions {
  /** First byte wanted; default 0. */
  readonly offset?: number
  /** Bytes wanted; default to the end. Fewer come when the resource ends before. */
  readonly length?: number
  /** The bytes must be of this version, else CONFLICT. */
  readonly version?: string
  /** Answers `unchanged` and no body when the source still has this version. */
  readonly ifNot?: string
  /** A server that does not give parts: everything from byte 0 instead of the part (see the answer's `offset`). */
  readonly orAll?: boolean
  readonly signal?: AbortSignal
}

/**
 * The body must be read to its end, or left by `break`/`return()`, or it holds its connection. It ends with an error, never
 * short: UNAVAILABLE or TIMEOUT with `details.transient` when asking again from where it broke may help.
 */
export type SourceBody = AsyncIterableIterator<Buffer>

export type SourceAnswer =
  | { readonly head: SourceHead; readonly unchanged: true; readonly body?: undefined }
  | {
    readonly head: SourceHead
    readonly unchanged?: undefined
    readonly body: SourceBody
    /** Of the body's first byte in the resource. */
    readonly offset: number
    /** Bytes the body will have, when that is known. */
    readonly bodyLength?: number
  }

export interface Source {
  /** Fit for logs: without user, password, query and fragment. */
  readonly url: URL
  /**
   * One request, one answer. Errors: NOT_FOUND, UNAUTHORIZED, FORBIDDEN (also by `allow`), CONFLICT (another version than asked
   * for, or the part is not the one asked for), UNAVAILABLE, TIMEOUT, ABORTED, INVALID_ARGUMENT (the range is outside), INVALID_DATA,
   * LIMIT_EXCEEDED, UNSUPPORTED. A server that ignores ranges costs the bytes up to `offset`: they are read and passed over.
   */
  open(options?: SourceOpenOptions): Promise<SourceAnswer>
  close(): Promise<void>
}
