// Errors on an API's unix socket: the status that fits, and the code and message as JSON.
import type { NextFunction, Request, Response } from 'express'
import type { Logger } from 'pino'
import { SkimmerError, type ErrorCode } from '../oci/errors.ts'

const STATUS_OF: Partial<Record<ErrorCode, number>> = {
  INVALID_ARGUMENT: 400, INVALID_DATA: 422, DIGEST_MISMATCH: 422, LIMIT_EXCEEDED: 422, NOT_FOUND: 404, UNAUTHORIZED: 401, FORBIDDEN: 403, UNSUPPORTED: 422, CONFLICT: 409, TIMEOUT: 504, UNAVAILABLE: 503, NO_SPACE: 507,
}

/** The last handler of an app. An answer that has begun is broken off, so that nobody takes it for whole. */
export function answerErrors(logger: Logger) {
  return (error: Error & { status?: number }, _request: Request, response: Response, _next: NextFunction): void => {
    const known = error instanceof SkimmerError ? error : new SkimmerError(error.status !== undefined && error.status < 500 ? 'INVALID_ARGUMENT' : 'INTERNAL', error.message)
    if (known.code === 'INTERNAL') logger.error({ err: error }, 'an API call failed')
    if (response.headersSent) response.destroy()
    else response.status(STATUS_OF[known.code] ?? 500).json({ code: known.code, message: known.message })
  }
}
