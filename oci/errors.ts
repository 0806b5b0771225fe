// The error hierarchy of the whole house: one class, stable codes, a message that says what failed, on what, and what to do.

/** Stable codes. They appear in logs, metrics, HTTP bodies and exit codes; never rename one. */
export const ERROR_CODES = [
  'INVALID_ARGUMENT', // the caller's words are off: reference, flag, config key
  'INVALID_DATA', // malformed bytes from outside: tar, index, manifest, message
  'DIGEST_MISMATCH', // bytes do not hash to what was promised
  'NOT_FOUND', // the registry, a peer or the store does not have it
  'UNAUTHORIZED', // credentials missing or refused
  'FORBIDDEN', // a grant does not cover this
  'UNSUPPORTED', // legal, but not something Skimmer can do lazily
  'UNAVAILABLE', // a source is gone or overloaded; try again or elsewhere
  'TIMEOUT', // a bounded wait ended
  'LIMIT_EXCEEDED', // something from outside is larger than its bound
  'NO_SPACE', // the disk or the cap is full
  'CONFLICT', // already exists, or in use
  'ABORTED', // the caller gave up
  'INTERNAL', // a bug of ours
] as const
export type ErrorCode = (typeof ERROR_CODES)[number]

export class SkimmerError extends Error {
  readonly code: ErrorCode
  /** Facts for logs and JSON bodies; never secrets. */
  readonly details: Record<string, unknown>
  constructor(code: ErrorCode, message: string, options: { cause?: unknown; details?: Record<string, unknown> } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = 'SkimmerError'
    this.code = code
    this.details = options.details ?? {}
  }
}

export function hasCode(error: unknown, ...codes: ErrorCode[]): error is SkimmerError {
  return error instanceof SkimmerError && codes.includes(error.code)
}
