// Image references as people write them.
import { describe, expect, test } from '@jest/globals'
import * as fc from 'fast-check'
import { SkimmerError } from '../../oci/errors.ts'
import { familiarReference, formatReference, parseReference } from '../../oci/reference.ts'

const sha = `sha256:${'ab'.repeat(32)}`

describe('a reference', () => {
  test.each([
    ['debian', 'docker.io/library/debian:latest', 'debian:latest'],
    ['debian:12', 'docker.io/library/debian:12', 'debian:12'],
    ['docker.io/debian', 'docker.io/library/debian:latest', 'debian:latest'],
    ['index.docker.io/library/debian:12', 'docker.io/library/debian:12', 'debian:12'],
    ['grafana/grafana:11', 'docker.io/grafana/grafana:11', 'grafana/grafana:11'],
    ['docker.io/library/a/b:1', 'docker.io/library/a/b:1', 'library/a/b:1'],
    ['ghcr.io/org/app', 'ghcr.io/org/app:latest', 'ghcr.io/org/app:latest'],
    ['localhost/app:1', 'localhost/app:1', 'localhost/app:1'],
    ['localhost:5000/a/b/c:1', 'localhost:5000/a/b/c:1', 'localhost:5000/a/b/c:1'],
    ['127.0.0.1:5000/app', '127.0.0.1:5000/app:latest', '127.0.0.1:5000/app:latest'],
    ['[2001:db8::1]:5000/app:v1', '[2001:db8::1]:5000/app:v1', '[2001:db8::1]:5000/app:v1'],
    ['Registry/app', 'Registry/app:latest', 'Registry/app:latest'],
    [`debian@${sha}`, `docker.io/library/debian@${sha}`, `debian@${sha}`],
    [`quay.io/a/b:1.2_3-x@${sha}`, `quay.io/a/b:1.2_3-x@${sha}`, `quay.io/a/b:1.2_3-x@${sha}`],
    ['a__b/c--d.e_f', 'docker.io/a__b/c--d.e_f:latest', 'a__b/c--d.e_f:latest'],
  ])('%s is %s', (text, canonical, familiar) => {
    const reference = parseReference(text)
    expect(formatReference(reference)).toBe(canonical)
    expect(familiarReference(reference)).toBe(familiar)
    expect(parseReference(canonical)).toEqual(reference)
    expect(parseReference(familiar)).toEqual(reference)
  })

  test.each([
    '', ' ', ':', '@', 'a:', 'a@', 'A', 'a/B', 'a//b', '/a', 'a/', 'a..b', 'a___b', '-a', 'a-', 'a:b:c', 'a b', 'a\n', 'debian:-x', `debian:${'t'.repeat(129)}`,
    'debian@sha256:12', `debian@md5:${'a'.repeat(32)}`, `debian@${sha.toUpperCase()}`, `debian@${sha}x`, 'ab'.repeat(32), 'host:0/a', 'host:99999/a', 'host:/a', 'ho_st.x/a', '-host.x/a',
    'https://ghcr.io/a', 'user@ghcr.io/a', '[::1/a', `${'a'.repeat(256)}`, 'ghcr.io/', 'ghcr.io/../x', 'a/%2e%2e/b', 'a?b', 'a#b', 'x'.repeat(100_000),
  ])('%j is refused with a hint', (text) => {
    const failure = (() => {
      try {
        return parseReference(text)
      } catch (error) {
        return error
      }
    })()
    expect(failure).toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('debian:12') })
    expect((failure as Error).message.length).toBeLessThan(800)
  })

  const component = fc.stringMatching(/^[a-z0-9]{1,8}(?:(?:[._]|__|-{1,3})[a-z0-9]{1,5}){0,2}$/)
  const registry = fc.oneof(fc.constant('docker.io'), fc.constant('localhost'), fc.stringMatching(/^[a-z][a-z0-9]{0,8}\.[a-z]{2,5}(?::[1-9][0-9]{0,3})?$/).filter((name) => name !== 'index.docker.io'))
  const hex = fc.array(fc.constantFrom(...'0123456789abcdef'), { minLength: 64, maxLength: 64 }).map((digits) => `sha256:${digits.join('')}`)

  test('of any legal parts reads back as the same, in both spellings', () => {
    fc.assert(
      fc.property(registry, fc.array(component, { minLength: 1, maxLength: 4 }), fc.option(fc.stringMatching(/^[\w][\w.-]{0,20}$/)), fc.option(hex), (host, parts, tag, digest) => {
        const text = `${host}/${parts.join('/')}${tag === null ? '' : `:${tag}`}${digest === null ? '' : `@${digest}`}`
        const reference = parseReference(text)
        expect(parseReference(formatReference(reference))).toEqual(reference)
        expect(parseReference(familiarReference(reference))).toEqual(reference)
        expect(reference.digest).toBe(digest ?? undefined)
      }),
    )
  })

  test('of any text is parsed to something that reads back the same, or refused', () => {
    fc.assert(
      fc.property(fc.oneof(fc.string({ unit: 'binary', maxLength: 600 }), fc.stringMatching(/^[a-zA-Z0-9./:@_[\]-]{0,80}$/)), (text) => {
        try {
          const reference = parseReference(text)
          expect(parseReference(formatReference(reference))).toEqual(reference)
        } catch (error) {
          expect(error).toBeInstanceOf(SkimmerError)
        }
      }),
    )
  })
})
