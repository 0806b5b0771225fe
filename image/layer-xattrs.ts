// Which extended attributes of a tar entry end up on the file, and in what shape: the rules of containerd and of the kernel.
import type { LayerNode, Xattr } from './layer-node.ts'
import { unsupported } from './layer-path.ts'
import { ACCESS_ACL, DEFAULT_ACL, encodeAcl, isForeignAcl, parseAcl } from './posix-acl.ts'

export const CAPABILITY = 'security.capability'
const MAX_NAME_LENGTH = 255
/** The kernel allows one byte more, which EROFS's 16-bit lengths cannot say. */
const MAX_VALUE_LENGTH = 65535

/** Sets them as setxattr(2) would; what a filesystem answers with ENOTSUP is left out, as containerd does; other refusals throw. */
export function applyXattrs(node: LayerNode, xattrs: readonly Xattr[], path: string): void {
  for (const [name, value] of xattrs) {
    if (name.startsWith('trusted.')) continue // containerd never takes these from an archive
    if (name.length === 0 || name.length > MAX_NAME_LENGTH || name.includes('\0')) throw unsupported(`'${path}' has an extended attribute with an impossible name`)
    if (value.length > MAX_VALUE_LENGTH) throw unsupported(`'${path}': extended attribute ${name} has ${value.length} bytes`)
    if (name === ACCESS_ACL || name === DEFAULT_ACL) applyAcl(node, name, value, path)
    else if (name.startsWith('user.')) {
      if (node.type !== 'file' && node.type !== 'dir') continue // EPERM, which containerd passes over for this namespace
      if (name.length === 5) throw unsupported(`'${path}': the kernel refuses an attribute without a name`)
      node.setXattr(name, value)
    } else if (name.startsWith('security.')) {
      if (name.length === 9 || (name === CAPABILITY && !isCapability(value))) throw unsupported(`'${path}': the kernel refuses this ${name}`)
      node.setXattr(name, value)
    }
  }
}

function applyAcl(node: LayerNode, name: string, value: Uint8Array, path: string): void {
  if (node.type === 'symlink' || isForeignAcl(value)) return
  const acl = parseAcl(value)
  if (!acl || (name === DEFAULT_ACL && node.type !== 'dir' && acl.length > 0)) throw unsupported(`'${path}': the kernel refuses this ${name}`)
  if (acl.length > 0) node.setXattr(name, encodeAcl(acl))
  else node.removeXattr(name)
}

/** Version 2 (20 bytes) or 3 (24 bytes, with the user namespace's root) of the kernel's vfs_cap_data. */
function isCapability(value: Uint8Array): boolean {
  const revision = value.length < 4 ? -1 : value[3]
  return (value.length === 20 && revision === 2) || (value.length === 24 && revision === 3)
}

/** What a missing parent directory gets from the same directory of a lower layer; it keeps what it already has. */
export function copyXattrs(from: LayerNode, to: LayerNode): void {
  for (const [name, value] of from.xattrs) if (to.xattr(name) === undefined) to.setXattr(name, value)
}
