// What a failed connection means: one of our codes, whether trying again can help, and a message that says what to do.
import { SkimmerError } from './errors.ts'

/** Where we asked, fit for logs: no query (redirects carry signatures in it), no user. */
export const shownUrl = (url: URL): string => `${url.protocol}//${url.host}${url.pathname}`

const CERTIFICATE = /^(?:CERT_|ERR_TLS_CERT|UNABLE_TO_|DEPTH_ZERO_|SELF_SIGNED_|HOSTNAME_MISMATCH)/
const TIMEOUTS = new Set(['UND_ERR_CONNECT_TIMEOUT', 'UND_ERR_HEADERS_TIMEOUT', 'UND_ERR_BODY_TIMEOUT', 'ETIMEDOUT'])

export const isCertificateError = (code: string): boolean => CERTIFICATE.test(code)

/** The code of an error or of the first that it wraps (undici and happy eyeballs wrap). */
export function networkCode(error: unknown): string {
  for (let current = error, depth = 0; current !== null && typeof current === 'object' && depth < 5; depth++) {
    const { code, cause, errors } = current as { code?: unknown; cause?: unknown; errors?: unknown[] }
    if (typeof code === 'string' && code !== 'UND_ERR_SOCKET') return code
    current = cause ?? errors?.[0] ?? (code === 'UND_ERR_SOCKET' ? { code: 'ECONNRESET' } : null)
  }
  return ''
}

/** True when the same request may well succeed a moment later. */
export function isTransient(error: unknown): boolean {
  const code = networkCode(error)
  return TIMEOUTS.has(code) || /^(?:ECONN|EPIPE|EHOSTUNREACH|ENETUNREACH|EAI_AGAIN|UND_ERR_RES_CONTENT_LENGTH_MISMATCH|HPE_)/.test(code)
}

export function abortedError(what: string, reason: unknown): SkimmerError {
  const timedOut = (reason as { name?: unknown } | undefined)?.name === 'TimeoutError'
  return new SkimmerError(timedOut ? 'TIMEOUT' : 'ABORTED', timedOut ? `${what}: did not finish in the time it was given` : `${what}: given up by the caller`, { cause: reason })
}

export function networkError(error: unknown, url: URL, what: string, signal?: AbortSignal): SkimmerError {
  if (error instanceof SkimmerError) return error
  if (signal?.aborted) return abortedError(what, signal.reason)
  const code = networkCode(error)
  const details = { host: url.host, network: code }
  const fail = (kind: 'UNAVAILABLE' | 'TIMEOUT', why: string): SkimmerError => new SkimmerError(kind, `${what}: ${why}`, { cause: error, details })
  if (code === 'UND_ERR_CONNECT_TIMEOUT' || code === 'ETIMEDOUT') return fail('TIMEOUT', `${url.host} does not accept connections in time; check the address and the network`)
  if (TIMEOUTS.has(code)) return fail('TIMEOUT', `${url.host} went silent`)
  if (code === 'ENOTFOUND') return fail('UNAVAILABLE', `there is no host named ${url.hostname}; check the name and DNS`)
  if (code === 'ECONNREFUSED') return fail('UNAVAILABLE', `nothing listens on ${url.host}`)
  if (isCertificateError(code)) {
    return fail('UNAVAILABLE', `the certificate of ${url.host} is not trusted (${code}); name its certificate authority as "ca" in the settings of host ${url.host}`)
  }
  if (code === 'ERR_SSL_WRONG_VERSION_NUMBER' || code === 'ERR_SSL_PACKET_LENGTH_TOO_LONG') {
    return fail('UNAVAILABLE', `${url.host} does not speak TLS; if it is meant to speak plain HTTP, set "plainHttp" in the settings of host ${url.host}`)
  }
  return fail('UNAVAILABLE', `the connection to ${url.host} failed (${code || (error as Error)?.message || 'no reason given'})`)
}
