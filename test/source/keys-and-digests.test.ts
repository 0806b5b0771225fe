// When two requests mean the same file, how versions are written and compared, and the digests users give.
import { describe, expect, test } from '@jest/globals'
import * as fc from 'fast-check'
import { createHash } from 'node:crypto'
import { crc32 } from 'node:zlib'
import { parseContentRange } from '../../oci/content-range.ts'
import { plainAddress } from '../../oci/address-guard.ts'
import { parseContentDigest, streamedDigest } from '../../source/content-digest.ts'
import { credentialHeaders } from '../../source/request-headers.ts'
import { fileResourceId, filterQuery, splitFilter, taskHash, taskKey } from '../../source/task-key.ts'
import { formatVersion, parseVersion, sameVersion, unlessSame, validatorsOf } from '../../source/version.ts'

describe('one task key', () => {
  const same: [string, Parameters<typeof taskKey>[0], Parameters<typeof taskKey>[0]][] = [
    ['whoever asks', { url: 'https://a.example/f', headers: { Authorization: 'Bearer x', Cookie: 'a=b', 'X-Auth-Token': 't', 'PRIVATE-TOKEN': 'p' } }, { url: 'https://u:p@a.example/f' }],
    ['host, port, fragment and dots in their spellings', { url: 'https://A.example:443/x/../f#top' }, { url: 'https://a.example/f' }],
    ['filtered query parameters', { url: 'https://a.example/f?b=2&sig=123&a=1', filteredQueryParams: ['sig'] }, { url: 'https://a.example/f?b=2&a=1&si%67=9', filteredQueryParams: ['sig', 'none'] }],
    ['the order and case of headers', { url: 'https://a.example/f', headers: { 'X-B': '1', Accept: 'x' } }, { url: 'https://a.example/f', headers: { accept: 'x', 'x-b': '1' } }],
    ['the spelling of a digest', { url: 'https://a.example/f', digest: `sha256:${'AB'.repeat(32)}` }, { url: 'https://a.example/f', digest: 'ab'.repeat(32) }],
    ['absent and empty words', { url: 'https://a.example/f', tag: '', insecure: false }, { url: 'https://a.example/f' }],
  ]
  test.each(same)('for %s', (_name, one, other) => expect(taskKey(one)).toBe(taskKey(other)))

  const base = { url: 'https://a.example/f?x=1' }
  test.each(Object.entries({
    path: { url: 'https://a.example/g?x=1' }, scheme: { url: 'http://a.example/f?x=1' }, query: { url: 'https://a.example/f?x=2' }, 'query order': { url: 'https://a.example/f?y&x=1' },
    header: { ...base, headers: { Accept: 'x' } }, tag: { ...base, tag: 't' }, application: { ...base, application: 't' }, identifier: { ...base, identifier: 't' },
    'piece length': { ...base, pieceLength: 4194304 }, range: { ...base, range: { start: 0, end: 9 } }, digest: { ...base, digest: 'a'.repeat(64) },
    authority: { ...base, ca: 'x' }, insecure: { ...base, insecure: true },
  }))('differs by %s', (_name, other) => expect(taskKey(other)).not.toBe(taskKey(base)))

  test('filters drop what they name, keep everything else as it was, and never add', () => {
    const name = fc.stringMatching(/^[a-z]{1,3}$/)
    fc.assert(fc.property(fc.array(fc.tuple(name, fc.option(fc.webQueryParameters())), { maxLength: 8 }), fc.array(name, { maxLength: 3 }), (pairs, dropped) => {
      const parts = pairs.map(([key, value]) => (value === null ? key : `${key}=${encodeURIComponent(value)}`))
      const kept = pairs.flatMap(([key], index) => (dropped.includes(key) ? [] : [parts[index]]))
      expect(filterQuery(parts.length === 0 ? '' : `?${parts.join('&')}`, dropped)).toBe(kept.length === 0 ? '' : `?${kept.join('&')}`)
    }))
    expect(splitFilter('Expires&Signature& OSSAccessKeyId')).toEqual(['Expires', 'Signature', 'OSSAccessKeyId'])
  })

  test('is a fixed point: the key of a canonical URL is its own', () => {
    fc.assert(fc.property(fc.webUrl({ withFragments: true, withQueryParameters: true }), (url) => {
      const key = taskKey({ url })
      expect(taskKey({ url: (JSON.parse(key) as { url: string }).url })).toBe(key)
    }))
  })

  test('resource ids name the version and the part', () => {
    const [key, version] = ['k', 'v']
    expect(fileResourceId(key, version)).toMatch(/^file:[0-9a-f]{64}$/)
    expect(fileResourceId(key, version, 3)).toBe(`${fileResourceId(key, version)}.3`)
    expect(new Set([fileResourceId(key, version), fileResourceId('kv', ''), fileResourceId('', 'kv'), fileResourceId(key, 'w')]).size).toBe(4)
    expect(taskHash(key)).toMatch(/^[0-9a-f]{64}$/)
  })

  test('secrets are the headers that prove who asks', () => {
    expect(Object.keys(credentialHeaders({ authorization: 'a', cookie: 'b', 'x-api-key': 'c', 'job-token': 'd', accept: 'e', 'x-tokens-wanted': 'f' }))).toEqual(['authorization', 'cookie', 'x-api-key', 'job-token'])
  })
})

describe('versions', () => {
  const answer = fc.record({
    etag: fc.option(fc.stringMatching(/^(W\/)?"[!#-~]{0,20}"$/), { nil: undefined }),
    'last-modified': fc.option(fc.integer({ min: 0, max: 1.7e9 }).map((seconds) => new Date(seconds * 1000).toUTCString()), { nil: undefined }),
    'content-encoding': fc.option(fc.constantFrom('gzip', 'identity', 'zstd'), { nil: undefined }),
  })
  test('survive being written down', () => {
    fc.assert(fc.property(answer, fc.option(fc.nat(), { nil: undefined }), (headers, length) => {
      const validators = validatorsOf(headers, length)
      expect(parseVersion(formatVersion(validators))).toEqual(validators)
      expect(sameVersion(validators, parseVersion(formatVersion(validators))!)).toBe(true)
      expect(Object.keys(unlessSame(validators)).length).toBe(validators.kind === 'read' ? 0 : 1)
    }))
  })
  test('of two answers are the same only if all they tell is', () => {
    fc.assert(fc.property(answer, answer, fc.nat({ max: 3 }), fc.nat({ max: 3 }), (one, other, a, b) => {
      const [left, right] = [validatorsOf(one, a), validatorsOf(other, b)]
      const encoding = (headers: typeof one): string => (headers['content-encoding'] ?? 'identity')
      if (sameVersion(left, right)) {
        expect([encoding(one), one.etag, left.kind]).toEqual([encoding(other), other.etag, right.kind])
        if (left.kind !== 'strong') expect([one['last-modified'], a]).toEqual([other['last-modified'], b])
      }
    }))
  })
  test('what nobody here wrote is none', () => {
    fc.assert(fc.property(fc.oneof(fc.string(), fc.json()), (text) => expect(parseVersion(text) === undefined || text.startsWith('["')).toBe(true)))
    expect(parseVersion('["strong","\\"a\\"\\r\\nx: y",null,null,null,null]')).toBeUndefined()
    expect(parseVersion('["modified",null,"a\\r\\nb",null,null,null]')).toBeUndefined()
  })
})

describe('Content-Range', () => {
  test('is read back, whatever its numbers', () => {
    fc.assert(fc.property(fc.nat(), fc.nat(), fc.option(fc.nat()), (start, more, beyond) => {
      const end = start + more
      const total = beyond === null ? undefined : end + 1 + beyond
      expect(parseContentRange(`bytes ${start}-${end}/${total ?? '*'}`)).toEqual({ start, end, total })
      expect(parseContentRange(`bytes ${end + 1}-${start}/*`)).toBeUndefined()
      expect(parseContentRange(`bytes ${start}-${end}/${end}`)).toBeUndefined()
    }))
    expect(parseContentRange('bytes */10')).toEqual({ start: undefined, end: undefined, total: 10 })
  })
  test('or refused', () => {
    for (const text of ['', 'bytes', 'bytes 0-1', 'bytes */*', 'items 0-1/2', 'bytes 0-1/2, 3-4/5', 'bytes -1/2', 'bytes 0-9007199254740993/*', undefined, ['bytes 0-1/2']]) {
      expect([text, parseContentRange(text)]).toEqual([text, undefined])
    }
    fc.assert(fc.property(fc.string(), (text) => expect(parseContentRange(text)).toBeUndefined()))
  })
})

describe('a digest of the whole file', () => {
  const bytes = Buffer.from('123456789')
  const hex = (name: string): string => createHash(name).update(bytes).digest('hex')
  test.each([
    `sha256:${hex('sha256')}`, `SHA-256:${hex('sha256').toUpperCase()}`, `sha256=${hex('sha256')}`, hex('sha256'), `sha512:${hex('sha512')}`, hex('sha512'), `md5:${hex('md5')}`, hex('md5'),
    'crc32:cbf43926', 'crc32:0xCBF43926', 'crc32:3421780262', 'cbf43926',
  ])('%s', (spec) => {
    const right = streamedDigest(spec)
    right.update(bytes.subarray(0, 4))
    right.update(bytes.subarray(4))
    expect(right.verify()).toBe(parseContentDigest(spec).text)
    const wrong = streamedDigest(spec)
    wrong.update(bytes.subarray(1))
    expect(() => wrong.verify('the file')).toThrow(expect.objectContaining({ code: 'DIGEST_MISMATCH', message: expect.stringContaining('the file') }))
  })
  test('a crc32 of eight decimal digits is right in either reading', () => {
    fc.assert(fc.property(fc.uint8Array(), (data) => {
      const value = crc32(data)
      for (const text of [String(value), value.toString(16).padStart(8, '0')]) {
        const digest = streamedDigest(`crc32:${text}`)
        digest.update(data)
        expect(digest.verify()).toBe(`crc32:${value.toString(16).padStart(8, '0')}`)
      }
    }))
  })
  test.each(['', 'sha256:', 'sha256:abc', 'sha1:0123456789012345678901234567890123456789', 'md5:xyz', 'crc32:4294967296', `sha256:${'a'.repeat(63)}g`, 'a'.repeat(300), '1234567890'])('%s is none', (spec) => {
    expect(() => parseContentDigest(spec)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
  })
})

test('an IPv4 address in an IPv6 dress is shown as what it is', () => {
  fc.assert(fc.property(fc.ipV4(), (address) => {
    const [a, b, c, d] = address.split('.').map(Number)
    const group = (high: number, low: number): string => ((high << 8) | low).toString(16)
    expect(plainAddress(address)).toBe(address)
    expect(plainAddress(`::ffff:${address}`)).toBe(address)
    expect(plainAddress(`0:0:0:0:0:ffff:${group(a, b)}:${group(c, d)}`)).toBe(address)
    expect(plainAddress(`64:ff9b::${address}`)).toBe(address)
    expect(plainAddress(`2002:${group(a, b)}:${group(c, d)}::1`)).toBe(address)
  }))
  for (const address of ['::1', '::', 'fe80::1%eth0', '2001:db8::1', 'not an address']) expect(plainAddress(address)).toBe(address)
})
