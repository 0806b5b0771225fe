// The merged tree of an image: what the composer makes of its layers' file tables, and what EROFS writer and FUSE filesystem serve.
import type { FileType } from './layer-index.ts'

export interface DataExtent {
  /** Bytes from the start of the file; of the data in the layer's stream; how many. Offsets are multiples of 512; gaps are holes. */
  readonly fileOffset: number
  readonly streamOffset: number
  readonly length: number
}

export interface TreeInode {
  readonly type: Exclude<FileType, 'hardlink'>
  /** 0o7777. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly mtimeSeconds: number
  readonly mtimeNanos: number
  readonly nlink: number
  /** Bytes; for symlinks the target's length. */
  readonly size: number
  /** Position of the layer in ImageTree.layers that holds the data; -1 when there is none. */
  readonly layer: number
  readonly extents: readonly DataExtent[]
  /** Symlink target, binary string; '' otherwise. */
  readonly link: string
  readonly major: number
  readonly minor: number
  /** Sorted by name. */
  readonly xattrs: readonly (readonly [name: string, value: Uint8Array])[]
  /** Directories only: children sorted by name bytewise, without `.` and `..`; values are positions in ImageTree.inodes. */
  readonly entries?: readonly (readonly [name: string, inode: number])[]
  /** Directories only: position of the parent (the root is its own). */
  readonly parent?: number
}

export interface TreeLayer {
  readonly diffId: string
  /** Bytes of the layer's tar stream. */
  readonly rawLength: number
}

/** Deterministic: the same layers give the same inodes in the same order. inodes[0] is the root directory. */
export interface ImageTree {
  readonly layers: readonly TreeLayer[]
  readonly inodes: readonly TreeInode[]
}
