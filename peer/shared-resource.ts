// Reading a resource from any thread, synchronously: the hot path of every FUSE answer.
import * as fs from 'node:fs'
import { blockAt, CODEC_RAW } from '../image/block-table.ts'
import type { BlockTable } from '../image/block-table.ts'
import { isBlock, unpackBlock } from './block-codec.ts'
import { copyHeld } from './held-blocks.ts'
import type { HeldBlocks } from './held-blocks.ts'
import { ABSENT, STORED, UNPACKED, VERIFIED } from './block-state.ts'

/** All a thread needs to answer reads. It survives structured cloning; fds are process-wide, so threads use them as they are. */
export interface SharedResource {
  readonly id: string
  /** Unique in this process, never reused: the key of a thread's cache. */
  readonly number: number
  readonly table: BlockTable
  readonly state: Uint8Array<SharedArrayBuffer>
  readonly packFd: number
  /** [RAW_FD]: the raw file's fd or -1; [READERS]: how many reads are inside right now. */
  readonly rawFdCell: Int32Array<SharedArrayBuffer>
  /** Milliseconds since 1970 of the last read, for the LRU. */
  readonly lastUse: Float64Array<SharedArrayBuffer>
  readonly held: HeldBlocks
}
export const RAW_FD = 0
export const READERS = 1

/** Blocks `from` to `to`, `to` not included. */
export interface MissingBlocks { readonly from: number; readonly to: number }

const DEFAULT_CACHE_BYTES = 64 * 1024 * 1024

/** This thread's unpacked blocks, least recently used first: a Map keeps the order of insertion. */
const cache = new Map<number, Uint8Array>()
let cacheBytes = 0
let cacheCapBytes = DEFAULT_CACHE_BYTES
let scratch = Buffer.allocUnsafeSlow(512 * 1024)

/** How many bytes of unpacked blocks this thread may keep; 64 MiB unless told. Each thread has its own cache. */
export function setUnpackedCacheBytes(bytes: number): void {
  cacheCapBytes = bytes
  trimCache()
}

function trimCache(): void {
  for (const [key, raw] of cache) {
    if (cacheBytes <= cacheCapBytes) return
    cache.delete(key)
    cacheBytes -= raw.length
  }
}

// 2^23 blocks at most, so that the key is an exact integer for 2^30 resources.
const cacheKey = (shared: SharedResource, block: number): number => shared.number * 0x800000 + block

/**
 * Reads `length` bytes of the stream from `offset` into `into` at `intoOffset`, without waiting for anything but the disk.
 * Answers the number of bytes, which is less than `length` only at the end of the stream, or the ranges of blocks that
 * must be brought (and verified) first; `into` may then hold part of the answer. Never throws for what is on the disk:
 * a block that cannot be read or unpacked counts as missing and is marked for verification.
 */
export function readSharedSync(shared: SharedResource, offset: number, length: number, into: Uint8Array, intoOffset: number): number | MissingBlocks[] {
  const { table, state, rawFdCell } = shared
  const end = Math.min(offset + length, table.rawOffsets[table.count])
  if (!(end > offset) || offset < 0) return 0
  shared.lastUse[0] = Date.now()
  // Counted before anything is looked at: whoever withdraws an fd first unpublishes it, then waits for zero readers.
  Atomics.add(rawFdCell, READERS, 1)
  try {
    const first = blockAt(table, offset)
    let missing = missingBlocks(shared, first, end)
    if (missing !== undefined) return missing
    let position = offset
    for (let block = first; position < end;) {
      // One read answers as many blocks of the raw file as follow each other.
      let last = block
      if (Atomics.load(state, block) === UNPACKED) {
        while (table.rawOffsets[last + 1] < end && Atomics.load(state, last + 1) === UNPACKED) last++
        const until = Math.min(end, table.rawOffsets[last + 1])
        const rawFd = Atomics.load(rawFdCell, RAW_FD)
        if (rawFd >= 0 && readFully(rawFd, into, intoOffset + position - offset, until - position, position)) {
          position = until
          block = last + 1
          continue
        }
        // A raw file that was dropped this moment leaves the pack; one that cannot be read leaves blocks to verify again.
        if (rawFd >= 0) for (let bad = block; bad <= last; bad++) Atomics.compareExchange(state, bad, UNPACKED, STORED)
        last = block
      }
      const until = Math.min(end, table.rawOffsets[block + 1])
      const done = readBlock(shared, block, position - table.rawOffsets[block], until - position, into, intoOffset + position - offset)
      if (!done) missing = addMissing(missing, block)
      position = until
      block = last + 1
    }
    return missing ?? end - offset
  } finally {
    Atomics.sub(rawFdCell, READERS, 1)
  }
}

function addMissing(missing: { from: number; to: number }[] | undefined, block: number): { from: number; to: number }[] {
  if (missing === undefined) return [{ from: block, to: block + 1 }]
  const last = missing[missing.length - 1]
  if (last.to === block) last.to = block + 1
  else missing.push({ from: block, to: block + 1 })
  return missing
}

function missingBlocks(shared: SharedResource, first: number, end: number): { from: number; to: number }[] | undefined {
  const { table, state, held } = shared
  let missing: { from: number; to: number }[] | undefined
  for (let block = first; block < table.count && table.rawOffsets[block] < end; block++) {
    if (Atomics.load(state, block) < VERIFIED && Atomics.load(held.at, block) === 0) missing = addMissing(missing, block)
  }
  return missing
}

/** Part of one block, from the pack or from memory. */
function readBlock(shared: SharedResource, block: number, start: number, length: number, into: Uint8Array, intoOffset: number): boolean {
  const { table, state, packFd } = shared
  const key = cacheKey(shared, block)
  const cached = cache.get(key)
  if (cached !== undefined) {
    cache.delete(key)
    cache.set(key, cached)
    into.set(cached.subarray(start, start + length), intoOffset)
    return true
  }
  if (Atomics.load(state, block) < VERIFIED) return readHeld(shared, block, start, length, into, intoOffset)
  const packedAt = table.packedOffsets[block]
  if (table.codecs[block] === CODEC_RAW) return readFully(packFd, into, intoOffset, length, packedAt + start) || distrust(state, block)
  const packedLength = table.packedOffsets[block + 1] - packedAt
  const packed = scratchOf(packedLength)
  if (!readFully(packFd, packed, 0, packedLength, packedAt)) return distrust(state, block)
  const raw = tryUnpack(shared, block, packed)
  if (raw === undefined) return distrust(state, block)
  into.set(raw.subarray(start, start + length), intoOffset)
  // A block that one read takes whole is in the kernel's page cache now; only partly read ones will be asked for again.
  if (length < raw.length && raw.length <= cacheCapBytes) {
    cache.set(key, raw)
    cacheBytes += raw.length
    trimCache()
  }
  return true
}

function readHeld(shared: SharedResource, block: number, start: number, length: number, into: Uint8Array, intoOffset: number): boolean {
  const { table, held } = shared
  const packed = copyHeld(held, table, block, scratchOf(table.packedOffsets[block + 1] - table.packedOffsets[block]))
  const raw = packed !== undefined && isBlock(table, block, packed) ? tryUnpack(shared, block, packed) : undefined
  if (raw === undefined) {
    Atomics.store(held.at, block, 0)
    return false
  }
  into.set(raw.subarray(start, start + length), intoOffset)
  return true
}

function tryUnpack(shared: SharedResource, block: number, packed: Buffer): Uint8Array | undefined {
  try {
    return unpackBlock(shared.id, shared.table, block, packed)
  } catch {
    return undefined
  }
}

/** The disk did not give back what was verified: the block is only "stored" now, and whoever brings it verifies it first. */
function distrust(state: Uint8Array<SharedArrayBuffer>, block: number): false {
  const now = Atomics.load(state, block)
  if (now !== ABSENT) Atomics.compareExchange(state, block, now, STORED)
  return false
}

function scratchOf(length: number): Buffer {
  if (scratch.length < length) scratch = Buffer.allocUnsafeSlow(length)
  return scratch.length === length ? scratch : scratch.subarray(0, length)
}

function readFully(fd: number, into: Uint8Array, intoOffset: number, length: number, position: number): boolean {
  try {
    let done = 0
    while (done < length) {
      const got = fs.readSync(fd, into, intoOffset + done, length - done, position + done)
      if (got === 0) return false
      done += got
    }
    return true
  } catch {
    return false
  }
}
