// EROFS on disk: the numbers of the format, as the kernel's erofs_fs.h has them. Everything is little-endian.

/** A tar aligns file data to 512 bytes; blocks of that size let chunks point right into it. */
export const BLOCK_BITS = 9
export const BLOCK_SIZE = 1 << BLOCK_BITS

export const SUPERBLOCK_OFFSET = 1024
export const SUPERBLOCK_LENGTH = 128
export const SUPERBLOCK_MAGIC = 0xe0f5e1e2
export const CHECKSUM_SEED = 0x5045b54a
export const COMPAT_CHECKSUM = 1
export const COMPAT_MTIME = 2
export const INCOMPAT_CHUNKED = 4
export const INCOMPAT_DEVICE_TABLE = 8

export const DEVICE_SLOT_LENGTH = 128
export const DEVICE_SLOTS_OFFSET = SUPERBLOCK_OFFSET + SUPERBLOCK_LENGTH

/** An inode's number is its place in units of this. */
export const INODE_SLOT = 32
export const COMPACT_LENGTH = 32
export const EXTENDED_LENGTH = 64
export const LAYOUT_PLAIN = 0
export const LAYOUT_INLINE = 2
export const LAYOUT_CHUNKED = 4

/** Chunk format: the low bits are log2(chunk / block); this flag says entries of 8 bytes that name a device. */
export const CHUNK_INDEXES = 0x20
export const CHUNK_ENTRY_LENGTH = 8
export const MAX_CHUNK_BITS = BLOCK_BITS + 31
export const NULL_BLOCK = 0xffffffff

export const DIRENT_LENGTH = 12
export const XATTR_HEADER_LENGTH = 12
export const XATTR_ENTRY_LENGTH = 4

export const alignUp = (value: number, unit: number): number => Math.ceil(value / unit) * unit
