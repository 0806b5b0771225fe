// One 512-byte tar header: checksum, format, strings and numbers, read as Go's archive/tar (and so containerd) reads them.
import { SkimmerError } from '../oci/errors.ts'

export const TAR_BLOCK = 512

/** Where a header's magic says it comes from. PAX and ustar look alike; `star` is Schily's, with a shorter prefix. */
export type TarFormat = 'v7' | 'ustar' | 'gnu' | 'star'

export interface TarHeader {
  readonly format: TarFormat
  /** The type flag's character; '\0' is the old form of '0'. */
  readonly typeflag: string
  readonly name: string
  readonly linkname: string
  readonly size: number
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly mtime: number
  readonly major: number
  readonly minor: number
}

export const padded = (length: number): number => Math.ceil(length / TAR_BLOCK) * TAR_BLOCK

export const invalidTar = (what: string, offset: number): SkimmerError =>
  new SkimmerError('INVALID_DATA', `tar: ${what} at byte ${offset} of the layer's stream`, { details: { offset } })

export function isZeroBlock(block: Buffer): boolean {
  if (block[0] !== 0) return false
  for (let i = 1; i < TAR_BLOCK; i++) if (block[i] !== 0) return false
  return true
}

/** The bytes up to the first NUL, as a binary string. */
export function tarString(block: Buffer, from: number, length: number): string {
  let end = from
  while (end < from + length && block[end] !== 0) end++
  return block.toString('latin1', from, end)
}

/**
 * Octal, or GNU's base-256 two's complement when the first bit is set. undefined when it is neither, or does not fit in 64
 * bits. Values beyond 2^53 saturate there: no size, time or owner that an image can hold reaches it.
 */
export function tarNumber(block: Buffer, from: number, length: number): number | undefined {
  if ((block[from] & 0x80) !== 0) return base256(block, from, length)
  let start = from
  let end = from + length
  while (start < end && (block[start] === 0x20 || block[start] === 0)) start++
  while (end > start && (block[end - 1] === 0x20 || block[end - 1] === 0)) end--
  let value = 0
  for (let i = start; i < end; i++) {
    const byte = block[i]
    if (byte === 0) break // after the trim a NUL can only follow digits: it ends the number
    if (byte < 0x30 || byte > 0x37) return undefined
    value = value * 8 + (byte - 0x30)
  }
  return value
}

function base256(block: Buffer, from: number, length: number): number | undefined {
  const inversion = (block[from] & 0x40) === 0 ? 0 : 0xff
  let value = 0n
  for (let i = 0; i < length; i++) {
    let byte = block[from + i] ^ inversion
    if (i === 0) byte &= 0x7f
    value = (value << 8n) | BigInt(byte)
  }
  if (value >= 1n << 63n) return undefined
  const clamped = value > BigInt(Number.MAX_SAFE_INTEGER) ? Number.MAX_SAFE_INTEGER : Number(value)
  return inversion === 0 ? clamped : -clamped - 1
}

/** The sum of all bytes with the checksum field taken as spaces. POSIX adds unsigned bytes, Sun's tar added signed ones: both are fine. */
function checksumHolds(block: Buffer): boolean {
  const wanted = (block[148] & 0x80) === 0 ? tarNumber(block, 148, 8) : undefined
  if (wanted === undefined) return false
  let unsigned = 8 * 0x20
  let high = 0
  for (let i = 0; i < 148; i++) {
    unsigned += block[i]
    high += block[i] >>> 7
  }
  for (let i = 156; i < TAR_BLOCK; i++) {
    unsigned += block[i]
    high += block[i] >>> 7
  }
  return wanted === unsigned || wanted === unsigned - high * 256
}

function formatOf(block: Buffer): TarFormat {
  const magic = block.toString('latin1', 257, 265)
  if (magic === 'ustar  \0') return 'gnu'
  if (!magic.startsWith('ustar\0')) return 'v7'
  return block.toString('latin1', 508, 512) === 'tar\0' ? 'star' : 'ustar'
}

/**
 * Parses one header block. `offset` is where it stands in the stream, for messages.
 * Throws INVALID_DATA for what Go's archive/tar calls ErrHeader.
 */
export function parseTarHeader(block: Buffer, offset: number): TarHeader {
  if (!checksumHolds(block)) throw invalidTar('header checksum is wrong', offset)
  const number = (from: number, length: number, what: string): number => {
    const value = tarNumber(block, from, length)
    if (value === undefined) throw invalidTar(`${what} of a header is not a number`, offset)
    return value
  }
  const format = formatOf(block)
  let name = tarString(block, 0, 100)
  let major = 0
  let minor = 0
  if (format !== 'v7') {
    major = number(329, 8, 'device major')
    minor = number(337, 8, 'device minor')
    const prefix = prefixOf(block, format, number)
    if (prefix !== '') name = `${prefix}/${name}`
  }
  return {
    format,
    typeflag: block.toString('latin1', 156, 157),
    name,
    linkname: tarString(block, 157, 100),
    size: number(124, 12, 'size'),
    mode: number(100, 8, 'mode'),
    uid: number(108, 8, 'uid'),
    gid: number(116, 8, 'gid'),
    mtime: number(136, 12, 'mtime'),
    major,
    minor,
  }
}

function prefixOf(block: Buffer, format: TarFormat, number: (from: number, length: number, what: string) => number): string {
  if (format === 'ustar') return tarString(block, 345, 155)
  if (format === 'star') {
    number(476, 12, 'atime')
    number(488, 12, 'ctime')
    return tarString(block, 345, 131)
  }
  // GNU headers hold atime and ctime where ustar has its prefix; Go before 1.8 wrote a prefix there nevertheless, and Go
  // still takes it for one when it is no number and plain ASCII (golang.org/issue/12594).
  const timesHold = [345, 357].every((from) => block[from] === 0 || tarNumber(block, from, 12) !== undefined)
  if (timesHold) return ''
  const prefix = tarString(block, 345, 155)
  return Buffer.from(prefix, 'latin1').every((byte) => byte < 0x80) ? prefix : ''
}
