// Buffers for blocks that are read from the disk, used again by those who say when they are done with one.

/** So many bytes lie ready at most: what a few readers at full speed have in flight. */
const MOST_IDLE_BYTES = 8 * 1024 * 1024
/** Smaller ones are as cheap made anew. */
const LEAST_BYTES = 64 * 1024

const idle = new Map<number, ArrayBuffer[]>()
const lent = new WeakSet<ArrayBufferLike>()
let idleBytes = 0

/** `length` bytes of anything. Nobody must give it back: without that it is garbage like any other. */
export function borrowBuffer(length: number): Buffer {
  if (length < LEAST_BYTES) return Buffer.allocUnsafeSlow(length)
  let bytes = idle.get(length)?.pop()
  if (bytes === undefined) bytes = Buffer.allocUnsafeSlow(length).buffer as ArrayBuffer
  else idleBytes -= length
  lent.add(bytes)
  return Buffer.from(bytes, 0, length)
}

/** Who has a block for itself alone, and will not look at it again, says so. Buffers that were not borrowed are left alone. */
export function giveBack(buffer: Uint8Array): void {
  const bytes = buffer.buffer
  if (!lent.delete(bytes)) return
  const length = bytes.byteLength
  if (idleBytes + length > MOST_IDLE_BYTES) return
  const same = idle.get(length)
  if (same === undefined) {
    // Sizes that nobody reads any more make room: a file's last block has a size of its own.
    if (idle.size >= 8) {
      for (const [size, buffers] of idle) idleBytes -= size * buffers.length
      idle.clear()
    }
    idle.set(length, [bytes as ArrayBuffer])
  } else same.push(bytes as ArrayBuffer)
  idleBytes += length
}
