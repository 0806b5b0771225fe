// How large the blocks of a file or blob are.

const MIB = 1024 * 1024
const GIB = 1024 * MIB
/** Bounds of what may be wished for, bytes. */
export const SMALLEST_BLOCK = 64 * 1024
export const LARGEST_BLOCK = 4 * MIB
/** Tables lie in memory whole: small blocks of a long stream must not make a large one. */
const MOST_BLOCKS = 262_144

/**
 * Bytes a block for a stream of `length` bytes (undefined: not known): 512 KiB up to 1 GiB, 2 MiB up to 4 GiB, else 4 MiB, so that tables stay small and a
 * block is still a short wait. Six nodes trade 512 KiB blocks faster than those of 256 KiB (more work for each) and of 1 MiB (longer until the first is passed
 * on). `wanted` is rounded up to a power of two from 64 KiB to 4 MiB, and further while there would be more than 262,144 blocks. Everyone comes to the same
 * answer: a file's table, and so its identity, depends on it.
 */
export function blockBytesFor(length: number | undefined, wanted?: number): number {
  if (wanted !== undefined) {
    let bytes = SMALLEST_BLOCK
    while ((bytes < wanted || (length ?? 0) / bytes > MOST_BLOCKS) && bytes < LARGEST_BLOCK) bytes *= 2
    return bytes
  }
  if (length === undefined || length <= GIB) return MIB / 2
  return length <= 4 * GIB ? 2 * MIB : LARGEST_BLOCK
}

/**
 * Bytes in a part of a stream whose length its source does not tell; the last one is shorter. Everyone cuts at the same places, because a
 * part's id depends on its number alone.
 */
export const PART_BYTES = 8 * MIB
