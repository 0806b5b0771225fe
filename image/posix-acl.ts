// POSIX ACLs as extended attributes: what a filesystem makes of them when a file is created in a directory, written to, or chmod-ed.
//
// A tar carries ACLs as raw `system.posix_acl_*` attributes; a filesystem does not store those bytes but their meaning, and
// so a reader sees other bytes than were written. Format and rules: the kernel's posix_acl_xattr.h and posix_acl.c.

export const ACCESS_ACL = 'system.posix_acl_access'
export const DEFAULT_ACL = 'system.posix_acl_default'

const VERSION = 2
const HEADER_LENGTH = 4
const ENTRY_LENGTH = 8
const UNDEFINED_ID = 0xffffffff
const USER_OBJ = 0x01
const USER = 0x02
const GROUP_OBJ = 0x04
const GROUP = 0x08
const MASK = 0x10
const OTHER = 0x20

interface AclEntry {
  tag: number
  perm: number
  id: number
}
export type Acl = AclEntry[]

/** Another version of the format: to the kernel that is nothing it supports rather than something malformed. */
export function isForeignAcl(value: Uint8Array): boolean {
  return value.length >= HEADER_LENGTH && new DataView(value.buffer, value.byteOffset).getUint32(0, true) !== VERSION
}

/** The ACL in an attribute's value; undefined when the kernel would refuse it; an empty list means "remove the ACL". */
export function parseAcl(value: Uint8Array): Acl | undefined {
  if (value.length === 0) return []
  if (value.length < HEADER_LENGTH || (value.length - HEADER_LENGTH) % ENTRY_LENGTH !== 0) return undefined
  const view = new DataView(value.buffer, value.byteOffset, value.byteLength)
  if (view.getUint32(0, true) !== VERSION) return undefined
  const acl: Acl = []
  for (let at = HEADER_LENGTH; at < value.length; at += ENTRY_LENGTH) {
    const tag = view.getUint16(at, true)
    const named = tag === USER || tag === GROUP
    acl.push({ tag, perm: view.getUint16(at + 2, true), id: named ? view.getUint32(at + 4, true) : UNDEFINED_ID })
  }
  return isValid(acl) ? acl : undefined
}

/** The kernel wants each base entry once, entries in the order of their tags, and a mask beside named entries. */
function isValid(acl: Acl): boolean {
  let last = 0
  const seen = new Set<number>()
  for (const { tag, perm, id } of acl) {
    const named = tag === USER || tag === GROUP
    if (tag < last || (perm & ~7) !== 0 || (seen.has(tag) && !named) || (named && id === UNDEFINED_ID)) return false
    if (![USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER].includes(tag)) return false
    seen.add(tag)
    last = tag
  }
  if (acl.length === 0) return true
  if (!seen.has(USER_OBJ) || !seen.has(GROUP_OBJ) || !seen.has(OTHER)) return false
  return seen.has(MASK) || !(seen.has(USER) || seen.has(GROUP))
}

export function encodeAcl(acl: Acl): Uint8Array {
  const value = new Uint8Array(HEADER_LENGTH + acl.length * ENTRY_LENGTH)
  const view = new DataView(value.buffer)
  view.setUint32(0, VERSION, true)
  acl.forEach(({ tag, perm, id }, index) => {
    const at = HEADER_LENGTH + index * ENTRY_LENGTH
    view.setUint16(at, tag, true)
    view.setUint16(at + 2, perm, true)
    view.setUint32(at + 4, id, true)
  })
  return value
}

/**
 * The access ACL after a chmod to `mode`; undefined when it says no more than the mode does, which is not stored. Creating a
 * file below a default ACL and then chmod-ing it comes to the same: creation changes only what chmod sets anyway.
 */
export function accessAclForMode(acl: Acl, mode: number): Acl | undefined {
  if (acl.every(({ tag }) => tag === USER_OBJ || tag === GROUP_OBJ || tag === OTHER)) return undefined
  const masked = acl.some(({ tag }) => tag === MASK)
  return acl.map((entry) => {
    if (entry.tag === USER_OBJ) return { ...entry, perm: (mode >> 6) & 7 }
    if (entry.tag === OTHER) return { ...entry, perm: mode & 7 }
    if (entry.tag === (masked ? MASK : GROUP_OBJ)) return { ...entry, perm: (mode >> 3) & 7 }
    return entry
  })
}
