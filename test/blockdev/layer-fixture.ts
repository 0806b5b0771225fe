// Layers, mounts and children for the tests of this room: real files, real mounts, all taken down again.
import { execFile, spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { zstdCompressSync } from 'node:zlib'
import { buildBlockTable, CODEC_RAW, CODEC_ZSTD } from '../../image/block-table.ts'
import type { BlockEntry } from '../../image/block-table.ts'
import type { SharedResource } from '../../peer/shared-resource.ts'

const REASONS = [
  process.getuid?.() === 0 ? '' : 'needs root',
  fs.existsSync('/dev/fuse') ? '' : 'needs /dev/fuse',
  spawnSync('perl', ['-e', '1']).status === 0 ? '' : 'needs perl',
].filter((reason) => reason !== '')

/** Why tests with real mounts cannot run here; '' when they can. */
export const whyNoMounts = REASONS.join(', ')

export const temporaryDirectory = (): string => fs.mkdtempSync(path.join(os.tmpdir(), 'skimmer-blockdev-'))

export interface TestLayer {
  readonly name: string
  readonly bytes: Buffer
  readonly resource: SharedResource
  /** Make blocks readable, or absent again. */
  present(from: number, to: number, here?: boolean): void
  close(): void
}

let resources = 0

/** Bytes that compress a little, so that packed and raw offsets differ. */
export function someBytes(length: number): Buffer {
  const seed = randomBytes(Math.min(length, 1 << 20))
  const bytes = Buffer.alloc(length)
  for (let at = 0; at < length; at += seed.length) {
    bytes.set(seed.subarray(0, Math.min(seed.length, length - at)), at)
    bytes.writeUInt32LE(at / 4096, Math.min(at, Math.max(0, length - 4)))
  }
  return bytes
}

/** A layer in a pack file with blocks of uneven sizes; nothing is present yet unless `here`. */
export function testLayer(directory: string, bytes: Buffer, options: { here?: boolean; raw?: boolean; blockBytes?: number } = {}): TestLayer {
  const name = createHash('sha256').update(bytes).digest('hex')
  const packPath = path.join(directory, `${name}.pack`)
  const entries: BlockEntry[] = []
  const fd = fs.openSync(packPath, 'w+')
  const step = options.blockBytes ?? 256 * 1024
  for (let at = 0, index = 0; at < bytes.length; index++) {
    const length = Math.min(bytes.length - at, index % 3 === 1 ? step / 2 + 512 : step)
    const raw = bytes.subarray(at, at + length)
    const codec = options.raw === true || index % 5 === 4 ? CODEC_RAW : CODEC_ZSTD
    const packed = codec === CODEC_RAW ? raw : zstdCompressSync(raw)
    fs.writeSync(fd, packed)
    entries.push({ rawLength: length, packedLength: packed.length, codec, hash: createHash('sha256').update(packed).digest() })
    at += length
  }
  const table = buildBlockTable(entries)
  const resource: SharedResource = {
    id: `layer:sha256:${name}`,
    number: ++resources,
    table,
    state: new Uint8Array(new SharedArrayBuffer(table.count)).fill(options.here === true ? 2 : 0),
    packFd: fd,
    rawFdCell: new Int32Array(new SharedArrayBuffer(8)).fill(-1, 0, 1),
    lastUse: new Float64Array(new SharedArrayBuffer(8)),
    held: { ring: new Uint8Array(new SharedArrayBuffer(0)), at: new Int32Array(new SharedArrayBuffer(table.count * 4)) },
  }
  return {
    name, bytes, resource,
    present: (from, to, here = true) => { resource.state.fill(here ? 2 : 0, from, to) },
    close: () => fs.closeSync(fd),
  }
}

export interface Ran { readonly status: number; readonly stdout: Buffer; readonly stderr: string }

/** A child, because this process serves the mount and must never wait for it. */
export function run(command: string, ...words: string[]): Promise<Ran> {
  return new Promise((resolve) => {
    execFile(command, words, { encoding: 'buffer', maxBuffer: 1 << 30 }, (error, stdout, stderr) => {
      resolve({ status: error === null ? 0 : typeof error.code === 'number' ? error.code : -1, stdout, stderr: stderr.toString() })
    })
  })
}

const READ = 'open(F,"<:raw",$ARGV[0])||die $!; sysseek(F,$ARGV[1],0); my $l=$ARGV[2]; while($l>0){my $n=sysread(F,my $b,$l); die "read: $!\\n" if !defined $n; last if !$n; print $b; $l-=$n}'

/** Bytes of a file at an offset, read by a child. */
export async function readBy(file: string, offset: number, length: number): Promise<Buffer> {
  const { status, stdout, stderr } = await run('perl', '-e', READ, file, String(offset), String(length))
  if (status !== 0) throw new Error(stderr.trim())
  return stdout
}

/** Waits until something is so; the test's own timeout bounds it. */
export async function until(what: () => boolean): Promise<void> {
  while (!what()) await new Promise((resolve) => setTimeout(resolve, 5))
}
