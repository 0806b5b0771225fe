// What a source's refusal means: its status as one of our codes, with what the user can do. Never its body, never a secret.
import { SkimmerError } from '../oci/errors.ts'
import type { ErrorCode } from '../oci/errors.ts'
import { retryAfterMs } from '../oci/retry.ts'
import { discard } from '../oci/transport.ts'
import type { HttpResponse } from '../oci/transport.ts'

function meaning(status: number): { code: ErrorCode; advice: string; transient?: true } {
  if (status === 401) return { code: 'UNAUTHORIZED', advice: '; give credentials by a header (Authorization) or by user and password in the URL' }
  if (status === 407) return { code: 'UNAUTHORIZED', advice: '; the proxy wants credentials: write them in HTTPS_PROXY or HTTP_PROXY' }
  if (status === 403) return { code: 'FORBIDDEN', advice: '; the credentials do not cover this, or a signed URL has expired' }
  if (status === 404 || status === 410) return { code: 'NOT_FOUND', advice: '; check the URL' }
  if (status === 405 || status === 501) return { code: 'UNSUPPORTED', advice: '; it does not give this by GET' }
  if (status === 408 || status === 425 || status === 429 || status >= 500) return { code: 'UNAVAILABLE', advice: status === 429 ? '; it limits requests' : '; the source is in trouble, try again later', transient: true }
  if (status === 406 || (status >= 400 && status < 500)) return { code: 'INVALID_ARGUMENT', advice: '; it does not take this request' }
  return { code: 'INVALID_DATA', advice: '; that is no answer to a download' }
}

/** Frees the connection, and says it all in one error. */
export async function refusal(response: HttpResponse, what: string): Promise<SkimmerError> {
  await discard(response.body)
  const { code, advice, transient } = meaning(response.status)
  const waitMs = retryAfterMs(response.headers['retry-after'])
  const wait = waitMs === undefined ? '' : ` and asks to wait ${Math.ceil(waitMs / 1000)} s`
  return new SkimmerError(code, `${what}: ${response.url.host} answered ${response.status}${wait}${advice}`, {
    details: { status: response.status, host: response.url.host, ...(waitMs !== undefined && { retryAfterSeconds: Math.ceil(waitMs / 1000) }), ...(transient && { transient }) },
  })
}
