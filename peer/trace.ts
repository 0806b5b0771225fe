// Traces: which blocks the first seconds of a start read, recorded on a node, merged at the supernode, fetched first by the next node.
import type { Trace } from './control.ts'

/** A trace is worth at most so many blocks: past that it is no longer the start. */
const MAX_BLOCKS = 20_000

/** Records one start: the first read of each block, in order. */
export class TraceRecorder {
  readonly #resources: string[] = []
  readonly #numbers = new Map<string, number>()
  readonly #seen = new Set<number>()
  readonly #blocks: [number, number][] = []
  #timer: NodeJS.Timeout | undefined
  readonly #finished: (trace: Trace) => void

  /** `finished` gets the trace once, `seconds` after now, or at finish(); never an empty one. */
  constructor(options: { seconds?: number }, finished: (trace: Trace) => void) {
    this.#finished = finished
    this.#timer = setTimeout(() => this.finish(), (options.seconds ?? 10) * 1000)
    this.#timer.unref()
  }

  /** A reader read blocks `from` to `to` (exclusive), local ones too. */
  read(resource: string, from: number, to = from + 1): void {
    if (this.#timer === undefined) return
    let number = this.#numbers.get(resource)
    if (number === undefined) {
      if (this.#resources.length >= 512) return
      number = this.#resources.length
      this.#resources.push(resource)
      this.#numbers.set(resource, number)
    }
    for (let block = from; block < to && this.#blocks.length < MAX_BLOCKS; block++) {
      const key = number * 0x100000000 + block
      if (this.#seen.has(key)) continue
      this.#seen.add(key)
      this.#blocks.push([number, block])
    }
  }

  finish(): void {
    if (this.#timer === undefined) return
    clearTimeout(this.#timer)
    this.#timer = undefined
    if (this.#blocks.length > 0) this.#finished({ resources: this.#resources, blocks: this.#blocks })
  }
}

/**
 * The union of traces of one image, ordered by mean relative position; what more starts read comes first among equals.
 * Bounded: what fewest starts read is dropped.
 */
export function mergeTraces(traces: readonly Trace[], maxBlocks = MAX_BLOCKS): Trace {
  const merged = new Map<string, { resource: string; block: number; sum: number; count: number }>()
  for (const trace of traces) {
    trace.blocks.forEach(([number, block], position) => {
      const resource = trace.resources[number]
      const key = `${resource}\n${block}`
      const entry = merged.get(key) ?? { resource, block, sum: 0, count: 0 }
      entry.sum += position / trace.blocks.length
      entry.count++
      merged.set(key, entry)
    })
  }
  const kept = [...merged.values()].sort((a, b) => b.count - a.count || a.sum / a.count - b.sum / b.count).slice(0, maxBlocks)
  kept.sort((a, b) => a.sum / a.count - b.sum / b.count || b.count - a.count)
  const resources = [...new Set(kept.map(({ resource }) => resource))]
  const numbers = new Map(resources.map((resource, number) => [resource, number]))
  return { resources, blocks: kept.map(({ resource, block }) => [numbers.get(resource)!, block]) }
}

/** A trace as runs of blocks of one resource after another, in the trace's order. */
export function traceRuns(trace: Trace): { resource: string; blocks: number[] }[] {
  const runs: { resource: string; blocks: number[] }[] = []
  for (const [number, block] of trace.blocks) {
    const last = runs.at(-1)
    if (last?.resource === trace.resources[number]) last.blocks.push(block)
    else runs.push({ resource: trace.resources[number], blocks: [block] })
  }
  return runs
}
