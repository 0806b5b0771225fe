// List's filters: whatever a client writes is answered as containerd's own snapshotters answer it, or refused with the place of the mistake.
import { describe, expect, test } from '@jest/globals'
import * as fc from 'fast-check'
import { hasCode } from '../../oci/errors.ts'
import { unquoteGo } from '../../snapshotter/go-string.ts'
import { parseFilters } from '../../snapshotter/snapshot-filter.ts'
import { fieldOf } from '../../snapshotter/snapshots-rpc.ts'
import type { SnapshotRecord } from '../../snapshotter/snapshot-record.ts'

const record = (given: Partial<SnapshotRecord>): SnapshotRecord => ({ id: 1, name: 'default/1/a', parent: '', kind: 'active', labels: {}, createdMs: 0, updatedMs: 0, why: '', ...given })
const matches = (filters: string[], given: Partial<SnapshotRecord>): boolean => parseFilters(filters)(path => fieldOf(record(given), path))

describe('filters', () => {
  const REF = 'containerd.io/snapshot.ref'
  const layer = { name: 'sha256:cc', parent: 'sha256:bb', kind: 'committed' as const, labels: { [REF]: 'sha256:cc', plain: 'x', empty: '' } }

  test.each<[string[], boolean]>([
    [[], true],
    [[''], true],
    [['name==sha256:cc'], true],
    [['name==sha256:c'], false],
    [['kind==committed'], true],
    [['kind!=committed'], false],
    [[`labels."${REF}"==sha256:cc,parent=="sha256:bb"`], true],
    [[`labels."${REF}"==sha256:cc,parent==""`], false],
    [[`labels."${REF}"==sha256:cc, parent == "sha256:bb"`], true],
    [[`labels."${REF}"`], true],
    [['labels.containerd.io'], false],
    [['labels.plain==x'], true],
    [['labels.missing'], false],
    [['labels.missing!=x'], true],
    [['labels.missing==""'], false],
    [['name~=^sha256:'], true],
    [['name~=/^SHA256:c+$/'], false],
    [['name~=/(?i)^SHA256:c+$/'], true],
    [['name~="^sha256:\\\\w+$"'], true],
    [['name~=|a,b|'], false],
    [['name==nothing', 'kind==committed'], true],
    [['name==nothing', 'kind==view'], false],
    [['unknown'], false],
    [['unknown!=x'], true],
  ])('%j: %p', (filters, expected) => {
    expect(matches(filters, layer)).toBe(expected)
  })

  test('a root snapshot has an empty parent, and filters can ask for it', () => {
    expect(matches(['parent==""'], { parent: '' })).toBe(true)
    expect(matches(['parent==""'], { parent: 'p' })).toBe(false)
  })

  test.each(['name=x', '==x', 'name==', 'name==x,', ',name', 'name=="x', 'name~=(', 'name~=/x', 'name==x kind==y', '1name', 'name=="\\q"', 'labels.', 'name ~ x'])('%s is refused, saying where', filter => {
    let thrown: unknown
    try {
      parseFilters([filter])
    } catch (error) {
      thrown = error
    }
    expect(hasCode(thrown, 'INVALID_ARGUMENT')).toBe(true)
  })

  test('a pattern that would backtrack for ever is stopped', () => {
    expect(() => matches(['name~=/^(a+)+$/'], { name: `${'a'.repeat(40)}!` })).toThrow(/too long/)
  })

  test('quoted labels and values of any text find exactly their snapshot', () => {
    fc.assert(fc.property(fc.string({ unit: 'binary', minLength: 1 }), fc.string({ unit: 'binary' }), fc.string({ unit: 'binary' }), (label, value, other) => {
      const filter = `labels.${goQuote(label)}==${goQuote(value)}`
      const wanted = Object.fromEntries([[label, value]])
      expect(matches([filter], { labels: wanted })).toBe(true)
      expect(matches([filter], { labels: Object.fromEntries([[label, other]]) })).toBe(other === value)
      expect(matches([filter], { labels: {} })).toBe(false)
    }))
  })

  test('any text is either a filter or refused as one', () => {
    const piece = fc.oneof(fc.constantFrom('name', 'labels', '.', '==', '!=', '~=', ',', '"', '/', '|', '\\', ' ', '(', '*'), fc.string({ unit: 'binary', maxLength: 5 }))
    fc.assert(fc.property(fc.array(piece, { maxLength: 12 }), pieces => {
      try {
        matches([pieces.join('')], { labels: { a: 'b' } })
      } catch (error) {
        if (!hasCode(error, 'INVALID_ARGUMENT')) throw error
      }
    }))
  })

  test('Go\'s quoting comes back as it was', () => {
    fc.assert(fc.property(fc.string({ unit: 'binary' }), text => {
      expect(unquoteGo(goQuote(text))).toBe(text)
    }))
    expect(unquoteGo('"\\xe2\\x82\\xac\\u20ac\\U0001F600\\101"')).toBe('€€😀A')
    for (const broken of ['"', 'a', '"\\', '"\\x4"', '"\\ud800"', '"\\400"', '"a"b"']) expect(unquoteGo(broken)).toBeUndefined()
  })
})

/** As Go's `%q` writes it: printable ASCII as it is, control characters and the rest escaped. */
const goQuote = (text: string): string => `"${[...text].map(escapeChar).join('')}"`

function escapeChar(char: string): string {
  if (char === '"' || char === '\\') return `\\${char}`
  const point = char.codePointAt(0)!
  if (point < 0x20 || point === 0x7f) return `\\x${point.toString(16).padStart(2, '0')}`
  return point < 0x7f ? char : `\\U${point.toString(16).padStart(8, '0')}`
}
