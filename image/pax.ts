// PAX extended headers: the records of an `x` or `g` header, and what they say about the entry that follows.
import { invalidTar } from './tar-header.ts'

/** Bound of one meta header (pax, GNU long name), the same as Go's and libarchive's. */
export const MAX_META_LENGTH = 1 << 20

/** Keys and values as binary strings; the last record of a key wins. GNU.sparse 0.0's repeated records are folded into GNU.sparse.map. */
export type PaxRecords = ReadonlyMap<string, string>

const XATTR_PREFIX = 'SCHILY.xattr.'
const TEXT_KEYS = new Set(['path', 'linkpath', 'uname', 'gname'])

/** `offset` is where the header stands in the stream. Throws INVALID_DATA where Go's archive/tar says ErrHeader. */
export function parsePaxRecords(data: Buffer, offset: number): PaxRecords {
  const records = new Map<string, string>()
  const sparseMap: string[] = []
  let at = 0
  while (at < data.length) {
    const space = data.indexOf(0x20, at)
    const digits = space === -1 || space - at > 20 ? '' : data.toString('latin1', at, space)
    const length = decimal(digits)
    const end = length === undefined ? 0 : at + length
    if (length === undefined || length < 5 || end > data.length || end - 1 <= space || data[end - 1] !== 0x0a) throw invalidTar('a malformed pax record', offset)
    const equals = data.indexOf(0x3d, space + 1)
    if (equals <= space + 1 || equals >= end - 1) throw invalidTar('a pax record without a key', offset)
    const key = data.toString('latin1', space + 1, equals)
    const value = data.toString('latin1', equals + 1, end - 1)
    if ((TEXT_KEYS.has(key) ? value : key).includes('\0')) throw invalidTar(`a pax record with a NUL byte`, offset)
    if (key === 'GNU.sparse.offset' || key === 'GNU.sparse.numbytes') {
      const wanted = sparseMap.length % 2 === 0 ? 'GNU.sparse.offset' : 'GNU.sparse.numbytes'
      if (key !== wanted || value.includes(',')) throw invalidTar('pax sparse records out of order', offset)
      sparseMap.push(value)
    } else records.set(key, value)
    at = end
  }
  if (sparseMap.length > 0) records.set('GNU.sparse.map', sparseMap.join(','))
  return records
}

/** A decimal as Go's strconv.ParseInt takes it; saturates at 2^53. undefined when it is none or beyond 64 bits. */
export function decimal(text: string): number | undefined {
  if (!/^[+-]?[0-9]+$/.test(text)) return undefined
  const value = Number(text)
  if (Number.isSafeInteger(value)) return value + 0 // never -0
  if (Math.abs(value) > 2 ** 63) return undefined
  return value > 0 ? Number.MAX_SAFE_INTEGER : -Number.MAX_SAFE_INTEGER
}

/** `seconds[.fraction]`, maybe negative, as seconds rounded down and nanoseconds from there; digits past the ninth are cut. */
export function paxTime(text: string): { seconds: number; nanos: number } | undefined {
  const point = text.indexOf('.')
  const whole = point === -1 ? text : text.slice(0, point)
  const fraction = point === -1 ? '' : text.slice(point + 1)
  const seconds = decimal(whole)
  if (seconds === undefined || !/^[0-9]*$/.test(fraction)) return undefined
  const nanos = Number(fraction.slice(0, 9).padEnd(9, '0'))
  if (nanos === 0 || !whole.startsWith('-')) return { seconds, nanos }
  return { seconds: seconds - 1, nanos: 1_000_000_000 - nanos }
}

/**
 * The extended attributes of an entry. containerd reads `SCHILY.xattr.` alone and passes over libarchive's second copy of the
 * same (`LIBARCHIVE.xattr.`); an empty value is an attribute with an empty value.
 */
export function paxXattrs(records: PaxRecords): [name: string, value: Uint8Array][] {
  const xattrs: [string, Uint8Array][] = []
  for (const [key, value] of records) {
    if (key.startsWith(XATTR_PREFIX)) xattrs.push([key.slice(XATTR_PREFIX.length), Buffer.from(value, 'latin1')])
  }
  return xattrs
}
