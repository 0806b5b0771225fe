// Blocks that found no room on the disk: a ring of shared memory from which FUSE threads can still read them once.
import type { BlockTable } from '../image/block-table.ts'

/** What a thread needs to find a held block: where in the ring each block starts, plus one; 0 is nowhere. */
export interface HeldBlocks {
  readonly ring: Uint8Array<SharedArrayBuffer>
  readonly at: Int32Array<SharedArrayBuffer>
}

/**
 * The ring overwrites its oldest blocks without telling anyone: a reader copies the bytes out and compares their sha256
 * with the table, so a block that was overwritten meanwhile is simply missing again. Pages cost memory only once used.
 */
export class HeldRing {
  readonly bytes: Uint8Array<SharedArrayBuffer>
  #next = 0
  constructor(capBytes: number) {
    this.bytes = new Uint8Array(new SharedArrayBuffer(capBytes))
  }

  /** Keeps a verified block until newer ones need its place. Answers false when it is larger than the ring. */
  hold(at: Int32Array<SharedArrayBuffer>, block: number, packed: Uint8Array): boolean {
    if (packed.length > this.bytes.length) return false
    if (this.#next + packed.length > this.bytes.length) this.#next = 0
    this.bytes.set(packed, this.#next)
    Atomics.store(at, block, this.#next + 1)
    this.#next += packed.length
    return true
  }
}

/** Copies a held block into `scratch` and answers a view of it, or undefined. The caller must verify what it got. */
export function copyHeld(held: HeldBlocks, table: BlockTable, block: number, scratch: Buffer): Buffer | undefined {
  const start = Atomics.load(held.at, block) - 1
  if (start < 0) return undefined
  const length = table.packedOffsets[block + 1] - table.packedOffsets[block]
  scratch.set(held.ring.subarray(start, start + length))
  return scratch.subarray(0, length)
}
