// The zoo: awkward images of several layers, each with what is awkward about it.
import type { TarEntry } from '../image/tar-builder.ts'

export interface ZooImage {
  /** What the image has, in words. */
  what: string
  /** Lowest first. */
  layers: TarEntry[][]
}

/** An ACL attribute: version 2, then tag, permissions and id of each entry. */
function acl(...entries: [tag: number, perm: number, id?: number][]): Buffer {
  const value = Buffer.alloc(4 + entries.length * 8)
  value.writeUInt32LE(2, 0)
  entries.forEach(([tag, perm, id], index) => {
    value.writeUInt16LE(tag, 4 + index * 8)
    value.writeUInt16LE(perm, 6 + index * 8)
    value.writeUInt32LE(id ?? 0xffffffff, 8 + index * 8)
  })
  return value
}
const NAMED_ACL = acl([1, 7], [2, 5, 1000], [4, 5], [8, 7, 50], [0x10, 7], [0x20, 1])
const BASE_ACL = acl([1, 7], [4, 5], [0x20, 4])
const CAPABILITIES = Buffer.from('0100000200040000000000000000000000000000', 'hex')

const dir = (name: string, more: Partial<TarEntry> = {}): TarEntry => ({ name, type: 'dir', ...more })
const file = (name: string, data = `data of ${name}`, more: Partial<TarEntry> = {}): TarEntry => ({ name, data, ...more })
const symlink = (name: string, link: string, more: Partial<TarEntry> = {}): TarEntry => ({ name, type: 'symlink', link, mode: 0o777, ...more })
const hardlink = (name: string, link: string, more: Partial<TarEntry> = {}): TarEntry => ({ name, type: 'hardlink', link, ...more })
const whiteout = (name: string): TarEntry => file(name.replace(/([^/]*)$/, '.wh.$1'), '')
const opaque = (directory: string): TarEntry => file(`${directory === '' ? '' : `${directory}/`}.wh..wh..opq`, '')

const BASE = [dir('a'), file('a/1'), file('a/2'), dir('a/b'), file('a/b/3'), file('top'), symlink('s', 'a'), dir('z', { mode: 0o700, uid: 7, gid: 8, mtime: 1_000_000_000 }), file('z/1')]

export const ZOO: ZooImage[] = [
  { what: 'one plain layer', layers: [BASE] },
  { what: 'an empty layer on a plain one', layers: [BASE, []] },
  { what: 'no entry at all', layers: [[]] },
  { what: 'whiteouts of a file, a directory and a symlink', layers: [BASE, [whiteout('a/1'), whiteout('z'), whiteout('s')]] },
  { what: 'a whiteout of what is not there', layers: [BASE, [whiteout('nothing'), whiteout('a/nothing')]] },
  { what: 'whiteouts in missing parents', layers: [BASE, [whiteout('new/deep/x'), whiteout('a/new/x')]] },
  { what: 'a whiteout below a file', layers: [BASE, [whiteout('top/x')]] },
  { what: 'whiteouts in the lowest layer', layers: [[...BASE, whiteout('a/1'), whiteout('z/1'), whiteout('missing/x')]] },
  { what: 'a whiteout before what it names, in the lowest layer', layers: [[dir('a'), whiteout('a/1'), file('a/1'), whiteout('d'), dir('d')]] },
  { what: 'a whiteout before what it names, above', layers: [BASE, [whiteout('a'), dir('a'), file('a/new'), whiteout('top'), file('top', 'new')]] },
  { what: 'a whiteout after what it names, above', layers: [BASE, [file('a/1', 'new'), whiteout('a/1')]] },
  { what: 'a whiteout and then a file below it', layers: [BASE, [whiteout('a'), file('a/new')]] },
  { what: 'the lowest layer deletes a directory it describes', layers: [[...BASE, whiteout('z')]] },
  { what: 'impossible whiteouts', layers: [BASE, [file('a/.wh.', '')]] },
  { what: 'a whiteout of dot', layers: [BASE, [file('a/.wh..', '')]] },
  { what: 'a whiteout of dot dot', layers: [BASE, [file('a/.wh...', '')]] },
  { what: 'an opaque directory with entry', layers: [BASE, [dir('a', { mode: 0o711 }), opaque('a'), file('a/new')]] },
  { what: 'an opaque mark before and after its directory', layers: [BASE, [opaque('a'), dir('a', { mode: 0o711 }), file('z/x'), opaque('z')]] },
  { what: 'an opaque mark without a directory', layers: [BASE, [opaque('a'), opaque('z'), opaque('none/at/all')]] },
  { what: 'an opaque directory that the next layer opens again', layers: [BASE, [dir('a'), opaque('a'), file('a/x')], [dir('a'), dir('a/b'), file('a/b/y')]] },
  { what: 'an opaque directory whose subdirectory is described again', layers: [BASE, [opaque('a'), dir('a/b'), file('a/b/y')]] },
  { what: 'an opaque root', layers: [BASE, [opaque(''), file('only')]] },
  { what: 'an opaque root in the middle', layers: [BASE, [opaque(''), file('only')], [file('third')]] },
  { what: 'opaque marks in the lowest layer', layers: [[...BASE, file('imp/licit/x'), opaque('imp'), opaque('a')]] },
  { what: 'an opaque root in the lowest layer', layers: [[file('imp/licit/x'), dir('d'), file('d/x'), file('d/e/x'), opaque('')]] },
  { what: 'an opaque mark of a directory that replaces a file', layers: [BASE, [dir('top'), opaque('top'), file('top/x')]] },
  { what: 'AUFS metadata', layers: [BASE, [file('.wh..wh.aufs', ''), dir('.wh..wh.plnk'), dir('.wh..wh.orph')]] },
  { what: 'AUFS metadata in the lowest layer', layers: [[file('.wh..wh.aufs', ''), dir('.wh..wh.plnk'), file('x')]] },
  { what: 'AUFS hardlinks', layers: [BASE, [dir('.wh..wh.plnk'), file('.wh..wh.plnk/1.2', 'x'), hardlink('linked', '.wh..wh.plnk/1.2')]] },
  { what: 'missing parents', layers: [[file('x/y/z/file', 'x', { uid: 5, gid: 6, mode: 0o600 })], [file('x/y/other'), dir('x/y/z/w', { mode: 0o700 })]] },
  { what: 'missing parents that lower layers have with other owners', layers: [[dir('p', { mode: 0o1777, uid: 3, gid: 4, mtime: 900_000_000, xattrs: { 'user.p': 'v' } }), dir('p/q', { mode: 0o2750, uid: 1, gid: 2 }), file('p/q/1')], [file('p/q/2')], [file('p/q/r/3')]] },
  { what: 'missing parents below a setgid directory', layers: [[dir('g', { mode: 0o2775, gid: 77 }), file('g/new/x'), dir('g/d', { gid: 5 }), file('g/d/x')]] },
  { what: 'types replaced by upper layers', layers: [BASE, [file('a', 'now a file'), dir('top'), file('top/in'), dir('s'), file('s/in'), symlink('z', 'top')], [dir('a'), file('a/back')]] },
  { what: 'a file twice over a directory', layers: [BASE, [file('a', 'x')], [file('a/b/c')]] },
  { what: 'a parent that a layer in between replaced', layers: [BASE, [file('a', 'x')], [file('a/c')]] },
  { what: 'a parent that a layer in between deleted', layers: [BASE, [whiteout('a')], [file('a/c')]] },
  { what: 'a deep parent below one that a layer in between deleted', layers: [BASE, [whiteout('a')], [file('a/b/c')]] },
  { what: 'a file through a symlink of the same layer', layers: [[dir('real', { mode: 0o711 }), symlink('abs', '/real'), symlink('rel', 'real'), file('abs/1'), file('rel/2'), dir('rel/sub'), file('abs/sub/3')]] },
  { what: 'a file through a symlink of a lower layer', layers: [[dir('usr'), dir('usr/lib', { mode: 0o700, uid: 9 }), file('usr/lib/1'), symlink('lib', 'usr/lib'), symlink('alib', '/usr/lib')], [file('lib/2'), file('alib/3')]] },
  { what: 'a file through a symlink of a lower layer, and the directory behind it', layers: [[dir('usr'), dir('usr/lib'), symlink('lib', 'usr/lib')], [dir('usr'), dir('usr/lib'), file('usr/lib/x'), file('lib/2')]] },
  { what: 'files through links that dangle or climb out', layers: [[symlink('dangling', 'not/there'), file('dangling/x'), symlink('up', '../../../etc'), file('up/y'), symlink('abs', '/tmp/../out'), file('abs/z')]] },
  { what: 'a chain of symlinks', layers: [[dir('d'), dir('d/e'), symlink('l1', 'l2'), symlink('l2', 'd'), symlink('d/up', '../d/e'), file('l1/x'), file('l1/up/y')]] },
  { what: 'a loop of symlinks', layers: [[symlink('x', 'y'), symlink('y', 'x'), file('x/z')]] },
  { what: 'a symlink to a file as a parent', layers: [[file('f'), symlink('l', 'f'), file('l/x')]] },
  { what: 'paths that climb out', layers: [[file('../../up'), file('a/../../b'), file('/absolute'), file('./dot'), symlink('out', '../../../../etc/passwd'), symlink('abs', '/etc/passwd')]] },
  { what: 'hardlinks', layers: [[file('one', 'x', { mode: 0o600, uid: 1 }), hardlink('two', 'one', { mode: 0o644, uid: 2, mtime: 5 }), dir('d'), hardlink('d/three', '/one')]] },
  { what: 'hardlinks of which upper layers delete some', layers: [[file('one'), hardlink('two', 'one'), hardlink('three', 'one')], [whiteout('two'), file('three', 'other')]] },
  { what: 'hardlinks of which the same layer replaces some', layers: [[file('one', 'x'), hardlink('two', 'one'), hardlink('three', 'two'), file('one', 'y')]] },
  { what: 'a hardlink to a file of a lower layer', layers: [BASE, [hardlink('link', 'a/1')]] },
  { what: 'a hardlink to a symlink', layers: [[symlink('s', 'target'), hardlink('h', 's', { mode: 0o600, mtime: 77, uid: 3 })]] },
  { what: 'a hardlink through a symlink', layers: [[dir('d'), file('d/f'), symlink('l', 'd'), hardlink('h', 'l/f')]] },
  { what: 'a hardlink to what comes later', layers: [[hardlink('h', 'later'), file('later')]] },
  { what: 'a hardlink to itself', layers: [[file('x'), hardlink('x', 'x')]] },
  { what: 'a hardlink to a directory', layers: [[dir('d'), hardlink('h', 'd')]] },
  { what: 'a hardlink over a directory', layers: [[file('f'), dir('d'), hardlink('d', 'f')]] },
  { what: 'a hardlink to a device and a fifo', layers: [[{ name: 'c', type: 'char', major: 1, minor: 3 }, hardlink('c2', 'c'), { name: 'p', type: 'fifo' }, hardlink('p2', 'p')]] },
  { what: 'capabilities, and a hardlink that drops them', layers: [[file('cap', 'x', { xattrs: { 'security.capability': CAPABILITIES } }), file('both', 'y', { xattrs: { 'security.capability': CAPABILITIES, 'user.x': '1' } }), hardlink('h', 'both'), file('kept', 'z'), hardlink('kept2', 'kept', { xattrs: { 'security.capability': CAPABILITIES } })]] },
  { what: 'capabilities no kernel takes', layers: [[file('cap', 'x', { xattrs: { 'security.capability': 'nonsense' } })]] },
  { what: 'an entry twice in one layer', layers: [[file('f', 'first', { xattrs: { 'user.a': '1' } }), file('f', 'second', { mode: 0o600 }), dir('d', { mode: 0o700, xattrs: { 'user.a': '1', 'user.b': '1' } }), file('d/x'), dir('d', { mode: 0o711, mtime: 9, xattrs: { 'user.b': '2' } }), file('g'), dir('g'), file('g/x'), dir('h'), file('h/x')]] },
  { what: 'a directory replaced by a file in one layer', layers: [[dir('h', { mtime: 99 }), file('h/x'), file('h', 'a file', { mtime: 1 })]] },
  { what: 'a directory replaced by a link in one layer', layers: [[dir('t'), dir('h', { mtime: 99 }), symlink('h', 't')]] },
  { what: 'a directory replaced by a dangling link in one layer', layers: [[dir('h', { mtime: 99 }), symlink('h', 'nowhere')]] },
  { what: 'directories described again by upper layers', layers: [BASE, [dir('a', { mode: 0o700, uid: 50, mtime: 1_500_000_000 }), dir('z')], [dir('a', { mode: 0o750, mtime: '1500000001.123456789' })]] },
  { what: 'devices, fifos and big numbers', layers: [[{ name: 'null', type: 'char', major: 1, minor: 3, mode: 0o666 }, { name: 'disk', type: 'block', major: 259, minor: 1048575, mode: 0o660, gid: 6 }, { name: 'big', type: 'char', major: 4095, minor: 256 }, { name: 'p', type: 'fifo', mode: 0o640 }]] },
  { what: 'character devices 0:0 in one layer', layers: [[...BASE, { name: 'a/zero', type: 'char' }]] },
  { what: 'character devices 0:0 in all of two layers', layers: [[...BASE, { name: 'a/zero', type: 'char' }, { name: 'low', type: 'char' }], [{ name: 'a/1', type: 'char' }, { name: 'z', type: 'char' }, { name: 'w/zero', type: 'char' }]] },
  { what: 'block devices 0:0', layers: [BASE, [{ name: 'top', type: 'block' }]] },
  { what: 'a hardlink to a whiteout', layers: [BASE, [whiteout('a'), hardlink('top', 'a')]] },
  { what: 'trusted attributes', layers: [BASE, [dir('a', { xattrs: { 'trusted.overlay.opaque': 'y', 'trusted.x': '1' } }), file('a/new', 'x', { xattrs: { 'trusted.overlay.whiteout': 'y', 'trusted.overlay.redirect': '/z' } })]] },
  { what: 'user.overlay attributes', layers: [BASE, [dir('a', { xattrs: { 'user.overlay.opaque': 'y' } }), file('a/new', '', { xattrs: { 'user.overlay.whiteout': 'y' } })]] },
  { what: 'empty and binary attributes', layers: [[file('f', 'x', { xattrs: { 'user.empty': '', 'user.bin': Buffer.from([0, 1, 0xff, 10, 0x3d]), 'user.a=b': 'c', 'security.x': '' } }), dir('d', { xattrs: { 'user.empty': '' } }), file('g', 'x', { xattrs: { 'user.empty': '' } })]] },
  { what: 'attributes shared by many files', layers: [Array.from({ length: 40 }, (_, i) => file(`f${i}`, 'x', { xattrs: { 'user.same': 'v'.repeat(30), 'user.own': String(i) } }))] },
  { what: 'long attributes', layers: [[file('f', 'x', { xattrs: { [`user.${'n'.repeat(250)}`]: 'v'.repeat(3000) } }), dir('d', { xattrs: { 'user.v': 'w'.repeat(2500) } }), file('d/x')]] },
  { what: 'attributes of unknown namespaces', layers: [[file('f', 'x', { xattrs: { 'system.nfs4_acl': 'x', 'nonsense': 'y', 'other.x': 'z', 'user.kept': '1' } })]] },
  { what: 'user attributes on a symlink', layers: [[symlink('s', 't', { xattrs: { 'user.x': '1' } })]] },
  { what: 'user attributes on a device', layers: [[{ name: 'c', type: 'char', major: 1, minor: 3, xattrs: { 'user.x': '1' } }]] },
  { what: 'security attributes on a symlink and a fifo', layers: [[symlink('s', 't', { xattrs: { 'security.x': '1' } }), { name: 'p', type: 'fifo', xattrs: { 'security.x': '2' } }]] },
  { what: 'an attribute without a name on a symlink', layers: [[symlink('s', 't', { xattrs: { 'user.': '1' } })]] },
  { what: 'an attribute without a name', layers: [[file('f', 'x', { xattrs: { 'user.': '1' } })]] },
  { what: 'ACLs', layers: [[file('f', 'x', { mode: 0o640, xattrs: { 'system.posix_acl_access': NAMED_ACL } }), file('g', 'x', { mode: 0o604, xattrs: { 'system.posix_acl_access': BASE_ACL } }), dir('d', { mode: 0o751, xattrs: { 'system.posix_acl_access': NAMED_ACL, 'system.posix_acl_default': NAMED_ACL } }), hardlink('h', 'f', { mode: 0o444 })]] },
  { what: 'default ACLs that new files inherit', layers: [[dir('d', { xattrs: { 'system.posix_acl_default': NAMED_ACL } }), file('d/f', 'x', { mode: 0o640 }), file('d/set', 'x', { mode: 0o4755 }), dir('d/sub', { mode: 0o711 }), file('d/sub/deep'), file('d/imp/licit/x'), symlink('d/s', 'x'), { name: 'd/p', type: 'fifo', mode: 0o600 }, { name: 'd/c', type: 'char', major: 1, minor: 1 }, file('out'), hardlink('d/h', 'out')]] },
  { what: 'default ACLs of base entries only', layers: [[dir('d', { xattrs: { 'system.posix_acl_default': BASE_ACL } }), file('d/f', 'x', { mode: 0o666 }), dir('d/e', { mode: 0o777 })]] },
  { what: 'default ACLs of a lower layer', layers: [[dir('d', { xattrs: { 'system.posix_acl_default': NAMED_ACL } })], [file('d/f'), file('d/e/g')], [dir('d'), file('d/h')]] },
  { what: 'an empty ACL takes away what was inherited', layers: [[dir('d', { xattrs: { 'system.posix_acl_default': NAMED_ACL } }), file('d/f', 'x', { xattrs: { 'system.posix_acl_access': '' } }), dir('d/e', { xattrs: { 'system.posix_acl_default': '' } })]] },
  { what: 'a default ACL on a file', layers: [[file('f', 'x', { xattrs: { 'system.posix_acl_default': NAMED_ACL } })]] },
  { what: 'an ACL of another version', layers: [[file('f', 'x', { xattrs: { 'system.posix_acl_access': 'junk' } }), file('g', 'x', { xattrs: { 'system.posix_acl_access': 'junk and more' } })]] },
  { what: 'an ACL without entries', layers: [[dir('d', { xattrs: { 'system.posix_acl_default': NAMED_ACL } }), file('d/f', 'x', { xattrs: { 'system.posix_acl_access': acl() } })]] },
  { what: 'an ACL cut off', layers: [[file('f', 'x', { xattrs: { 'system.posix_acl_access': NAMED_ACL.subarray(0, 14) } })]] },
  { what: 'an ACL of one byte', layers: [[file('f', 'x', { xattrs: { 'system.posix_acl_access': '2' } })]] },
  { what: 'an ACL in the wrong order', layers: [[file('f', 'x', { xattrs: { 'system.posix_acl_access': acl([1, 7], [0x20, 1], [4, 5]) } })]] },
  { what: 'an ACL without a mask', layers: [[file('f', 'x', { xattrs: { 'system.posix_acl_access': acl([1, 7], [2, 5, 1000], [4, 5], [0x20, 1]) } })]] },
  { what: 'an ACL on a symlink', layers: [[symlink('s', 't', { xattrs: { 'system.posix_acl_access': NAMED_ACL } })]] },
  { what: 'times', layers: [[file('neg', 'x', { mtime: '-1.5' }), file('nano', 'x', { mtime: '1234567890.987654321' }), file('zero', 'x', { mtime: 0 }), file('far', 'x', { mtime: '5000000000' }), file('farther', 'x', { mtime: '9223372036.9' }), dir('d', { mtime: '-5' }), symlink('s', 't', { mtime: '7.000000001' }), file('long', 'x', { mtime: '1.0000000019' })]] },
  { what: 'the time of access', layers: [[file('f', 'x', { mtime: 5, pax: { atime: '99.5', ctime: '44' } })]] },
  { what: 'times of directories that get files later', layers: [[dir('d', { mtime: 100 }), dir('e', { mtime: 200 })], [file('d/x'), dir('e', { mtime: 300 }), file('e/x')]] },
  { what: 'modes', layers: [[file('suid', 'x', { mode: 0o4755, uid: 5 }), file('sgid', 'x', { mode: 0o2755, gid: 9 }), dir('sticky', { mode: 0o1777 }), dir('sgiddir', { mode: 0o2770, gid: 8 }), file('sgiddir/x', 'y', { gid: 3 }), file('none', 'x', { mode: 0 }), symlink('s', 't', { mode: 0o600 })]] },
  { what: 'owners over 16 and 24 bits', layers: [[file('f', 'x', { uid: 70000, gid: 100000 }), dir('d', { uid: 4000000000, gid: 65536 }), symlink('s', 't', { uid: 65535, gid: 65536 })]] },
  { what: 'a described root', layers: [[dir('./', { mode: 0o700, uid: 3, gid: 4, mtime: 5, xattrs: { 'user.r': '1' } }), file('f')]] },
  { what: 'names of all bytes', layers: [[dir('d'), ...Array.from({ length: 255 }, (_, i) => i + 1).filter((byte) => byte !== 0x2f && byte !== 0x2e).map((byte) => file(`d/${String.fromCharCode(byte)}`, String(byte), { pax: { path: `d/${String.fromCharCode(byte)}` } })), file('d/.-'), file('d/..!'), file('d/...'), file('d/.!'), file('d/!'), file('d/-')]] },
  { what: 'longest names and targets', layers: [[file('n'.repeat(255)), file(`${'d'.repeat(250)}/${'e'.repeat(250)}/${'f'.repeat(250)}`), symlink('s', 't'.repeat(4000)), symlink('s2', 't'.repeat(600)), symlink('s3', 't'.repeat(450))]] },
  { what: 'names too long', layers: [[file('n'.repeat(256))]] },
  { what: 'paths too long', layers: [[file(`${'d'.repeat(200)}/`.repeat(21).slice(0, -1))]] },
  { what: 'files of awkward sizes', layers: [[0, 1, 511, 512, 513, 4095, 4096, 4097, 70_000, 1_000_003].map((size) => file(`f${size}`, Buffer.alloc(size, `${size}.`).toString('latin1')))] },
  { what: 'a large directory', layers: [Array.from({ length: 3000 }, (_, i) => file(`d/entry ${i * 7919}`, ''))] },
  { what: 'many empty directories and one-block ones', layers: [Array.from({ length: 40 }, (_, i) => [dir(`d${i}`), ...Array.from({ length: i }, (_, j) => file(`d${i}/${'n'.repeat(i)}${j}`, ''))]).flat()] },
]
