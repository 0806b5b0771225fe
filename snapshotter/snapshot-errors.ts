// The snapshotter's failures, and the gRPC status each becomes so that containerd's clients recognise it.
import { status } from '@grpc/grpc-js'
import { SkimmerError } from '../oci/errors.ts'
import type { ErrorCode } from '../oci/errors.ts'

export const notFound = (what: string): SkimmerError => new SkimmerError('NOT_FOUND', what)
export const invalidArgument = (what: string): SkimmerError => new SkimmerError('INVALID_ARGUMENT', what)
/** containerd's ErrFailedPrecondition: the snapshot is in a state that forbids the call. */
export const failedPrecondition = (what: string): SkimmerError => new SkimmerError('CONFLICT', what)
/** containerd's ErrAlreadyExists. As the answer to a Prepare with a target it says "the layer is here, do not download it". */
export const alreadyExists = (what: string): SkimmerError => new SkimmerError('CONFLICT', what, { details: { exists: true } })

export const isAlreadyExists = (error: unknown): boolean => error instanceof SkimmerError && error.code === 'CONFLICT' && error.details['exists'] === true

const STATUS_OF: Record<ErrorCode, status> = {
  INVALID_ARGUMENT: status.INVALID_ARGUMENT,
  INVALID_DATA: status.INTERNAL,
  DIGEST_MISMATCH: status.INTERNAL,
  NOT_FOUND: status.NOT_FOUND,
  UNAUTHORIZED: status.UNAUTHENTICATED,
  FORBIDDEN: status.PERMISSION_DENIED,
  UNSUPPORTED: status.UNIMPLEMENTED,
  UNAVAILABLE: status.UNAVAILABLE,
  TIMEOUT: status.DEADLINE_EXCEEDED,
  LIMIT_EXCEEDED: status.RESOURCE_EXHAUSTED,
  NO_SPACE: status.RESOURCE_EXHAUSTED,
  CONFLICT: status.FAILED_PRECONDITION,
  ABORTED: status.CANCELLED,
  INTERNAL: status.INTERNAL,
}

/** HTTP/2 trailers share one 16 KiB frame; a message may grow threefold when it is percent-encoded. */
const MAX_MESSAGE_CHARS = 2048

/** The gRPC status of any error: code as containerd's errdefs maps it, message bounded. */
export function statusOf(error: unknown): { code: status; details: string } {
  const details = (error instanceof Error ? error.message : String(error)).slice(0, MAX_MESSAGE_CHARS)
  if (error instanceof SkimmerError) return { code: isAlreadyExists(error) ? status.ALREADY_EXISTS : STATUS_OF[error.code], details }
  const errno = error instanceof Error && 'code' in error ? error.code : undefined
  if (errno === 'ENOSPC' || errno === 'EDQUOT') return { code: status.RESOURCE_EXHAUSTED, details }
  return { code: status.INTERNAL, details }
}
