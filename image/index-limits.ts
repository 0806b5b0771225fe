// Bounds of a layer index, the same for who writes one and who reads one from an enemy.

/** Entries of one layer; extents of all its sparse files; a reader makes an object of each. */
export const MAX_FILES = 2 ** 21
export const MAX_EXTENTS = 2 ** 21
/** All paths and link targets, written out: front coding could blow a small index up to terabytes. */
export const MAX_NAME_BYTES = 512 * 1024 * 1024
/** The file table before compression. */
export const MAX_FILE_TABLE_BYTES = 512 * 1024 * 1024
/** Bytes of raw data in a block; the cutter makes blocks of at most 256 KiB. */
export const MAX_BLOCK_RAW_LENGTH = 1024 * 1024
/** 2^20 blocks of 256 KiB are 256 GiB. */
export const MAX_BLOCKS = 2 ** 20
export const MAX_STREAM_LENGTH = 2 ** 40
/** Linux' XATTR_SIZE_MAX is 64 KiB for a value and as much for all names; a pax header holds at most 1 MiB of them. */
export const MAX_XATTRS = 4096
/** Attributes in all different sets of a layer: a reader makes an object of each. */
export const MAX_XATTR_TOTAL = 2 ** 21
export const MAX_XATTR_BYTES = 1024 * 1024
export const MAX_ID = 2 ** 32 - 1
/** A signed difference of two times within ±2^50. */
export const MAX_TIME_STEP = 2 ** 51
