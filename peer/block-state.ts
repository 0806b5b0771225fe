// The states of a block, one byte each in shared memory.

/** Not here. */
export const ABSENT = 0
/** In the pack, not verified since the last start (or doubted since): verify before use. */
export const STORED = 1
/** In the pack and verified. */
export const VERIFIED = 2
/** Verified, and also in the raw file. */
export const UNPACKED = 3
