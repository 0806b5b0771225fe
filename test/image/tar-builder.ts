// Makes tars for tests, byte by byte: also such as no ordinary tool would write.
import { createHash } from 'node:crypto'
import { buildBlockTable } from '../../image/block-table.ts'
import type { FileEntry, LayerIndex } from '../../image/layer-index.ts'
import { TarReader } from '../../image/tar-reader.ts'

const TYPE_FLAGS = { file: '0', hardlink: '1', symlink: '2', char: '3', block: '4', dir: '5', fifo: '6' } as const

export interface TarEntry {
  /** Binary string (one char a byte), as are links and xattr names. */
  name: string
  type?: keyof typeof TYPE_FLAGS
  mode?: number
  uid?: number
  gid?: number
  /** Seconds; a string goes into a pax record as it is. */
  mtime?: number | string
  data?: string | Uint8Array
  link?: string
  major?: number
  minor?: number
  xattrs?: Record<string, string | Uint8Array>
  pax?: Record<string, string | Uint8Array>
}

const bytesOf = (value: string | Uint8Array): Buffer => (typeof value === 'string' ? Buffer.from(value, 'latin1') : Buffer.from(value))
const padding = (length: number): Buffer => Buffer.alloc((512 - (length % 512)) % 512)

export function buildTar(entries: readonly TarEntry[]): Buffer {
  return Buffer.concat([...entries.flatMap(encodeEntry), Buffer.alloc(1024)])
}

function encodeEntry(entry: TarEntry): Buffer[] {
  const type = entry.type ?? 'file'
  const data = bytesOf(entry.data ?? '')
  const pax: Record<string, string | Uint8Array> = { ...entry.pax }
  const name = type === 'dir' && !entry.name.endsWith('/') ? `${entry.name}/` : entry.name
  const link = entry.link ?? ''
  const mtime = entry.mtime ?? 1_600_000_000
  const plainTime = typeof mtime === 'number' && Number.isInteger(mtime) && mtime >= 0 && mtime < 0o77777777777
  if (name.length > 100) pax.path = name
  if (link.length > 100) pax.linkpath = link
  if (!plainTime) pax.mtime = String(mtime)
  for (const key of ['uid', 'gid'] as const) if ((entry[key] ?? 0) > 0o7777777) pax[key] = String(entry[key])
  for (const [key, value] of Object.entries(entry.xattrs ?? {})) pax[`SCHILY.xattr.${key}`] = value
  const parts: Buffer[] = []
  if (Object.keys(pax).length > 0) {
    const records = Buffer.concat(Object.entries(pax).map(([key, value]) => paxRecord(key, bytesOf(value))))
    parts.push(header({ name: 'PaxHeaders/x', flag: 'x', size: records.length, mode: 0o644, mtime: 0 }), records, padding(records.length))
  }
  parts.push(
    header({
      name: name.slice(0, 100),
      flag: TYPE_FLAGS[type],
      size: data.length,
      mode: entry.mode ?? (type === 'dir' ? 0o755 : 0o644),
      uid: pax.uid === undefined ? entry.uid : 0,
      gid: pax.gid === undefined ? entry.gid : 0,
      mtime: plainTime ? mtime : 0,
      link: link.slice(0, 100),
      major: entry.major,
      minor: entry.minor,
    }),
    data,
    padding(data.length),
  )
  return parts
}

function paxRecord(key: string, value: Buffer): Buffer {
  const rest = Buffer.concat([Buffer.from(` ${key}=`, 'latin1'), value, Buffer.from('\n')])
  let length = rest.length + 1
  while (String(length).length + rest.length !== length) length = String(length).length + rest.length
  return Buffer.concat([Buffer.from(String(length)), rest])
}

function header(fields: { name: string; flag: string; size: number; mode: number; uid?: number; gid?: number; mtime: number; link?: string; major?: number; minor?: number }): Buffer {
  const block = Buffer.alloc(512)
  const octal = (value: number, at: number, length: number) => block.write(value.toString(8).padStart(length - 1, '0'), at, 'latin1')
  block.write(fields.name, 0, 'latin1')
  octal(fields.mode, 100, 8)
  octal(fields.uid ?? 0, 108, 8)
  octal(fields.gid ?? 0, 116, 8)
  octal(fields.size, 124, 12)
  octal(fields.mtime, 136, 12)
  block.write('        ', 148, 'latin1')
  block.write(fields.flag, 156, 'latin1')
  block.write(fields.link ?? '', 157, 'latin1')
  block.write('ustar\u000000', 257, 'latin1')
  octal(fields.major ?? 0, 329, 8)
  octal(fields.minor ?? 0, 337, 8)
  let sum = 0
  for (const byte of block) sum += byte
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
  return block
}

/** What the indexer would say of a tar, as far as composing goes: the real file table over one big block. */
export function indexTar(tar: Buffer): LayerIndex {
  const files: FileEntry[] = []
  const reader = new TarReader((entry) => files.push(entry))
  reader.push(tar)
  reader.end()
  const hash = createHash('sha256').update(tar)
  const diffId = `sha256:${hash.digest('hex')}`
  const blocks = buildBlockTable([{ rawLength: tar.length, packedLength: tar.length, codec: 0, hash: Buffer.alloc(32) }])
  return { diffId, layerDigest: diffId, layerSize: tar.length, blocks, files }
}
