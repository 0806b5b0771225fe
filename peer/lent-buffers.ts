// Buffers for blocks, used again by those who say when they are done with one: a block is read from the disk or the network, and soon written.

/** So many bytes lie ready at most: what a few readers at full speed have in flight. */
const MOST_IDLE_BYTES = 8 * 1024 * 1024
/** Smaller ones are as cheap made anew; and sizes are rounded up to this, so that what one leaves fits another. */
const STEP_BYTES = 64 * 1024

const idle = new Map<number, ArrayBuffer[]>()
const lent = new WeakSet<ArrayBufferLike>()
let idleBytes = 0

/** Bytes that lie ready: in use by nobody, and no garbage. */
export const idleBufferBytes = (): number => idleBytes

/** `length` bytes of anything. Nobody must give it back: without that it is garbage like any other. */
export function borrowBuffer(length: number): Buffer {
  if (length < STEP_BYTES) return Buffer.allocUnsafeSlow(length)
  const size = Math.ceil(length / STEP_BYTES) * STEP_BYTES
  let bytes = idle.get(size)?.pop()
  if (bytes === undefined) bytes = Buffer.allocUnsafeSlow(size).buffer as ArrayBuffer
  else idleBytes -= size
  lent.add(bytes)
  return Buffer.from(bytes, 0, length)
}

/** Who has a block for itself alone, and will not look at it again, says so; also for a part of it. Buffers that were not borrowed are left alone. */
export function giveBack(buffer: Uint8Array): void {
  const bytes = buffer.buffer
  if (!lent.delete(bytes)) return
  const size = bytes.byteLength
  if (idleBytes + size > MOST_IDLE_BYTES) {
    // What lies there may be of sizes that nobody wants any more: it goes, the newest is kept.
    if (idle.get(size)?.length) return
    idle.clear()
    idleBytes = 0
  }
  const same = idle.get(size)
  if (same === undefined) idle.set(size, [bytes as ArrayBuffer])
  else same.push(bytes as ArrayBuffer)
  idleBytes += size
}
