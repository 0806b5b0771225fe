// The kernel's FUSE ABI (7.31 to 7.45) by hand: opcodes, flags, struct offsets, and writers for the structs we answer with.
// Source: include/uapi/linux/fuse.h. All integers are in the machine's order; every machine Node runs on here is little-endian.

/** Bytes of `struct fuse_in_header`: len 0, opcode 4, unique 8, nodeid 16, uid 24, gid 28, pid 32, total_extlen 36. */
export const IN_HEADER = 40
/** Bytes of `struct fuse_out_header`: len 0, error 4, unique 8. */
export const OUT_HEADER = 16
export const ATTR_SIZE = 88
/** Bytes of `struct fuse_entry_out`: nodeid, generation, entry_valid, attr_valid, two nsec fields, then the attributes. */
export const ENTRY_SIZE = 40 + ATTR_SIZE
export const ATTR_OUT_SIZE = 16 + ATTR_SIZE
/** Bytes of `struct fuse_dirent` before the name: ino, off, namelen, type. */
export const DIRENT_HEADER = 24

/** The kernel refuses to hand out requests to a buffer smaller than max_write and a header; ours only ever reads. */
export const MAX_WRITE = 4096
export const REQUEST_BUFFER = 64 * 1024
/** 256 pages: the largest read the kernel sends (sysctl fs.fuse.max_pages_limit). */
export const MAX_PAGES = 256
export const MAX_READ = MAX_PAGES * 4096

export const OP = {
  LOOKUP: 1, FORGET: 2, GETATTR: 3, SETATTR: 4, READLINK: 5, SYMLINK: 6, MKNOD: 8, MKDIR: 9, UNLINK: 10, RMDIR: 11, RENAME: 12,
  LINK: 13, OPEN: 14, READ: 15, WRITE: 16, STATFS: 17, RELEASE: 18, FSYNC: 20, SETXATTR: 21, GETXATTR: 22, LISTXATTR: 23,
  REMOVEXATTR: 24, FLUSH: 25, INIT: 26, OPENDIR: 27, READDIR: 28, RELEASEDIR: 29, FSYNCDIR: 30, ACCESS: 34, CREATE: 35,
  INTERRUPT: 36, DESTROY: 38, BATCH_FORGET: 42, FALLOCATE: 43, READDIRPLUS: 44, RENAME2: 45, COPY_FILE_RANGE: 47, TMPFILE: 51,
} as const

/** What changes something: refused with EROFS. */
export const WRITE_OPS: ReadonlySet<number> = new Set([
  OP.SETATTR, OP.SYMLINK, OP.MKNOD, OP.MKDIR, OP.UNLINK, OP.RMDIR, OP.RENAME, OP.LINK, OP.WRITE, OP.SETXATTR, OP.REMOVEXATTR,
  OP.CREATE, OP.FALLOCATE, OP.RENAME2, OP.COPY_FILE_RANGE, OP.TMPFILE,
])

export const ERRNO = { EPERM: 1, ENOENT: 2, EINTR: 4, EIO: 5, ENOTDIR: 20, EISDIR: 21, EINVAL: 22, EROFS: 30, ERANGE: 34, ENOSYS: 38, ENODATA: 61, ESTALE: 116 } as const

/** Low 32 bits of the INIT flags. */
export const INIT = {
  ASYNC_READ: 1 << 0, EXPORT_SUPPORT: 1 << 4, DO_READDIRPLUS: 1 << 13, READDIRPLUS_AUTO: 1 << 14, NO_OPEN_SUPPORT: 1 << 17,
  PARALLEL_DIROPS: 1 << 18, POSIX_ACL: 1 << 20, MAX_PAGES: 1 << 22, CACHE_SYMLINKS: 1 << 23, EXPLICIT_INVAL_DATA: 1 << 25, INIT_EXT: 1 << 30,
} as const
/** Bits 32 and up, in the second word of flags. */
export const INIT2 = { HAS_RESEND: 1 << (39 - 32) } as const

export const FOPEN_KEEP_CACHE = 1 << 1
export const FOPEN_CACHE_DIR = 1 << 3

export const NOTIFY_RESEND = 7
/** The kernel sets it in the id of a request that it sends again; the answer carries it too. */
export const UNIQUE_RESEND = 1n << 63n

export const ROOT_NODE = 1
/** Nothing we serve ever changes: entries and attributes stay valid for a year. */
export const FOREVER_SECONDS = 365 * 24 * 3600

export const S_IFMT = 0o170000
export const S_IFREG = 0o100000
export const S_IFDIR = 0o040000
export const S_IFLNK = 0o120000

/** A node id in two halves, because 64 bits do not fit a number. */
export interface NodeId { readonly high: number; readonly low: number }

export interface Attributes {
  readonly node: NodeId
  readonly size: number
  readonly mtimeSeconds: number
  readonly mtimeNanos: number
  /** File type and permission bits. */
  readonly mode: number
  readonly nlink: number
  readonly uid: number
  readonly gid: number
  /** The kernel's 32-bit form, see `deviceNumber`. */
  readonly rdev: number
}

/** new_encode_dev of the kernel: 12 bits of major, 20 bits of minor. */
export const deviceNumber = (major: number, minor: number): number =>
  ((minor & 0xff) | ((major & 0xfff) << 8) | ((minor & ~0xff) << 12)) >>> 0

function writeU64(out: Buffer, value: number, at: number): void {
  out.writeUInt32LE(value % 0x1_0000_0000, at)
  out.writeUInt32LE(Math.floor(value / 0x1_0000_0000), at + 4)
}

/** Sizes, offsets and counts: exact to 2^53; anything larger from the kernel comes out larger than every file of ours. */
export const readU64 = (from: Buffer, at: number): number => from.readUInt32LE(at) + from.readUInt32LE(at + 4) * 0x1_0000_0000

/** Times before 1970 are negative: two's complement. */
function writeI64(out: Buffer, value: number, at: number): void {
  out.writeUInt32LE(((value % 0x1_0000_0000) + 0x1_0000_0000) % 0x1_0000_0000, at)
  out.writeInt32LE(Math.floor(value / 0x1_0000_0000), at + 4)
}

export function writeNode(out: Buffer, node: NodeId, at: number): void {
  out.writeUInt32LE(node.low, at)
  out.writeUInt32LE(node.high, at + 4)
}

export function writeAttributes(out: Buffer, attributes: Attributes, at: number): number {
  writeNode(out, attributes.node, at)
  writeU64(out, attributes.size, at + 8)
  writeU64(out, Math.ceil(attributes.size / 512), at + 16)
  for (let time = 0; time < 3; time++) {
    writeI64(out, attributes.mtimeSeconds, at + 24 + time * 8)
    out.writeUInt32LE(attributes.mtimeNanos, at + 48 + time * 4)
  }
  out.writeUInt32LE(attributes.mode, at + 60)
  out.writeUInt32LE(attributes.nlink, at + 64)
  out.writeUInt32LE(attributes.uid, at + 68)
  out.writeUInt32LE(attributes.gid, at + 72)
  out.writeUInt32LE(attributes.rdev, at + 76)
  out.writeUInt32LE(4096, at + 80)
  out.writeUInt32LE(0, at + 84)
  return ATTR_SIZE
}

/** `struct fuse_entry_out`; `validSeconds` holds for the name, `attributeSeconds` for the attributes. */
export function writeEntry(out: Buffer, attributes: Attributes, at: number, validSeconds: number, attributeSeconds: number): number {
  writeNode(out, attributes.node, at)
  writeU64(out, 0, at + 8)
  writeU64(out, validSeconds, at + 16)
  writeU64(out, attributeSeconds, at + 24)
  writeU64(out, 0, at + 32)
  writeAttributes(out, attributes, at + 40)
  return ENTRY_SIZE
}

export function writeAttrOut(out: Buffer, attributes: Attributes, at: number, validSeconds: number): number {
  writeU64(out, validSeconds, at)
  writeU64(out, 0, at + 8)
  writeAttributes(out, attributes, at + 16)
  return ATTR_OUT_SIZE
}

/** `struct fuse_open_out`: fh 0 (we keep no handles), open_flags. */
export function writeOpenOut(out: Buffer, flags: number, at: number): number {
  writeU64(out, 0, at)
  out.writeUInt32LE(flags, at + 8)
  out.writeUInt32LE(0, at + 12)
  return 16
}

/** `struct fuse_statfs_out`: a full, read-only file system of `bytes`. */
export function writeStatfs(out: Buffer, bytes: number, files: number, at: number): number {
  out.fill(0, at, at + 80)
  writeU64(out, Math.ceil(bytes / 4096), at)
  writeU64(out, files, at + 24)
  out.writeUInt32LE(4096, at + 40)
  out.writeUInt32LE(255, at + 44)
  out.writeUInt32LE(4096, at + 48)
  return 80
}

/** Bytes of one directory entry with a name of `nameLength` bytes, padded to 8. */
export const direntSize = (nameLength: number): number => (DIRENT_HEADER + nameLength + 7) & ~7

/** `struct fuse_dirent`; `next` is the position the kernel names to go on behind this entry. */
export function writeDirent(out: Buffer, node: NodeId, next: number, mode: number, name: Uint8Array, at: number): number {
  const size = direntSize(name.length)
  writeNode(out, node, at)
  writeU64(out, next, at + 8)
  out.writeUInt32LE(name.length, at + 16)
  out.writeUInt32LE((mode & S_IFMT) >>> 12, at + 20)
  out.set(name, at + DIRENT_HEADER)
  out.fill(0, at + DIRENT_HEADER + name.length, at + size)
  return size
}

/** The length field and error of a reply that already has its unique id. */
export function finishReply(out: Buffer, error: number, bodyLength: number): number {
  const length = OUT_HEADER + (error === 0 ? bodyLength : 0)
  out.writeUInt32LE(length, 0)
  out.writeInt32LE(-error, 4)
  return length
}
