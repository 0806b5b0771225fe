// Archives that GNU tar really writes, in all its formats, against the files they were made of.
import { afterAll, describe, expect, test } from '@jest/globals'
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, linkSync, lstatSync, mkdirSync, mkdtempSync, readFileSync, readlinkSync, rmSync, symlinkSync, truncateSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { FileEntry } from '../../image/layer-index.ts'
import { readTar } from './odd-tar.ts'

const root = mkdtempSync(join(tmpdir(), 'skimmer-tar-'))
afterAll(() => rmSync(root, { recursive: true, force: true }))

const LONG = `${'n'.repeat(120)}/${'m'.repeat(120)}`
const canSetTrusted = process.getuid?.() === 0 && existsSync('/usr/bin/setfattr')

function makeTree(): void {
  mkdirSync(join(root, 'tree', 'dir'), { recursive: true })
  mkdirSync(join(root, 'tree', LONG.split('/')[0]))
  writeFileSync(join(root, 'tree/plain'), 'hello\n', { mode: 0o4755 })
  writeFileSync(join(root, 'tree/dir/caf\u00e9'), 'x'.repeat(513))
  writeFileSync(join(root, 'tree/large'), createHash('sha512').update('seed').digest().toString('hex').repeat(1000))
  writeFileSync(join(root, 'tree', LONG), 'deep')
  symlinkSync('../plain', join(root, 'tree/dir/link'))
  symlinkSync('t'.repeat(180), join(root, 'tree/long-link'))
  linkSync(join(root, 'tree/plain'), join(root, 'tree/z-hard'))
  writeFileSync(join(root, 'tree/sparse'), '')
  truncateSync(join(root, 'tree/sparse'), 1_000_001)
  for (const at of [0, 20, 60, 61, 100, 140, 180, 220]) {
    execFileSync('dd', [`of=${join(root, 'tree/sparse')}`, 'bs=4096', `seek=${at}`, 'conv=notrunc', 'status=none'], { input: Buffer.alloc(4096, 'data') })
  }
  execFileSync('mkfifo', [join(root, 'tree/fifo')])
  utimesSync(join(root, 'tree/large'), 1_577_836_800.125, 1_577_836_800.125)
  utimesSync(join(root, 'tree/plain'), -86_400, -86_400)
}
makeTree()

function tarOf(...options: string[]): Buffer {
  return execFileSync('tar', ['-C', root, '-c', '--sort=name', ...options, 'tree'], { maxBuffer: 64 * 1024 * 1024, stdio: ['ignore', 'pipe', 'ignore'] })
}

function contentOf(tar: Buffer, entry: FileEntry): Buffer {
  if (entry.extents === undefined) return tar.subarray(entry.offset, entry.offset + entry.size)
  const content = Buffer.alloc(entry.size)
  for (const { fileOffset, offset, length } of entry.extents) tar.copy(content, fileOffset, offset, offset + length)
  return content
}

function compare(tar: Buffer, precise: boolean): void {
  const entries = readTar(tar, [777])
  expect(entries).toHaveLength(12)
  for (const entry of entries) {
    const path = join(root, Buffer.from(entry.path, 'latin1').toString())
    const stat = lstatSync(path, { bigint: true })
    expect([entry.path, entry.uid, entry.gid]).toEqual([entry.path, Number(stat.uid), Number(stat.gid)])
    if (entry.type !== 'symlink') expect([entry.path, entry.mode]).toEqual([entry.path, Number(stat.mode) & 0o7777])
    const nanos = BigInt(entry.mtimeSeconds) * 1_000_000_000n + BigInt(entry.mtimeNanos)
    const expected = precise ? stat.mtimeNs : (stat.mtimeNs - (((stat.mtimeNs % 1_000_000_000n) + 1_000_000_000n) % 1_000_000_000n))
    expect([entry.path, nanos]).toEqual([entry.path, expected])
    if (entry.type === 'file') expect(contentOf(tar, entry).equals(readFileSync(path))).toBe(true)
    else if (entry.type === 'symlink') expect(entry.link).toBe(readlinkSync(path, 'latin1'))
    else if (entry.type === 'hardlink') expect([entry.path, entry.link]).toEqual(['tree/z-hard', 'tree/plain'])
    else if (entry.type === 'dir') expect(stat.isDirectory()).toBe(true)
    else expect([entry.type, stat.isFIFO()]).toEqual(['fifo', true])
  }
}

describe('archives of GNU tar', () => {
  test.each(['gnu', 'oldgnu'])('%s', (format) => compare(tarOf(`--format=${format}`), false))
  test('pax', () => compare(tarOf('--format=pax'), true))
  test('pax with a global header', () => compare(tarOf('--format=pax', '--pax-option=comment=hello'), true))
  test('gnu, sparse', () => {
    const tar = tarOf('--format=gnu', '--sparse', '--hole-detection=raw')
    compare(tar, false)
    expect(readTar(tar).find(({ path }) => path === 'tree/sparse')?.extents).toBeDefined()
  })
  test.each(['0.0', '0.1', '1.0'])('pax, sparse %s', (version) => {
    const tar = tarOf('--format=pax', '--sparse', `--sparse-version=${version}`, '--hole-detection=raw')
    compare(tar, true)
    expect(readTar(tar).find(({ path }) => path === 'tree/sparse')?.extents?.length).toBeGreaterThan(5)
  })
  test.each(['ustar', 'v7'])('%s, of what it can hold', (format) => {
    const tar = execFileSync('tar', ['-C', root, '-c', `--format=${format}`, '--mtime=@1000', 'tree/plain', 'tree/dir', 'tree/large', 'tree/z-hard'], { maxBuffer: 64 * 1024 * 1024, stdio: ['ignore', 'pipe', 'ignore'] })
    const entries = readTar(tar)
    expect(entries.map(({ path, type }) => `${path} ${type}`).sort()).toEqual(['tree/dir dir', 'tree/dir/caf\xc3\xa9 file', 'tree/dir/link symlink', 'tree/large file', 'tree/plain file', 'tree/z-hard hardlink'])
    const large = entries.find(({ path }) => path === 'tree/large') as FileEntry
    expect(contentOf(tar, large).equals(readFileSync(join(root, 'tree/large')))).toBe(true)
  })
  const attributes = canSetTrusted ? test : test.skip
  attributes('pax with extended attributes (needs root and setfattr)', () => {
    execFileSync('setfattr', ['-n', 'trusted.note', '-v', '0x000aff3d', join(root, 'tree/dir')])
    const entry = readTar(tarOf('--format=pax', '--xattrs', '--xattrs-include=*')).find(({ path }) => path === 'tree/dir')
    expect(entry?.xattrs.map(([name, value]) => [name, Buffer.from(value).toString('hex')])).toEqual([['trusted.note', '000aff3d']])
  })
})
