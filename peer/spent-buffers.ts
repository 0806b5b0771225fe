// Buffers that wait to be sent, counted down while their bytes go: who made one hears when its last byte went.
//
// What waits in a slow connection outlives small collections of garbage, and is dead weight until V8 walks the whole heap, which costs 50-100 ms of a processor.
// Here nothing needs to be found dead: the moment is known.

interface Waiting { left: number; readonly done: (buffer: ArrayBuffer) => void }

const waiting = new WeakMap<ArrayBufferLike, Waiting>()

/**
 * `done` runs once, as soon as all bytes of `buffer` were spent, each once. Where its stream ends before, it does not run, and the buffer is garbage like any
 * other. Nobody else may look at the buffer after that; one that shares its memory with others cannot be waited for.
 */
export function whenSpent(buffer: Uint8Array, done: (buffer: ArrayBuffer) => void): void {
  waiting.set(buffer.buffer, { left: buffer.byteLength, done })
}

/** These bytes are not needed any more. Of buffers that nobody waits for it is no news. */
export function spend(parts: Uint8Array | Iterable<Uint8Array>): void {
  if (parts instanceof Uint8Array) spendPart(parts)
  else for (const part of parts) spendPart(part)
}

function spendPart(part: Uint8Array): void {
  spendBytes(part, part.byteLength)
}

/** So many bytes of the buffer that `part` is of are not needed any more. */
export function spendBytes({ buffer }: Uint8Array, bytes: number): void {
  const found = waiting.get(buffer)
  if (found === undefined) return
  found.left -= bytes
  if (found.left > 0) return
  waiting.delete(buffer)
  found.done(buffer as ArrayBuffer)
}

/** Its memory goes back to the system at once; who still has it sees an empty one. */
export const release = (buffer: ArrayBuffer): void => void buffer.transfer(0)
