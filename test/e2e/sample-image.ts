// Real images for the tests of whole nodes: busybox and files of every kind in several layers, as OCI layouts whose content is known.
import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync, zstdCompressSync } from 'node:zlib'
import { buildTar, type TarEntry } from '../image/tar-builder.ts'

const BUSYBOX = '/bin/busybox'
const APPLETS = ['sh', 'cat', 'ls', 'find', 'sleep', 'sha256sum', 'sort', 'xargs', 'mkdir', 'rm', 'dd', 'echo', 'true', 'test', 'stat', 'wc', 'head']
const LAYER_TYPE = 'application/vnd.oci.image.layer.v1.tar'
const MTIME = '1700000000.123456789'

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')

export interface SampleLayer {
  readonly tar: Buffer
  readonly blob: Buffer
  readonly mediaType: string
}

export function layer(entries: readonly TarEntry[], compression: 'gzip' | 'zstd' | 'none' = 'gzip'): SampleLayer {
  const tar = buildTar(entries.map((entry) => ({ mtime: MTIME, ...entry })))
  if (compression === 'none') return { tar, blob: tar, mediaType: LAYER_TYPE }
  return { tar, blob: compression === 'gzip' ? gzipSync(tar, { level: 1 }) : zstdCompressSync(tar), mediaType: `${LAYER_TYPE}+${compression}` }
}

/** A layer as `zstd --ultra --long=28` writes it, which containerd reads: one frame with a window of 256 MiB, here around stored blocks. */
export function longWindowLayer(entries: readonly TarEntry[]): SampleLayer {
  const { tar } = layer(entries, 'none')
  const parts: Uint8Array[] = [Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0, (28 - 10) << 3])]
  for (let at = 0; at < tar.length; at += 65_536) {
    const piece = tar.subarray(at, at + 65_536)
    const header = Buffer.alloc(3)
    header.writeUIntLE((piece.length << 3) | (at + piece.length === tar.length ? 1 : 0), 0, 3)
    parts.push(header, piece)
  }
  return { tar, blob: Buffer.concat(parts), mediaType: `${LAYER_TYPE}+zstd` }
}

/** Bytes that do not compress, the same for the same words. */
export const noise = (words: string, length: number): Buffer => createHash('shake128', { outputLength: length }).update(words).digest()

export const dir = (name: string, more: Partial<TarEntry> = {}): TarEntry => ({ name, type: 'dir', ...more })
export const file = (name: string, data: string | Uint8Array = `data of ${name}\n`, more: Partial<TarEntry> = {}): TarEntry => ({ name, data, ...more })
export const symlink = (name: string, link: string): TarEntry => ({ name, type: 'symlink', link, mode: 0o777 })

/** A shell with its tools, the directories that runc wants, and a greeting. */
export function busyboxEntries(): TarEntry[] {
  return [
    ...['bin', 'dev', 'etc', 'proc', 'run', 'sys', 'root'].map((name) => dir(name)),
    dir('tmp', { mode: 0o1777 }),
    file('bin/busybox', readFileSync(BUSYBOX), { mode: 0o755 }),
    ...APPLETS.map((applet) => symlink(`bin/${applet}`, 'busybox')),
    file('etc/motd', 'hello from the lowest layer\n'),
  ]
}

/** Four layers of three compressions with about 500 files: sizes around every boundary, odd owners, modes, times, links, attributes, deletions. */
export function variedLayers(): SampleLayer[] {
  const sizes = [0, 1, 511, 512, 513, 4095, 4096, 4097, 65_535, 65_536, 65_537, 262_144, 300_001]
  const base = [
    ...busyboxEntries(),
    dir('data'),
    ...Array.from({ length: 300 }, (_, i) => file(`data/${i % 7}/small-${i}`, `${i} `.repeat((i * 37) % 900))),
    ...sizes.map((size) => file(`data/sized-${size}`, noise(`sized ${size}`, size))),
    file('data/large', noise('large', 6_000_000)),
    file('data/zeros', Buffer.alloc(1_000_000)),
    dir('hidden'), file('hidden/below'), dir('hidden/deep'), file('hidden/deep/below'),
    file('gone'), dir('gone-directory'), file('gone-directory/file'),
    file('replaced', 'old\n'), dir('becomes-a-file'), file('becomes-a-file/inside'),
  ]
  const second = [
    file('data/large-too', noise('large too', 4_000_000), { uid: 1000, gid: 2000, mode: 0o4640 }),
    { name: 'data/hard-link', type: 'hardlink', link: 'data/large-too' } as TarEntry,
    file('attributes', 'x', { xattrs: { 'user.note': 'kept', 'security.capability': Buffer.from('0100000200040000000000000000000000000000', 'hex') } }),
    { name: 'null', type: 'char', major: 1, minor: 3, mode: 0o666 } as TarEntry,
    { name: 'pipe', type: 'fifo', mode: 0o620 } as TarEntry,
    file('hidden/.wh..wh..opq', ''), file('hidden/above'),
    file('.wh.gone', ''), file('.wh.gone-directory', ''), file('replaced', 'new\n', { mtime: '1234567890.000000001' }),
  ]
  const third = [
    file('becomes-a-file', 'a file now\n'),
    dir('sticky', { mode: 0o1770, uid: 7, gid: 8, mtime: 5 }),
    ...Array.from({ length: 150 }, (_, i) => file(`many/${'n'.repeat(i)}-${i}`, `${i}\n`)),
    symlink('etc/link', '../data/large'), symlink('outside', '/../../etc/passwd'),
  ]
  return [layer(base), layer(second, 'zstd'), layer(third, 'none'), layer([file('etc/motd', 'hello from the top layer\n'), file('data/.wh.small', ''), file('top', 'top\n')])]
}

export interface SampleImage {
  readonly layout: string
  readonly manifestDigest: string
  /** Lowest first. */
  readonly diffIds: readonly string[]
  readonly layers: readonly { readonly digest: string; readonly size: number }[]
}

/** Writes the layers (lowest first) as an OCI layout with the tag `latest`. */
export function writeLayout(layout: string, layers: readonly SampleLayer[]): SampleImage {
  mkdirSync(join(layout, 'blobs/sha256'), { recursive: true })
  const put = (bytes: Uint8Array): { digest: string; size: number } => {
    writeFileSync(join(layout, 'blobs/sha256', sha256(bytes)), bytes)
    return { digest: `sha256:${sha256(bytes)}`, size: bytes.length }
  }
  const blobs = layers.map(({ blob, mediaType }) => ({ mediaType, ...put(blob) }))
  const diffIds = layers.map(({ tar }) => `sha256:${sha256(tar)}`)
  const json = (value: object): { digest: string; size: number } => put(Buffer.from(JSON.stringify(value)))
  const platform = { architecture: process.arch === 'x64' ? 'amd64' : process.arch, os: 'linux' }
  const config = json({ ...platform, config: { Cmd: ['/bin/cat', '/etc/motd'], Env: ['PATH=/bin'] }, rootfs: { type: 'layers', diff_ids: diffIds } })
  const mediaType = 'application/vnd.oci.image.manifest.v1+json'
  const manifest = json({ schemaVersion: 2, mediaType, config: { mediaType: 'application/vnd.oci.image.config.v1+json', ...config }, layers: blobs })
  writeFileSync(join(layout, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}')
  writeFileSync(join(layout, 'index.json'), JSON.stringify({ schemaVersion: 2, manifests: [{ mediaType, ...manifest, platform, annotations: { 'org.opencontainers.image.ref.name': 'latest' } }] }))
  return { layout, manifestDigest: manifest.digest, diffIds, layers: blobs.map(({ digest, size }) => ({ digest, size })) }
}
