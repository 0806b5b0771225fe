// EROFS directories: blocks of entries followed by their names, sorted bytewise over the whole directory with `.` and `..` among them.
import { BLOCK_SIZE, DIRENT_LENGTH } from './erofs-format.ts'
import type { TreeInode } from './tree.ts'

export type Entry = readonly [name: string, inode: number]

const TYPE_CODES: Record<TreeInode['type'], number> = { file: 1, dir: 2, char: 3, block: 4, fifo: 5, symlink: 7 }

/** A directory's entries, sorted by name, with `.` and `..` where they belong: some names sort before them. */
export function withDots(entries: readonly Entry[], self: number, parent: number): readonly Entry[] {
  if (entries.length === 0 || entries[0][0] > '..') return [['.', self], ['..', parent], ...entries]
  const all = [...entries, ['.', self], ['..', parent]] as Entry[]
  return all.sort((a, b) => (a[0] < b[0] ? -1 : 1))
}

/** Bytes of a directory of these entries. Each block but the last counts whole, the last one as far as it is used. */
export function directoryLength(entries: readonly Entry[]): number {
  let start = 0
  let used = 0
  for (const [name] of entries) {
    const needed = DIRENT_LENGTH + name.length
    if (used + needed > BLOCK_SIZE) {
      start += BLOCK_SIZE
      used = 0
    }
    used += needed
  }
  return start + used
}

/** The entry after the last one that fits in the block that begins with entry `from`. */
export function directoryBlockEnd(entries: readonly Entry[], from: number): number {
  let to = from
  for (let used = 0; to < entries.length; to++) {
    used += DIRENT_LENGTH + entries[to][0].length
    if (used > BLOCK_SIZE) break
  }
  return to
}

/**
 * Writes the block of entries that begins with entry `from`, and returns the entry that the next block begins with.
 * `target` must be zeroed from `at` on.
 */
export function writeDirectoryBlock(target: Buffer, at: number, entries: readonly Entry[], from: number, inodes: readonly TreeInode[], nids: Uint32Array): number {
  const to = directoryBlockEnd(entries, from)
  let entryAt = at
  let nameAt = at + (to - from) * DIRENT_LENGTH
  for (let i = from; i < to; i++) {
    const [name, inode] = entries[i]
    target.writeUInt32LE(nids[inode], entryAt) // the upper half of the 64 bits stays zero
    target.writeUInt16LE(nameAt - at, entryAt + 8)
    target[entryAt + 10] = TYPE_CODES[inodes[inode].type]
    entryAt += DIRENT_LENGTH
    for (let c = 0; c < name.length; c++) target[nameAt++] = name.charCodeAt(c)
  }
  return to
}
