// Random stacks of layers over few names, so that entries meet: replace, delete, link to and hide each other.
import * as fc from 'fast-check'
import type { TarEntry } from '../image/tar-builder.ts'

const NAMED_ACL = Buffer.from('0200000001000700ffffffff02000500e803000004000500ffffffff10000700ffffffff20000100ffffffff', 'hex')
const name = fc.constantFrom('a', 'b', 'c')
const path = fc.array(name, { minLength: 1, maxLength: 3 }).map((parts) => parts.join('/'))
const attributes = {
  mode: fc.constantFrom(0o755, 0o644, 0o2775, 0o700, 0o4711),
  uid: fc.constantFrom(0, 1, 70000),
  gid: fc.constantFrom(0, 2),
  mtime: fc.constantFrom(0, 1_600_000_000, '1234567890.5', '-3'),
}
const xattrs = fc.oneof(
  { weight: 6, arbitrary: fc.constant({}) },
  fc.constantFrom<Record<string, string | Uint8Array>>({ 'user.x': '1' }, { 'user.x': '2', 'trusted.y': '1' }, { 'system.posix_acl_access': NAMED_ACL }),
)
const directoryXattrs = fc.oneof({ weight: 8, arbitrary: xattrs }, fc.constant({ 'system.posix_acl_default': NAMED_ACL }))
const target = fc.oneof(
  path,
  path.map((to) => `/${to}`),
  path.map((to) => `../${to}`),
)
const wipe = (prefix: string) => (where: string) => where.replace(/([^/]*)$/, `${prefix}$1`)

const entry: fc.Arbitrary<TarEntry> = fc.oneof(
  { weight: 8, arbitrary: fc.record({ name: path, data: fc.constantFrom('', 'x', 'y'.repeat(600)), xattrs, ...attributes }) },
  { weight: 8, arbitrary: fc.record({ name: path, type: fc.constant('dir' as const), xattrs: directoryXattrs, ...attributes }) },
  { weight: 2, arbitrary: fc.record({ name: path, type: fc.constant('symlink' as const), link: target, ...attributes }) },
  { weight: 3, arbitrary: fc.record({ name: path, type: fc.constant('hardlink' as const), link: path, ...attributes }) },
  { weight: 1, arbitrary: fc.record({ name: path, type: fc.constant('char' as const), major: fc.constantFrom(0, 1), minor: fc.constantFrom(0, 3), ...attributes }) },
  { weight: 3, arbitrary: fc.record({ name: path.map(wipe('.wh.')) }) },
  { weight: 2, arbitrary: fc.record({ name: path.map((to) => `${to}/.wh..wh..opq`) }) },
)

/** One to four layers, lowest first. Small, because one refused entry decides about the whole image. */
export const randomLayers = (maxEntries: number): fc.Arbitrary<TarEntry[][]> => fc.array(fc.array(entry, { maxLength: maxEntries }), { minLength: 1, maxLength: 4 })
