// One layer's tar unpacked in memory the way containerd's overlayfs snapshotter unpacks it on disk.
//
// containerd applies each layer to a directory of that layer's own: links and hardlinks see nothing of the layers below, the
// lowest layer carries out its whiteouts, the others keep them as marks for overlayfs. Where containerd's unpacking would
// fail, or depends on the host, this throws UNSUPPORTED, so that containerd decides. Found out on containerd 1.6;
// test/e2e/tree-conformance.test.ts compares with the one that is installed.
import { SkimmerError } from '../oci/errors.ts'
import type { FileEntry } from './layer-index.ts'
import { LayerNode, NO_EXTENTS } from './layer-node.ts'
import { findNode, resolveLinks, unsupported } from './layer-path.ts'
import { applyXattrs, CAPABILITY, copyXattrs } from './layer-xattrs.ts'
import type { DataExtent } from './tree.ts'

const WHITEOUT_PREFIX = '.wh.'
const OPAQUE_MARK = '.wh..wh..opq'
const MAX_NAME_LENGTH = 255
const MAX_PATH_LENGTH = 4095
const MAX_TARGET_LENGTH = 4095
/** chown(2) takes it for "leave as it is". */
const NO_ID = 0xffffffff
/** containerd sets times outside of 1970 … 2262 (int64 nanoseconds) to 1970. */
const MAX_SECONDS = 9223372036
const MAX_NANOS = 854775807
const IMPLICIT_MODE = 0o755

export class LayerTree {
  readonly root = new LayerNode('dir', 0o755)
  #position: number
  #streamLength: number
  #lowers: readonly LayerTree[]
  /** Directories by the path the tar calls them by; valid until something on the way is removed. */
  #directories = new Map<string, LayerNode>()
  #explicitDirectories: FileEntry[] = []
  #removedDirectoryOrLink = false
  #removedExplicitDirectory = false

  /**
   * @param position of the layer in the image, lowest first
   * @param lowers the layers below, topmost first; none: whiteouts are carried out
   */
  constructor(position: number, streamLength: number, lowers: readonly LayerTree[]) {
    this.#position = position
    this.#streamLength = streamLength
    this.#lowers = lowers
  }

  apply(files: readonly FileEntry[]): void {
    for (const entry of files) this.#applyEntry(entry)
    this.#settleDirectoryTimes()
    this.#directories.clear()
    this.#explicitDirectories = []
  }

  #applyEntry(entry: FileEntry): void {
    const { path } = entry
    if (path === '') {
      // An image's root has the mode and owner of containerd's directory; its time is that of the unpacking, so the tar's is as good.
      if (entry.type === 'dir') setTime(this.root, entry)
      return
    }
    const slash = path.lastIndexOf('/')
    const name = slash === -1 ? path : path.slice(slash + 1)
    if (name.length > MAX_NAME_LENGTH || path.length > MAX_PATH_LENGTH) throw unsupported(`a path of ${path.length} bytes whose name has ${name.length} is too long for the kernel`)
    if (path.includes('\0')) throw unsupported('a path with a zero byte cannot exist')
    const parent = slash === -1 ? this.root : this.#directory(path.slice(0, slash), entry)
    if (name.startsWith(WHITEOUT_PREFIX)) return this.#whiteOut(parent, name, path)

    const existing = parent.children!.get(name)
    if (existing?.type === 'dir' && entry.type === 'dir') return this.#describe(existing, entry)
    if (existing) this.#remove(parent, name, existing)
    const node = entry.type === 'hardlink' ? this.#linkTarget(entry) : this.#create(parent, entry)
    parent.children!.set(name, node)
    this.#describe(node, entry)
  }

  #create(parent: LayerNode, entry: FileEntry): LayerNode {
    const type = entry.type as LayerNode['type']
    const node = new LayerNode(type, type === 'symlink' ? 0o777 : entry.mode & 0o7777)
    node.inherit(parent)
    if (type === 'file') {
      node.size = entry.size
      node.layer = entry.size > 0 ? this.#position : -1
      node.extents = this.#extents(entry)
    } else if (type === 'symlink') {
      if (entry.link === '' || entry.link.length > MAX_TARGET_LENGTH || entry.link.includes('\0')) throw unsupported(`symlink '${entry.path}' has an impossible target`)
      node.link = entry.link
      node.size = entry.link.length
    } else if (type === 'char' || type === 'block') {
      if (entry.major > 0xfff || entry.minor > 0xfffff) throw unsupported(`'${entry.path}' has device number ${entry.major}:${entry.minor}`)
      node.major = entry.major
      node.minor = entry.minor
    }
    return node
  }

  #extents(entry: FileEntry): readonly DataExtent[] {
    if (entry.size === 0) return NO_EXTENTS
    const extents = entry.extents
      ? entry.extents.map(({ fileOffset, offset, length }) => ({ fileOffset, streamOffset: offset, length }))
      : [{ fileOffset: 0, streamOffset: entry.offset, length: entry.size }]
    let end = 0
    for (const { fileOffset, streamOffset, length } of extents) {
      if (fileOffset < end || length <= 0 || fileOffset + length > entry.size || streamOffset < 0 || streamOffset + length > this.#streamLength) {
        throw new SkimmerError('INVALID_DATA', `index: the data of '${entry.path}' lies outside of the file or the layer`)
      }
      end = fileOffset + length
      if (fileOffset % 512 !== 0 || streamOffset % 512 !== 0 || (length % 512 !== 0 && end !== entry.size)) throw unsupported(`'${entry.path}' is sparse in pieces that are not whole blocks`)
    }
    return extents
  }

  /** Hardlinks share the inode, so this entry's mode, owner, time and attributes become those of all its names. */
  #linkTarget(entry: FileEntry): LayerNode {
    const slash = entry.link.lastIndexOf('/')
    const directory = slash === -1 ? [] : resolveLinks(this.root, entry.link.slice(0, slash))
    let node: LayerNode | undefined = this.root
    for (const name of directory) node = node?.children?.get(name)
    node = node?.children?.get(entry.link.slice(slash + 1))
    if (!node || node.type === 'dir') throw unsupported(`hardlink '${entry.path}' has no file '${entry.link}' in its layer`)
    node.nlink++
    if (node.type === 'file') node.removeXattr(CAPABILITY) // the chown that follows drops it
    return node
  }

  /** Owner, attributes, mode, time: in the order containerd sets them. */
  #describe(node: LayerNode, entry: FileEntry): void {
    if (entry.uid !== NO_ID) node.uid = entry.uid
    if (entry.gid !== NO_ID) node.gid = entry.gid
    if (entry.xattrs.length > 0) applyXattrs(node, entry.xattrs, entry.path)
    node.chmod(entry.mode & 0o7777)
    setTime(node, entry)
    if (node.type !== 'dir') return
    node.explicit = true
    this.#explicitDirectories.push(entry)
  }

  #whiteOut(parent: LayerNode, name: string, path: string): void {
    const lowest = this.#lowers.length === 0
    if (name === OPAQUE_MARK) {
      if (lowest) this.#removeImplicit(parent)
      else parent.opaque = true
      return
    }
    const target = name.slice(WHITEOUT_PREFIX.length)
    if (target === '' || target === '.' || target === '..') throw unsupported(`'${path}' is no whiteout of anything`)
    const existing = parent.children!.get(target)
    if (lowest) {
      if (existing) this.#remove(parent, target, existing)
      return
    }
    if (existing) throw unsupported(`'${path}' deletes what the same layer has`)
    const mark = new LayerNode('char', 0)
    mark.inherit(parent)
    parent.children!.set(target, mark)
  }

  /** The lowest layer's opaque marks delete what came to be without an entry of its own. */
  #removeImplicit(directory: LayerNode): void {
    if (this.#removedExplicitDirectory) throw unsupported('an opaque mark after deletions in the lowest layer')
    const todo = [directory]
    for (let node = todo.pop(); node; node = todo.pop()) {
      for (const [name, child] of node.children!) {
        if (child.type !== 'dir') continue
        if (child.explicit) todo.push(child)
        else this.#remove(node, name, child)
      }
    }
  }

  #remove(parent: LayerNode, name: string, node: LayerNode): void {
    parent.children!.delete(name)
    if (node.type === 'dir' || node.type === 'symlink') {
      this.#removedDirectoryOrLink = true
      this.#directories.clear()
    }
    const todo = [node]
    for (let gone = todo.pop(); gone; gone = todo.pop()) {
      if (gone.type !== 'dir') gone.nlink--
      else {
        if (gone.explicit) this.#removedExplicitDirectory = true
        for (const child of gone.children!.values()) todo.push(child)
      }
    }
  }

  /** The directory a tar's path names, made with its parents where it is missing. */
  #directory(path: string, cause: FileEntry): LayerNode {
    const known = this.#directories.get(path)
    if (known) return known
    let node = this.root
    let names = path.split('/')
    for (let depth = 0; depth < names.length; depth++) {
      const child = node.children!.get(names[depth])
      if (child?.type === 'symlink') {
        names = resolveLinks(this.root, path)
        node = this.root
        depth = -1
      } else if (!child) {
        node = this.#makeParent(node, names.slice(0, depth + 1), cause)
      } else if (child.type === 'dir') {
        node = child
      } else {
        throw unsupported(`'${cause.path}': '${names.slice(0, depth + 1).join('/')}' is not a directory in its layer`)
      }
    }
    this.#directories.set(path, node)
    return node
  }

  /** Like the topmost lower layer's directory of this path, or plain. Its time would be that of the unpacking: take one that stays. */
  #makeParent(parent: LayerNode, names: readonly string[], cause: FileEntry): LayerNode {
    const name = names[names.length - 1]
    if (name.length > MAX_NAME_LENGTH) throw unsupported(`a name of ${name.length} bytes is too long for the kernel`)
    const node = new LayerNode('dir', IMPLICIT_MODE)
    node.inherit(parent)
    setTime(node, cause)
    parent.children!.set(name, node)
    const path = names.join('/')
    for (const lower of this.#lowers) {
      const found = findNode(lower.root, path)
      if (!found) continue
      if (found.type !== 'dir') break // it was replaced there
      node.uid = found.uid
      node.gid = found.gid
      node.chmod(found.mode)
      node.mtimeSeconds = found.mtimeSeconds
      node.mtimeNanos = found.mtimeNanos
      copyXattrs(found, node)
      break
    }
    return node
  }

  /** containerd sets directories' times at the end, by path: when something was replaced, that can be another file by then. */
  #settleDirectoryTimes(): void {
    if (!this.#removedDirectoryOrLink) return
    for (const entry of this.#explicitDirectories) {
      const node = findNode(this.root, entry.path)
      if (!node) throw unsupported(`directory '${entry.path}' is gone at the end of its layer`)
      setTime(node, entry)
    }
  }
}

function setTime(node: LayerNode, entry: FileEntry): void {
  const { mtimeSeconds, mtimeNanos } = entry
  const inBounds = mtimeSeconds >= 0 && (mtimeSeconds < MAX_SECONDS || (mtimeSeconds === MAX_SECONDS && mtimeNanos <= MAX_NANOS))
  node.mtimeSeconds = inBounds ? mtimeSeconds : 0
  node.mtimeNanos = inBounds ? mtimeNanos : 0
}
