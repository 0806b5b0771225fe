// The Content-Range header of a 206 or 416 answer (RFC 9110 section 14.4), for single byte ranges.

export interface ContentRange {
  /** First and last byte, inclusive; both undefined for the unsatisfied form `bytes *\/<total>`. */
  readonly start: number | undefined
  readonly end: number | undefined
  /** Undefined when the server does not know it (`*`). */
  readonly total: number | undefined
}

const SATISFIED = /^bytes[ \t]+([0-9]{1,16})-([0-9]{1,16})\/([0-9]{1,16}|\*)$/i
const UNSATISFIED = /^bytes[ \t]+\*\/([0-9]{1,16})$/i

/** Undefined for what is absent, malformed, or says an impossible range. */
export function parseContentRange(header: unknown): ContentRange | undefined {
  if (typeof header !== 'string' || header.length > 100) return undefined
  const text = header.trim()
  const unsatisfied = UNSATISFIED.exec(text)
  if (unsatisfied !== null) return safe({ start: undefined, end: undefined, total: Number(unsatisfied[1]) })
  const match = SATISFIED.exec(text)
  if (match === null) return undefined
  const range = { start: Number(match[1]), end: Number(match[2]), total: match[3] === '*' ? undefined : Number(match[3]) }
  if (range.start > range.end || (range.total !== undefined && range.end >= range.total)) return undefined
  return safe(range)
}

const safe = (range: ContentRange): ContentRange | undefined =>
  [range.start, range.end, range.total].every((value) => value === undefined || Number.isSafeInteger(value)) ? range : undefined
