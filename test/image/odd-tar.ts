// Makes tar headers for tests with every field under control, and reads tars through the reader.
import type { FileEntry } from '../../image/layer-index.ts'
import { TarReader } from '../../image/tar-reader.ts'

export type Fields = Partial<Record<'name' | 'mode' | 'uid' | 'gid' | 'size' | 'mtime' | 'typeflag' | 'linkname' | 'magic' | 'major' | 'minor' | 'prefix' | 'tail', string | Buffer>>

const PLACES: Record<keyof Fields, number> = { name: 0, mode: 100, uid: 108, gid: 116, size: 124, mtime: 136, typeflag: 156, linkname: 157, magic: 257, major: 329, minor: 337, prefix: 345, tail: 386 }

export const USTAR = 'ustar\x0000'
export const GNU = 'ustar  \0'

/** Strings are binary; numbers are written as the caller says (octal text or base-256 bytes). */
export function header(fields: Fields, options: { checksum?: 'signed' } = {}): Buffer {
  const block = Buffer.alloc(512)
  const all: Fields = { mode: '0000644\0', uid: '0000000\0', gid: '0000000\0', size: '00000000000\0', mtime: '00000000000\0', typeflag: '0', magic: USTAR, ...fields }
  for (const [field, value] of Object.entries(all)) {
    const bytes = typeof value === 'string' ? Buffer.from(value, 'latin1') : value
    bytes.copy(block, PLACES[field as keyof Fields])
  }
  block.fill(0x20, 148, 156)
  let sum = 0
  for (const byte of block) sum += options.checksum === 'signed' ? (byte << 24) >> 24 : byte
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
  return block
}

export const octal = (value: number, length = 12): string => `${value.toString(8).padStart(length - 1, '0')}\0`

/** GNU's base-256: a two's complement number with the first bit set. */
export function base256(value: bigint, length: number): Buffer {
  const bytes = Buffer.alloc(length)
  for (let i = length - 1; i >= 0; i--) {
    bytes[i] = Number(value & 0xffn)
    value >>= 8n
  }
  bytes[0] |= 0x80
  return bytes
}

export function pad(data: string | Buffer): Buffer {
  const bytes = typeof data === 'string' ? Buffer.from(data, 'latin1') : data
  return Buffer.concat([bytes, Buffer.alloc((512 - (bytes.length % 512)) % 512)])
}

/** A meta header (pax, GNU long name) with its data. */
export function meta(typeflag: string, data: string | Buffer, magic = USTAR): Buffer {
  const bytes = typeof data === 'string' ? Buffer.from(data, 'latin1') : data
  return Buffer.concat([header({ name: 'meta', typeflag, size: octal(bytes.length), magic }), pad(bytes)])
}

export function paxRecords(records: Record<string, string>): string {
  return Object.entries(records).map(([key, value]) => {
    const rest = key.length + value.length + 3
    let length = rest + 1
    while (String(length).length + rest !== length) length = String(length).length + rest
    return `${length} ${key}=${value}\n`
  }).join('')
}

export const END = Buffer.alloc(1024)

/** Reads a tar in pieces of the given lengths (the last one repeats). */
export function readTar(tar: Uint8Array, pieces: readonly number[] = [Infinity]): FileEntry[] {
  const entries: FileEntry[] = []
  const reader = new TarReader((entry) => entries.push(entry))
  for (let at = 0, i = 0; at < tar.length; i++) {
    const length = pieces[Math.min(i, pieces.length - 1)]
    reader.push(tar.subarray(at, at + length))
    at += length
  }
  reader.end()
  return entries
}
