// Versions of what a URL answers: made of the answer's validators, compared, and turned back into conditions of a request.
import { randomBytes } from 'node:crypto'
import type { IncomingHttpHeaders } from 'node:http'

/**
 * What tells one state of a resource from another, best first (RFC 9110 section 8.8): a strong ETag alone; a weak ETag with
 * length and Last-Modified; Last-Modified with length; else nothing but the moment of the answer, which no other answer shares.
 */
export interface Validators {
  readonly kind: 'strong' | 'weak' | 'modified' | 'read'
  readonly etag?: string
  /** The Last-Modified header as the server wrote it. */
  readonly modified?: string
  readonly length?: number
  /** Content-Encoding: other bytes of the same resource, so part of the version. */
  readonly encoding?: string
  readonly read?: string
}

const ETAG = /^(W\/)?"[\x21\x23-\x7e\x80-\xff]*"$/
const MAX_VALIDATOR_LENGTH = 1024
const FIELDS = ['etag', 'modified', 'length', 'encoding', 'read'] as const

const text = (header: string | string[] | undefined): string | undefined => {
  const value = typeof header === 'string' ? header.trim() : undefined
  return value === undefined || value === '' || value.length > MAX_VALIDATOR_LENGTH ? undefined : value
}

/** Of an answer's headers. `length` is that of the whole resource, when the answer tells it. */
export function validatorsOf(headers: IncomingHttpHeaders, length: number | undefined): Validators {
  const tag = text(headers.etag)
  const etag = tag !== undefined && ETAG.test(tag) ? tag : undefined
  const coding = text(headers['content-encoding'])?.toLowerCase()
  const encoding = coding === undefined || coding === 'identity' ? {} : { encoding: coding }
  const stamp = text(headers['last-modified'])
  const modified = stamp !== undefined && /^[\x20-\x7e]+$/.test(stamp) && !Number.isNaN(Date.parse(stamp)) ? stamp : undefined
  if (etag !== undefined && !etag.startsWith('W/')) return { kind: 'strong', etag, ...encoding }
  const known = { ...(modified !== undefined && { modified }), ...(length !== undefined && { length }), ...encoding }
  if (etag !== undefined) return { kind: 'weak', etag, ...known }
  if (modified !== undefined && !tooFresh(modified, text(headers.date))) return { kind: 'modified', ...known, modified }
  return { kind: 'read', read: `${new Date().toISOString()}-${randomBytes(6).toString('hex')}`, ...encoding }
}

/** Changed in the very second of the answer: it may change once more without the stamp showing it (RFC 9110 section 8.8.2.2). */
function tooFresh(modified: string, date: string | undefined): boolean {
  const now = date === undefined ? Number.NaN : Date.parse(date)
  return !Number.isNaN(now) && now - Date.parse(modified) < 1000
}

/** One line; opaque to others. */
export function formatVersion(validators: Validators): string {
  return JSON.stringify([validators.kind, ...FIELDS.map((field) => validators[field] ?? null)])
}

/** Undefined for what no source here has made. */
export function parseVersion(version: string): Validators | undefined {
  if (version.length > 4 * MAX_VALIDATOR_LENGTH) return undefined
  try {
    const [kind, etag, modified, length, encoding, read, ...rest] = JSON.parse(version) as unknown[]
    if (rest.length > 0 || !['strong', 'weak', 'modified', 'read'].includes(kind as string)) return undefined
    const isText = (value: unknown): boolean => value === null || (typeof value === 'string' && value.length <= MAX_VALIDATOR_LENGTH)
    if (![etag, modified, encoding, read].every(isText) || !(length === null || (Number.isSafeInteger(length) && (length as number) >= 0))) return undefined
    if (etag !== null && !ETAG.test(etag as string)) return undefined
    if (modified !== null && !/^[\x20-\x7e]+$/.test(modified as string)) return undefined
    const validators = Object.fromEntries([['kind', kind], ['etag', etag], ['modified', modified], ['length', length], ['encoding', encoding], ['read', read]].filter(([, value]) => value !== null)) as unknown as Validators
    return validators
  } catch {
    return undefined
  }
}

/**
 * True when both speak of the same bytes. What one side does not tell (a chunked answer has no length, a 304 may leave out
 * Last-Modified) cannot differ, but what the version rests on must be there on both.
 */
export function sameVersion(one: Validators, other: Validators): boolean {
  if (one.kind !== other.kind || one.encoding !== other.encoding) return false
  const agree = (a: string | number | undefined, b: string | number | undefined): boolean => a === undefined || b === undefined || a === b
  if (one.kind === 'read') return one.read === other.read
  if (one.kind === 'strong') return one.etag === other.etag
  return one.etag === other.etag && agree(one.modified, other.modified) && agree(one.length, other.length)
}

/** Request headers that make a server answer 304 when it still has this version; none for a version without validators. */
export function unlessSame(validators: Validators): Record<string, string> {
  return {
    ...(validators.etag !== undefined && { 'if-none-match': validators.etag }),
    ...(validators.etag === undefined && validators.modified !== undefined && { 'if-modified-since': validators.modified }),
  }
}

/** If-Range wants a strong validator; others get no condition and the answer is compared. */
export function ifRange(validators: Validators): Record<string, string> {
  if (validators.kind === 'strong') return { 'if-range': validators.etag! }
  if (validators.kind === 'modified') return { 'if-range': validators.modified! }
  return {}
}
