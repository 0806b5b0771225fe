// What the tar reader makes of headers of every kind, sane and odd.
import { describe, expect, test } from '@jest/globals'
import * as fc from 'fast-check'
import type { FileEntry } from '../../image/layer-index.ts'
import { TarReader } from '../../image/tar-reader.ts'
import { SkimmerError } from '../../oci/errors.ts'
import { base256, END, GNU, header, meta, octal, pad, paxRecords, readTar } from './odd-tar.ts'
import { buildTar } from './tar-builder.ts'

const tarOf = (...parts: Buffer[]): Buffer => Buffer.concat([...parts, END])
const only = (...parts: Buffer[]): FileEntry => {
  const entries = readTar(tarOf(...parts))
  expect(entries).toHaveLength(1)
  return entries[0]
}
const failure = (tar: Uint8Array): SkimmerError => {
  try {
    readTar(tar)
  } catch (error) {
    if (error instanceof SkimmerError) return error
    throw error
  }
  throw new Error('the tar was taken')
}

const timeOf = (mtime: string): number[] => {
  const { mtimeSeconds, mtimeNanos } = only(meta('x', paxRecords({ mtime })), header({ name: 'a' }))
  return [mtimeSeconds, mtimeNanos]
}
const old = (map: [number, number][], fields: Parameters<typeof header>[0] = {}) => {
  const tail = Buffer.alloc(126)
  map.forEach(([at, length], i) => tail.write(`${octal(at)}${octal(length)}`, i * 24, 'latin1'))
  tail.write(octal(4096), 97, 'latin1')
  return header({ name: 's', typeflag: 'S', magic: GNU, tail, ...fields })
}

describe('paths', () => {
  test.each([
    ['usr/bin/env', 'usr/bin/env'],
    ['./usr//bin/./env', 'usr/bin/env'],
    ['/etc/passwd', 'etc/passwd'],
    ['../../etc/passwd', 'etc/passwd'],
    ['a/../../b', 'b'],
    ['a/b/../c', 'a/c'],
    ['.hidden/..x/...', '.hidden/..x/...'],
    ['file-with-slash/', 'file-with-slash'],
  ])('%s stands at %s', (name, path) => {
    expect(only(header({ name })).path).toBe(path)
  })

  test('the root is a directory; anything else that resolves to it is passed over', () => {
    const entries = readTar(tarOf(header({ name: './', typeflag: '5' }), header({ name: '..' }), header({ name: 'a' })))
    expect(entries.map(({ path, type }) => [path, type])).toEqual([['', 'dir'], ['a', 'file']])
  })

  test('a trailing slash makes a directory of the oldest type only', () => {
    expect(only(header({ name: 'old/', typeflag: '\0', magic: '' })).type).toBe('dir')
    expect(only(header({ name: 'new/' })).type).toBe('file')
  })

  test('ustar prefixes, GNU long names and pax paths, the last two winning', () => {
    expect(only(header({ name: 'c', prefix: 'a/b' })).path).toBe('a/b/c')
    const pax = meta('x', paxRecords({ path: 'from/pax' }))
    expect(only(pax, header({ name: 'short' })).path).toBe('from/pax')
    expect(only(pax, meta('L', `${'n'.repeat(200)}\0`, GNU), header({ name: 'short' })).path).toBe('n'.repeat(200))
    expect(only(meta('K', 'to/far\0', GNU), header({ name: 'l', typeflag: '2', linkname: 'near' })).link).toBe('to/far')
  })

  test('names as long as Linux takes are read, longer ones are unsupported', () => {
    const path = `${'d'.repeat(255)}/`.repeat(15) + 'e'.repeat(255)
    expect(path).toHaveLength(4095)
    expect(only(meta('x', paxRecords({ path })), header({ name: 'x' })).path).toBe(path)
    expect(failure(tarOf(meta('x', paxRecords({ path: `a/${path}` })), header({ name: 'x' }))).code).toBe('UNSUPPORTED')
    expect(failure(tarOf(meta('L', `${'f'.repeat(256)}\0`, GNU), header({ name: 'x' }))).code).toBe('UNSUPPORTED')
  })
})

describe('numbers and times', () => {
  test('base-256, also negative', () => {
    const entry = only(header({ name: 'a', uid: base256(3_000_000_000n, 8), gid: base256(70_000n, 8), mtime: base256(-5n, 12), magic: GNU }))
    expect([entry.uid, entry.gid, entry.mtimeSeconds]).toEqual([3_000_000_000, 70_000, -5])
  })
  test('files beyond 8 GiB, by base-256 and by pax', () => {
    const size = 2n ** 33n + 5n
    for (const parts of [[header({ name: 'a', size: base256(size, 12), magic: GNU })], [meta('x', paxRecords({ size: String(size) })), header({ name: 'a' })]]) {
      const reader = readTarStart(Buffer.concat(parts))
      expect(reader).toMatchObject([{ path: 'a', size: Number(size) }])
    }
  })
  test('pax times keep nanoseconds, before 1970 as well', () => {
    expect(timeOf('1577836800.123456789987')).toEqual([1_577_836_800, 123_456_789])
    expect(timeOf('-1.5')).toEqual([-2, 500_000_000])
    expect(timeOf('-0.25')).toEqual([-1, 750_000_000])
  })
  test('an owner of -1 is root, as chown leaves it', () => {
    expect(only(header({ name: 'a', uid: base256(-1n, 8), magic: GNU })).uid).toBe(0)
  })
  test('signed checksums of old are taken, wrong ones are not', () => {
    const name = Buffer.from('caf\xe9', 'latin1')
    expect(only(header({ name }, { checksum: 'signed' })).path).toBe('caf\xe9')
    const broken = header({ name: 'a' })
    broken[0] ^= 1
    expect(failure(tarOf(broken)).message).toMatch(/checksum .* byte 0/)
  })
})

describe('meta headers', () => {
  test('extended attributes may hold any byte, or nothing', () => {
    const { xattrs } = only(meta('x', paxRecords({ 'SCHILY.xattr.security.capability': '\x01\0\0\x02=\n\0', 'SCHILY.xattr.user.empty': '', 'LIBARCHIVE.xattr.user.copy': 'eA==' })), header({ name: 'a' }))
    expect(xattrs.map(([name, value]) => [name, Buffer.from(value).toString('latin1')])).toEqual([
      ['security.capability', '\x01\0\0\x02=\n\0'],
      ['user.empty', ''],
    ])
  })
  test('a global header is passed over, and what stood before it is forgotten', () => {
    const entry = only(meta('x', paxRecords({ path: 'lost' })), meta('g', paxRecords({ path: 'everywhere', comment: 'x' })), header({ name: 'a' }))
    expect(entry.path).toBe('a')
  })
  test('records that are no records are refused', () => {
    for (const data of ['5 a=b\n', 'x', '999 path=a\n', '8 =aaaa\n', paxRecords({ path: 'a\0b' }), paxRecords({ size: '-3' }), paxRecords({ uid: 'me' }), paxRecords({ mtime: '1.x' })]) {
      expect(failure(tarOf(meta('x', data), header({ name: 'a' }))).code).toBe('INVALID_DATA')
    }
  })
  test('a meta header of more than 1 MiB is not read', () => {
    expect(failure(header({ name: 'x', typeflag: 'x', size: octal(2 ** 20 + 1) })).code).toBe('UNSUPPORTED')
  })
})

describe('types', () => {
  test('links and devices have no data, whatever their size says', () => {
    const entries = readTar(tarOf(header({ name: 'h', typeflag: '1', linkname: './t/../u', size: octal(600) }), header({ name: 'c', typeflag: '3', major: octal(5, 8), minor: octal(1, 8), size: octal(7) }), header({ name: 'p', typeflag: '6' }), header({ name: 'last', size: octal(3) }), pad('abc')))
    expect(entries).toMatchObject([
      { type: 'hardlink', link: 'u', size: 0 },
      { type: 'char', major: 5, minor: 1 },
      { type: 'fifo' },
      { type: 'file', size: 3, offset: 2048 },
    ])
  })
  test('contiguous files are files; unknown types are unsupported', () => {
    expect(only(header({ name: 'a', typeflag: '7', size: octal(1) }), pad('x'))).toMatchObject({ type: 'file', size: 1 })
    expect(failure(tarOf(header({ name: 'a', typeflag: 'V' }))).code).toBe('UNSUPPORTED')
  })
})

describe('sparse files', () => {
  test('the old GNU map', () => {
    expect(only(old([[512, 512], [2048, 512]], { size: octal(1024) }), Buffer.alloc(1024, 1))).toMatchObject({
      type: 'file', size: 4096,
      extents: [{ fileOffset: 512, offset: 512, length: 512 }, { fileOffset: 2048, offset: 1024, length: 512 }],
    })
  })
  test('pax 0.0, 0.1 and 1.0 say the same', () => {
    const extents = [{ fileOffset: 0, length: 512 }, { fileOffset: 1024, length: 100 }]
    const data = Buffer.concat([Buffer.alloc(512, 1), pad(Buffer.alloc(100, 2))])
    const zero = ['GNU.sparse.size=1124', 'GNU.sparse.numblocks=2', 'GNU.sparse.offset=0', 'GNU.sparse.numbytes=512', 'GNU.sparse.offset=1024', 'GNU.sparse.numbytes=100']
    const records00 = zero.map((record) => paxRecords({ [record.split('=')[0]]: record.split('=')[1] })).join('')
    const records01 = paxRecords({ 'GNU.sparse.name': 's', 'GNU.sparse.size': '1124', 'GNU.sparse.numblocks': '2', 'GNU.sparse.map': '0,512,1024,100' })
    const records10 = paxRecords({ 'GNU.sparse.major': '1', 'GNU.sparse.minor': '0', 'GNU.sparse.name': 's', 'GNU.sparse.realsize': '1124' })
    const dense = header({ name: 's', size: octal(612) })
    for (const entry of [only(meta('x', records00), dense, data), only(meta('x', records01), dense, data), only(meta('x', records10), header({ name: 'x', size: octal(1124) }), pad('2\n0\n512\n1024\n100\n'), data)]) {
      expect(entry).toMatchObject({ path: 's', size: 1124, extents })
      expect(entry.extents?.map(({ offset }) => offset % 512)).toEqual([0, 0])
    }
  })
  test('maps that lie are refused, unaligned ones are unsupported', () => {
    const one = Buffer.alloc(512)
    for (const map of [[[512, 512], [0, 512]], [[0, 8192]], [[0, 1024]]] as [number, number][][]) expect(failure(tarOf(old(map, { size: octal(512) }), one)).code).toBe('INVALID_DATA')
    expect(failure(tarOf(old([[100, 512]], { size: octal(512) }), one)).code).toBe('UNSUPPORTED')
    expect(failure(tarOf(old([[0, 100]], { size: octal(100) }), one)).code).toBe('UNSUPPORTED')
  })
})

describe('the end', () => {
  const file = Buffer.concat([header({ name: 'a', size: octal(5) }), pad('hello')])
  test('may come without zero blocks and without the last padding, and what follows the zeros is not read', () => {
    expect(readTar(file)).toHaveLength(1)
    expect(readTar(file.subarray(0, 517))).toHaveLength(1)
    expect(readTar(tarOf(file, END, Buffer.from('garbage')))).toHaveLength(1)
    expect(readTar(Buffer.alloc(0))).toEqual([])
  })
  test('inside an entry is an error that says where', () => {
    expect(failure(file.subarray(0, 515)).message).toMatch(/cut off at byte 515/)
    expect(failure(file.subarray(0, 300)).code).toBe('INVALID_DATA')
    expect(failure(tarOf(file, Buffer.alloc(512), file)).message).toMatch(/zero block/)
  })
})

describe('whatever comes', () => {
  const zoo = buildTar([
    { name: 'dir', type: 'dir' },
    { name: `${'long/'.repeat(60)}name`, data: 'x'.repeat(1000), mtime: '1.5', xattrs: { 'user.a': '\0\n=' } },
    { name: 'link', type: 'symlink', link: 'y'.repeat(300) },
    { name: 'hard', type: 'hardlink', link: 'dir/../link' },
    { name: 'big', data: Buffer.alloc(70_000, 7) },
    { name: 'dev', type: 'char', major: 5, minor: 1 },
  ])
  test('pieces of any size give the same entries', () => {
    const whole = readTar(zoo)
    fc.assert(fc.property(fc.array(fc.integer({ min: 1, max: 3000 }), { minLength: 1, maxLength: 200 }), (pieces) => {
      expect(readTar(zoo, pieces)).toEqual(whole)
    }), { numRuns: 50 })
    expect(readTar(zoo, [1])).toEqual(whole)
  })
  test('damaged tars give entries or a clear error', () => {
    const changes = fc.array(fc.record({ at: fc.nat(zoo.length - 1), byte: fc.nat(255) }), { minLength: 1, maxLength: 6 })
    fc.assert(fc.property(changes, fc.boolean(), fc.nat(zoo.length), (edits, fixed, length) => {
      const tar = Buffer.from(zoo)
      for (const { at, byte } of edits) tar[at] = byte
      if (fixed) for (const { at } of edits) fixChecksum(tar, at - (at % 512))
      expectReadable(tar.subarray(0, length))
    }), { numRuns: 1000 })
  })
  test('random bytes too', () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 4096 }), (bytes) => expectReadable(bytes)), { numRuns: 200 })
  })
})

function readTarStart(tar: Buffer): FileEntry[] {
  try {
    return readTar(tar)
  } catch (error) {
    expect((error as SkimmerError).message).toMatch(/cut off/)
    return entriesBefore(tar)
  }
}

/** Entries of a tar whose last file's data is missing. */
function entriesBefore(tar: Buffer): FileEntry[] {
  const entries: FileEntry[] = []
  new TarReader((entry) => entries.push(entry)).push(tar)
  return entries
}

function expectReadable(bytes: Uint8Array): void {
  try {
    for (const entry of readTar(bytes)) {
      expect(entry.offset % 512).toBe(0)
      expect(entry.path.split('/')).not.toContain('..')
    }
  } catch (error) {
    expect(['INVALID_DATA', 'UNSUPPORTED']).toContain((error as SkimmerError).code)
  }
}

function fixChecksum(tar: Buffer, at: number): void {
  tar.fill(0x20, at + 148, at + 156)
  const sum = tar.subarray(at, at + 512).reduce((total, byte) => total + byte, 0)
  tar.write(`${sum.toString(8).padStart(6, '0')}\0 `, at + 148, 'latin1')
}
