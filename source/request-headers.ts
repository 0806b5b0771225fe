// A caller's request headers: checked, one spelling, told apart into those that prove who asks, those for one origin, and the rest.
import { SkimmerError } from '../oci/errors.ts'

export type Headers = Readonly<Record<string, string>>

export const MAX_HEADERS = 64
export const MAX_HEADER_BYTES = 8192

const NAME = /^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}$/
const VALUE = /^[\t\x20-\x7e\x80-\xff]*$/
/** What the source itself decides, or what belongs to the connection. */
const OURS = new Set([
  'range', 'if-range', 'if-match', 'if-none-match', 'if-modified-since', 'if-unmodified-since', 'content-length', 'transfer-encoding', 'connection', 'keep-alive',
  'proxy-connection', 'te', 'trailer', 'upgrade', 'expect',
])
/** Sent along redirects to other origins too: they tell how to answer, not who asks. */
const FOR_ANYONE = new Set(['accept', 'accept-encoding', 'accept-language', 'cache-control', 'pragma', 'user-agent'])
const PROOF = new Set(['authorization', 'cookie', 'proxy-authorization', 'x-jfrog-art-api', 'x-amz-security-token'])
const PROOF_SHAPE = /(?:^|-)(?:token|api-?key|access-?key|secret)$/

/** Lower-case names. Throws INVALID_ARGUMENT (never with a value in it) for what is no header, or not the caller's to set. */
export function normalizeHeaders(headers: Headers = {}): Record<string, string> {
  const entries = Object.entries(headers)
  if (entries.length > MAX_HEADERS) throw new SkimmerError('INVALID_ARGUMENT', `${entries.length} request headers are more than the ${MAX_HEADERS} that are allowed`)
  const normal: Record<string, string> = {}
  for (const [written, value] of entries) {
    const name = written.trim().toLowerCase()
    const shown = JSON.stringify(written.slice(0, 80))
    if (!NAME.test(name)) throw new SkimmerError('INVALID_ARGUMENT', `${shown} is not the name of a request header`)
    if (typeof value !== 'string' || value.length > MAX_HEADER_BYTES || !VALUE.test(value)) {
      throw new SkimmerError('INVALID_ARGUMENT', `the value of the request header ${shown} has characters that no header can have, or more than ${MAX_HEADER_BYTES}`)
    }
    if (OURS.has(name)) throw new SkimmerError('INVALID_ARGUMENT', `the request header ${shown} is set by the download itself${name === 'range' ? '; say which part is wanted by the range option' : ''}`)
    if (name in normal) throw new SkimmerError('INVALID_ARGUMENT', `the request header ${shown} is given twice`)
    normal[name] = value.trim()
  }
  return normal
}

/** True for headers that only prove who asks, and do not make another resource. By lower-case name. */
export const provesWhoAsks = (name: string): boolean => PROOF.has(name) || PROOF_SHAPE.test(name)

/** Of normalized headers, those that only prove who asks: secrets. */
export function credentialHeaders(headers: Headers): Record<string, string> {
  return Object.fromEntries(Object.entries(headers).filter(([name]) => provesWhoAsks(name.toLowerCase())))
}

/** `own` must not follow a redirect to another origin: secrets, and whatever else is not known to be harmless there. */
export function splitHeaders(headers: Headers): { own: Record<string, string>; forAnyone: Record<string, string> } {
  const entries = Object.entries(headers)
  return {
    own: Object.fromEntries(entries.filter(([name]) => !FOR_ANYONE.has(name))),
    forAnyone: Object.fromEntries(entries.filter(([name]) => FOR_ANYONE.has(name))),
  }
}
