// Which blocks reads touch, in order of first touch: FUSE threads append to one ring in shared memory, the daemon drains it now and then.

/** Entries of {slot, from, to}; a start touches hundreds to a few thousand ranges between two drains. */
const CAPACITY = 16_384
const WRITTEN = 0
const HEADER = 1

export interface TouchLog { readonly cells: Int32Array<SharedArrayBuffer> }

export const newTouchLog = (): TouchLog => ({ cells: new Int32Array(new SharedArrayBuffer((HEADER + CAPACITY * 2) * 4)) })

/**
 * Note that `block` of the resource in `slot` was touched, once: `touched` has a byte a block. When the drain falls behind by a whole
 * ring, the oldest are lost: a trace is advice.
 */
export function noteTouch(log: TouchLog, touched: Uint8Array<SharedArrayBuffer>, slot: number, block: number): void {
  if (touched[block] !== 0 || Atomics.exchange(touched, block, 1) !== 0) return
  const at = (Atomics.add(log.cells, WRITTEN, 1) & (CAPACITY - 1)) * 2 + HEADER
  Atomics.store(log.cells, at + 1, block)
  // The slot goes last and is never 0: a drain that meets 0 knows that the writer is not done.
  Atomics.store(log.cells, at, slot)
}

/** Reads what was appended since `position`; returns the new position. Slots are those of `noteTouch`. */
export function drainTouches(log: TouchLog, position: number, each: (slot: number, block: number) => void): number {
  const written = Atomics.load(log.cells, WRITTEN)
  let at = (written - position) | 0
  at = at > CAPACITY ? (written - CAPACITY) | 0 : position
  while (at !== written) {
    const cell = (at & (CAPACITY - 1)) * 2 + HEADER
    const slot = Atomics.exchange(log.cells, cell, 0)
    if (slot === 0) break
    each(slot, Atomics.load(log.cells, cell + 1))
    at = (at + 1) | 0
  }
  return at
}
