// EROFS extended attributes: inline behind the inode, or once in a shared area when several inodes have the same.
import { SkimmerError } from '../oci/errors.ts'
import { alignUp, XATTR_ENTRY_LENGTH, XATTR_HEADER_LENGTH } from './erofs-format.ts'
import type { TreeInode } from './tree.ts'

/** The kernel's name prefixes; longest match first. The rest of the name follows in the entry. */
const PREFIXES: readonly (readonly [prefix: string, index: number])[] = [
  ['system.posix_acl_access', 2],
  ['system.posix_acl_default', 3],
  ['security.', 6],
  ['trusted.', 4],
  ['user.', 1],
]
const MAX_SHARED = 255
/** `xattr_icount` of an inode is 16 bits of 4-byte units. */
const MAX_BODY_LENGTH = XATTR_HEADER_LENGTH + 0xfffe * 4

interface SharedEntry {
  readonly bytes: Buffer
  uses: number
  /** In units of 4 bytes from the start of the shared area; -1 while it is not there. */
  id: number
}

export class XattrTables {
  /** All shared entries, one after another. */
  readonly shared: Buffer
  #bodies = new Map<number, Buffer>()

  constructor(inodes: readonly TreeInode[]) {
    const entries = new Map<string, SharedEntry>()
    const users: { inode: number; entries: SharedEntry[] }[] = []
    for (let inode = 0; inode < inodes.length; inode++) {
      const { xattrs } = inodes[inode]
      if (xattrs.length === 0) continue
      users.push({
        inode,
        entries: xattrs.map(([name, value]) => {
          const key = `${name}\0${Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString('latin1')}`
          let entry = entries.get(key)
          if (!entry) entries.set(key, (entry = { bytes: encodeEntry(name, value), uses: 0, id: -1 }))
          entry.uses++
          return entry
        }),
      })
    }
    const shared: Buffer[] = []
    let length = 0
    for (const entry of entries.values()) {
      if (entry.uses < 2 || entry.bytes.length <= 4) continue // an id takes four bytes itself
      entry.id = length / 4
      shared.push(entry.bytes)
      length += entry.bytes.length
    }
    this.shared = Buffer.concat(shared)
    for (const { inode, entries } of users) this.#bodies.set(inode, encodeBody(entries))
  }

  /** What stands between the inode and its data, or undefined. */
  body(inode: number): Buffer | undefined {
    return this.#bodies.get(inode)
  }
}

/** The inode's count of its xattr bytes. */
export const xattrCount = (bodyLength: number): number => (bodyLength === 0 ? 0 : (bodyLength - XATTR_HEADER_LENGTH) / 4 + 1)

function encodeEntry(name: string, value: Uint8Array): Buffer {
  const found = PREFIXES.find(([prefix]) => name.startsWith(prefix))
  if (!found) throw new SkimmerError('UNSUPPORTED', `EROFS cannot store the extended attribute ${name}; unpack this image the ordinary way`)
  const suffix = Buffer.from(name.slice(found[0].length), 'latin1')
  if (suffix.length > 255 || value.length > 0xffff) throw new SkimmerError('UNSUPPORTED', `the extended attribute ${name} is too long for EROFS; unpack this image the ordinary way`)
  const bytes = Buffer.alloc(alignUp(XATTR_ENTRY_LENGTH + suffix.length + value.length, 4))
  bytes[0] = suffix.length
  bytes[1] = found[1]
  bytes.writeUInt16LE(value.length, 2)
  suffix.copy(bytes, XATTR_ENTRY_LENGTH)
  bytes.set(value, XATTR_ENTRY_LENGTH + suffix.length)
  return bytes
}

function encodeBody(entries: readonly SharedEntry[]): Buffer {
  const shared = entries.filter(({ id }) => id >= 0).slice(0, MAX_SHARED)
  const inline = entries.filter((entry) => !shared.includes(entry))
  const head = Buffer.alloc(XATTR_HEADER_LENGTH + shared.length * 4)
  head[4] = shared.length
  shared.forEach(({ id }, index) => head.writeUInt32LE(id, XATTR_HEADER_LENGTH + index * 4))
  const body = Buffer.concat([head, ...inline.map(({ bytes }) => bytes)])
  if (body.length > MAX_BODY_LENGTH) throw new SkimmerError('UNSUPPORTED', `a file has ${body.length} bytes of extended attributes, more than EROFS can store; unpack this image the ordinary way`)
  return body
}
