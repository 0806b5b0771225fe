// What the proxy says in its own words: the distribution spec's error bodies, and the headers every answer has.
import type { IncomingHttpHeaders, ServerResponse } from 'node:http'
import { parseChallenges } from '../oci/challenge.ts'
import type { ErrorCode, SkimmerError } from '../oci/errors.ts'

/** What became of a request; a metric's label. */
export type Outcome = 'hit' | 'miss' | 'passed' | 'stale' | 'refused' | 'missing' | 'invalid' | 'failed' | 'gone'

export function prepare(response: ServerResponse): void {
  response.setHeader('docker-distribution-api-version', 'registry/2.0')
  response.setHeader('x-content-type-options', 'nosniff')
}

/** `{errors: [{code, message}]}`, as the spec has it. Nothing when the answer has begun already. */
export function answerProblem(response: ServerResponse, status: number, code: string, message: string): void {
  if (response.headersSent || response.destroyed) return
  const body = problemBody(code, message)
  for (const name of ['etag', 'docker-content-digest', 'content-range', 'accept-ranges', 'cache-control']) if (status !== 416 || name !== 'content-range') response.removeHeader(name)
  response.writeHead(status, { 'content-type': 'application/json', 'content-length': body.length })
  response.end(response.req.method === 'HEAD' ? undefined : body)
}

const problemBody = (code: string, message: string): Buffer => Buffer.from(`${JSON.stringify({ errors: [{ code, message }] })}\n`)

/** The spec's code for what a registry says with each status. */
const SPEC_CODES: Readonly<Record<number, string>> = { 400: 'NAME_INVALID', 401: 'UNAUTHORIZED', 403: 'DENIED', 404: 'NAME_UNKNOWN', 405: 'UNSUPPORTED', 429: 'TOOMANYREQUESTS', 500: 'UNKNOWN' }

/** The same where a registry refused without the spec's words. */
const REFUSAL_CODES: Readonly<Record<number, string>> = { 401: 'UNAUTHORIZED', 403: 'DENIED', 429: 'TOOMANYREQUESTS' }

const STATUS_OF: Readonly<Record<ErrorCode, number>> = {
  INVALID_ARGUMENT: 400, INVALID_DATA: 502, DIGEST_MISMATCH: 502, NOT_FOUND: 404, UNAUTHORIZED: 401, FORBIDDEN: 403, UNSUPPORTED: 502,
  UNAVAILABLE: 503, TIMEOUT: 504, LIMIT_EXCEEDED: 502, NO_SPACE: 503, CONFLICT: 503, ABORTED: 503, INTERNAL: 500,
}

/** The spec has codes for what clients do wrong; a mirror in trouble has none, and says so in the way of Docker's registry. */
export function answerError(response: ServerResponse, error: SkimmerError, kind: 'manifest' | 'blob' | 'other'): Outcome {
  const status = STATUS_OF[error.code]
  const code = status === 404 && kind !== 'other' ? `${kind.toUpperCase()}_UNKNOWN` : (SPEC_CODES[status] ?? 'UNAVAILABLE')
  answerProblem(response, status, code, error.message)
  return outcomeOf(status)
}

export function outcomeOf(status: number): Outcome {
  if (status < 400) return 'passed'
  if (status === 401 || status === 403) return 'refused'
  return status === 404 ? 'missing' : status < 500 && status !== 429 ? 'invalid' : 'failed'
}

/** Headers of a registry that are as good from the proxy. */
const PASSED_ON = [
  'content-type', 'docker-content-digest', 'etag', 'last-modified', 'retry-after', 'oci-filters-applied', 'oci-subject',
  'ratelimit-limit', 'ratelimit-remaining', 'docker-ratelimit-source', 'warning',
]

/** A registry's own answer, passed on: a refusal, a list, what is not cached. `headers` come on top; `unknown` is the spec's word for what is not there, where the registry said none of the spec's. */
export function passOn(response: ServerResponse, answer: { status: number; headers: IncomingHttpHeaders; bytes: Buffer; asked: URL }, headers: Readonly<Record<string, string | string[] | undefined>> = {}, unknown = 'NAME_UNKNOWN'): Outcome {
  const passed: Record<string, string | string[] | number> = {}
  for (const name of PASSED_ON) if (answer.headers[name] !== undefined) passed[name] = answer.headers[name]!
  const challenge = absoluteChallenges(answer.headers['www-authenticate'], answer.asked)
  if (challenge !== undefined) passed['www-authenticate'] = challenge
  for (const [name, value] of Object.entries(headers)) if (value !== undefined) passed[name] = value
  const head = response.req.method === 'HEAD'
  let { bytes } = answer
  if (!head && answer.status >= 400 && !isSpecError(bytes)) {
    // It was asked by HEAD and said no words, or its words are a page for people.
    bytes = problemBody(answer.status === 404 ? unknown : (REFUSAL_CODES[answer.status] ?? 'UNKNOWN'), `the registry ${answer.asked.host} answered ${answer.status}`)
    passed['content-type'] = 'application/json'
  }
  const length = head ? answer.headers['content-length'] : bytes.length
  if (length !== undefined && answer.status !== 304) passed['content-length'] = length
  response.writeHead(answer.status, passed)
  response.end(head || answer.status === 304 ? undefined : bytes)
  return outcomeOf(answer.status)
}

/** `{errors: […]}`, whatever stands in it. */
function isSpecError(bytes: Buffer): boolean {
  try {
    const { errors } = JSON.parse(bytes.toString('utf8')) as { errors?: unknown }
    return Array.isArray(errors)
  } catch {
    return false // null has no members either
  }
}

/** Clients ask the registry's token server themselves: where its address is relative, it is the registry's and not the proxy's. */
export function absoluteChallenges(header: string | string[] | undefined, asked: URL): string[] | undefined {
  if (header === undefined) return undefined
  const lines = typeof header === 'string' ? [header] : header
  return lines.map((line) => {
    const realm = parseChallenges(line).find(({ scheme }) => scheme === 'bearer')?.parameters.realm
    const absolute = realm === undefined || URL.canParse(realm) ? null : URL.parse(realm, asked.href)
    return absolute === null ? line : line.replace(`"${realm}"`, () => `"${absolute.href}"`)
  })
}
