// What the commands' exit codes mean; the same table is in the README and in --help.
import { SkimmerError, type ErrorCode } from '../oci/errors.ts'

export const EXIT_CODES = {
  ok: 0,
  failed: 1,
  usage: 2,
  notFound: 3,
  unauthorized: 4,
  unavailable: 5,
  badData: 6,
  noSpace: 7,
  interrupted: 130,
} as const

export const EXIT_CODE_HELP = `Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 not found, 4 credentials missing or refused,
5 a source is unavailable or too slow, 6 malformed or corrupt data, 7 no space, 130 interrupted.`

const BY_ERROR: Partial<Record<ErrorCode, number>> = {
  INVALID_ARGUMENT: EXIT_CODES.usage,
  INVALID_DATA: EXIT_CODES.badData,
  DIGEST_MISMATCH: EXIT_CODES.badData,
  LIMIT_EXCEEDED: EXIT_CODES.badData,
  UNSUPPORTED: EXIT_CODES.badData,
  NOT_FOUND: EXIT_CODES.notFound,
  UNAUTHORIZED: EXIT_CODES.unauthorized,
  FORBIDDEN: EXIT_CODES.unauthorized,
  UNAVAILABLE: EXIT_CODES.unavailable,
  TIMEOUT: EXIT_CODES.unavailable,
  NO_SPACE: EXIT_CODES.noSpace,
  ABORTED: EXIT_CODES.interrupted,
}

export function exitCodeOf(error: unknown): number {
  return error instanceof SkimmerError ? (BY_ERROR[error.code] ?? EXIT_CODES.failed) : EXIT_CODES.failed
}
