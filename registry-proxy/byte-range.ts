// The Range header of a client (RFC 9110 section 14): one range of bytes, or a reason why not.

export type WantedRange =
  | { readonly kind: 'whole' }
  /** `to` is not included. */
  | { readonly kind: 'part'; readonly from: number; readonly to: number }
  | { readonly kind: 'unsatisfiable' }
  | { readonly kind: 'several' }

const WHOLE: WantedRange = { kind: 'whole' }

/** `etag`: what an If-Range must name for the range to count. A header that is not understood is ignored, as the RFC wants. */
export function wantedRange(headers: { range?: string | undefined; 'if-range'?: string | string[] | undefined }, size: number, etag: string): WantedRange {
  const { range } = headers
  if (range === undefined || (headers['if-range'] !== undefined && headers['if-range'] !== etag)) return WHOLE
  const list = /^\s*bytes\s*=([0-9,\s-]+)$/i.exec(range)?.[1].split(',').map((part) => part.trim()).filter((part) => part !== '')
  if (list === undefined || list.length === 0) return WHOLE
  const parsed = list.map((part) => /^([0-9]*)\s*-\s*([0-9]*)$/.exec(part))
  if (parsed.some((match) => match === null || (match[1] === '' && match[2] === ''))) return WHOLE
  if (parsed.length > 1) return { kind: 'several' }
  const [, first, last] = parsed[0]!
  if (first === '') {
    const length = Math.min(Number(last), size)
    return length === 0 ? { kind: 'unsatisfiable' } : { kind: 'part', from: size - length, to: size }
  }
  // Of any number of digits: what cannot be told exactly is beyond every end.
  const from = Number(first)
  if (last !== '' && Number(last) < from) return WHOLE
  if (from >= size) return { kind: 'unsatisfiable' }
  return { kind: 'part', from, to: last === '' ? size : Math.min(Number(last) + 1, size) }
}
