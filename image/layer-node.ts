// A file of one layer as containerd's unpacking would leave it in the layer's own directory. Whatever of it stays visible in
// the merged image becomes an inode of the image's tree as it is, without a copy: images may have millions of these.
import { ACCESS_ACL, accessAclForMode, DEFAULT_ACL, parseAcl, encodeAcl } from './posix-acl.ts'
import type { DataExtent, TreeInode } from './tree.ts'

export type Xattr = readonly [name: string, value: Uint8Array]

/** Shared, so that a million files without them cost nothing. */
export const NO_XATTRS: readonly Xattr[] = []
export const NO_EXTENTS: readonly DataExtent[] = []

export class LayerNode implements TreeInode {
  readonly type: TreeInode['type']
  mode: number
  uid = 0
  gid = 0
  mtimeSeconds = 0
  mtimeNanos = 0
  nlink = 1
  size = 0
  layer = -1
  extents: readonly DataExtent[] = NO_EXTENTS
  link = ''
  major = 0
  minor = 0
  xattrs: readonly Xattr[] = NO_XATTRS
  entries: (readonly [name: string, inode: number])[] | undefined = undefined
  parent: number | undefined = undefined

  /** Directories: what is in it in this layer. */
  children: Map<string, LayerNode> | undefined
  /** Directories: hides what lower layers have below it. */
  opaque = false
  /** Directories: the tar has an entry for it; otherwise it came to be as somebody's missing parent. */
  explicit = false
  /** In the image's tree; -1 while it has none. */
  position = -1

  constructor(type: TreeInode['type'], mode: number) {
    this.type = type
    this.mode = mode
    this.children = type === 'dir' ? new Map() : undefined
  }

  /** overlayfs takes a character device 0:0 in any of its layers for "deleted", wherever it came from. */
  get isWhiteout(): boolean {
    return this.type === 'char' && this.major === 0 && this.minor === 0
  }

  xattr(name: string): Uint8Array | undefined {
    for (const [key, value] of this.xattrs) if (key === name) return value
    return undefined
  }

  setXattr(name: string, value: Uint8Array): void {
    const others = this.xattrs.filter(([key]) => key !== name)
    others.push([name, value])
    this.xattrs = others.sort((a, b) => (a[0] < b[0] ? -1 : 1))
  }

  removeXattr(name: string): void {
    if (this.xattrs.length > 0) this.xattrs = this.xattrs.filter(([key]) => key !== name)
  }

  /** Sets the mode as chmod does, which an access ACL follows. */
  chmod(mode: number): void {
    if (this.type === 'symlink') return
    this.mode = mode
    if (this.xattrs.length === 0) return
    const value = this.xattr(ACCESS_ACL)
    if (value === undefined) return
    const acl = accessAclForMode(parseAcl(value) ?? [], mode)
    if (acl) this.setXattr(ACCESS_ACL, encodeAcl(acl))
    else this.removeXattr(ACCESS_ACL)
  }

  /** Takes over what a new file gets from the directory it is made in: the default ACL, and the group of a setgid directory. */
  inherit(parent: LayerNode): void {
    if ((parent.mode & 0o2000) !== 0) this.gid = parent.gid
    if (parent.xattrs.length === 0 || this.type === 'symlink') return
    const value = parent.xattr(DEFAULT_ACL)
    if (value === undefined) return
    if (this.type === 'dir') this.setXattr(DEFAULT_ACL, value)
    const acl = accessAclForMode(parseAcl(value) ?? [], this.mode)
    if (acl) this.setXattr(ACCESS_ACL, encodeAcl(acl))
  }
}
