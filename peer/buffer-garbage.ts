// Keeps the garbage of a transfer cheap: a small collection every few megabytes, before V8 starts a large one on its own.
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

/**
 * Every megabyte that moves leaves megabytes of dead buffers (socket reads, decrypted messages, frames). Their bytes are
 * outside of V8's heap and only their small handles in it, so the young generation hardly fills, nothing is collected, and at
 * 64 MB of outside memory V8 walks the whole heap: 30-60 ms each time, a dozen times a second. Measured on two cores,
 * 100 KiB blocks over one noise connection: 8-10 CPU seconds a GB on each end without this, 3-4 with it, at two to three times the speed; from 16 MiB on it does not help.
 * Counted in bytes of payload, of which about four times as much was allocated.
 */
const EVERY_BYTES = 3 * 1024 * 1024

let moved = 0
let collect: (() => void) | undefined

/** Payload bytes were received or sent. */
export function noteTransfer(bytes: number): void {
  moved += bytes
  if (moved < EVERY_BYTES) return
  moved = 0
  collect ??= youngCollector()
  collect()
}

/** V8's own function to collect the young generation. It is there in every Node; only its name is hidden. */
function youngCollector(): () => void {
  setFlagsFromString('--expose-gc')
  const gc = runInNewContext('gc') as (options: { type: 'minor'; execution: 'sync' }) => void
  setFlagsFromString('--no-expose-gc')
  return () => gc({ type: 'minor', execution: 'sync' })
}
