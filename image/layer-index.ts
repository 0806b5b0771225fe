// What a layer index says: its block table and its file table. The wire format is in index-format.ts and docs/format.md.
import type { BlockTable } from './block-table.ts'

/** Tar entry kinds that remain after pax, GNU and PAX-global headers are folded into the entry they describe. */
export type FileType = 'file' | 'dir' | 'symlink' | 'hardlink' | 'char' | 'block' | 'fifo'

/**
 * One tar entry in tar order. Strings are "binary strings" (latin1: one char = one byte), because names in tars are bytes,
 * `<` then sorts as EROFS and the kernel do, and Map lookups stay cheap. Paths are cleaned: no leading `/` or `./`, no
 * trailing `/`, no `.` or `..` components (a `..` that would climb out stays at the root, as containerd does); '' is the root.
 * Whiteouts keep their `.wh.` names: the composer gives them meaning.
 */
export interface FileEntry {
  readonly path: string
  readonly type: FileType
  /** Permission bits and setuid/setgid/sticky: 0o7777. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  /** Seconds since 1970, may be negative. */
  readonly mtimeSeconds: number
  readonly mtimeNanos: number
  /** Bytes of file data; 0 for all but 'file'. */
  readonly size: number
  /** Where the data starts in the layer's tar stream: always a multiple of 512. */
  readonly offset: number
  /** Symlink target as written, or hardlink target as a cleaned path. */
  readonly link: string
  readonly major: number
  readonly minor: number
  /** Name (with its namespace prefix, binary string) and value. */
  readonly xattrs: readonly (readonly [name: string, value: Uint8Array])[]
  /** Set for sparse files only: extents in file order; gaps are holes; all offsets multiples of 512. Then `offset` is unused. */
  readonly extents?: readonly { readonly fileOffset: number; readonly offset: number; readonly length: number }[]
}

export interface LayerIndex {
  /** `sha256:<hex>` of the uncompressed tar stream. */
  readonly diffId: string
  /** Digest of the layer blob as the registry has it, and its size in bytes. */
  readonly layerDigest: string
  readonly layerSize: number
  readonly blocks: BlockTable
  readonly files: readonly FileEntry[]
}
