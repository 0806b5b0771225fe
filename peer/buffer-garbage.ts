// Keeps the garbage of a transfer cheap: a small collection every few megabytes, before V8 starts a large one on its own.
import { getHeapStatistics, setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { idleBufferBytes } from './lent-buffers.ts'

/**
 * Every megabyte that moves leaves megabytes of dead buffers (socket reads, decrypted messages, frames). Their bytes are
 * outside of V8's heap and only their small handles in it, so the young generation hardly fills, nothing is collected, and at
 * 64 MB of outside memory V8 walks the whole heap: 30-60 ms each time, a dozen times a second. Measured on two cores,
 * 100 KiB blocks over one noise connection: 8-10 CPU seconds a GB on each end without this, 3-4 with it, at two to three times the speed; from 16 MiB on it does not help.
 * Counted in bytes of payload, of which about four times as much was allocated.
 */
const EVERY_BYTES = 3 * 1024 * 1024

/**
 * Buffers that were still in use at two small collections are dead weight until V8 walks the whole heap, for which it waits until they are 64 MB.
 * That is too much for a node that is to stay small: the walk (20-30 ms, five for a gigabyte) is made at so much.
 */
const MOST_OLD_BYTES = 8 * 1024 * 1024

type Collect = (options: { type: 'minor' | 'major'; execution: 'sync'; flavor?: 'last-resort' }) => void

let moved = 0
let collect: Collect | undefined
/** Least memory outside of the heap since the last walk, without buffers that lie ready: those are in no one's way, and no garbage. */
let least = Infinity

/** Payload bytes were received or sent. */
export function noteTransfer(bytes: number): void {
  moved += bytes
  if (moved < EVERY_BYTES) return
  moved = 0
  collect ??= collector()
  collect({ type: 'minor', execution: 'sync' })
  const outside = getHeapStatistics().external_memory - idleBufferBytes()
  if (outside - least > MOST_OLD_BYTES) {
    collect({ type: 'major', execution: 'sync' })
    least = getHeapStatistics().external_memory - idleBufferBytes()
  } else least = Math.min(least, outside)
}

/**
 * What only the start needed goes back to the system: sources, code that ran once, and the holes between what stays, 15 MB in all. Takes 60-90 ms, in which
 * this thread does nothing else.
 */
export function forgetStart(): void {
  collect ??= collector()
  collect({ type: 'major', execution: 'sync', flavor: 'last-resort' })
}

/**
 * V8's own function to collect garbage. It is there in every Node; only its name is hidden. From then on the walks are made here alone: V8 would begin its own,
 * step by step, whenever outside memory grew a little, and every small collection in between must then finish the whole walk at once.
 * Measured: 25 walks for a gigabyte with it, 4 without, a fifth of the processor time of a transfer.
 */
function collector(): Collect {
  setFlagsFromString('--no-incremental-marking')
  setFlagsFromString('--heap-growing-percent=100') // else V8 walks once more when a twentieth was added, and it counts the buffers; with 50 once in each pull of 200 MB
  setFlagsFromString('--no-concurrent-array-buffer-sweeping') // what is gone is not counted any more
  setFlagsFromString('--no-parallel-scavenge') // so little is collected that waking the helpers takes longer: 1.2 ms each time, 0.45 without
  setFlagsFromString('--expose-gc')
  const gc = runInNewContext('gc') as Collect
  setFlagsFromString('--no-expose-gc')
  return gc
}
