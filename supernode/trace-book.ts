// Start traces: what nodes report that the first seconds of an image's start read, merged per image, and handed to the next node.
import { z } from 'zod'
import type { Trace } from '../peer/control.ts'
import { DEFAULT_MAX_TRACES, DEFAULT_MAX_TRACE_BLOCKS } from './defaults.ts'
import type { SharedState, StateSpace } from './shared-state.ts'

/** Per block: index into resources, block, how many traces had it, mean place among the blocks of a start (0 first, 1 last). */
const mergedSchema = z.object({
  resources: z.array(z.string()), runs: z.number().int().min(1), lastUse: z.number(),
  blocks: z.array(z.tuple([z.number().int().min(0), z.number().int().min(0), z.number().min(0), z.number().min(0)])),
})
type Merged = z.infer<typeof mergedSchema>

/** Old starts fade: an image is started in new ways, and its counts must be able to follow. */
const MAX_RUNS = 32
/** A block that fewer starts than this share have read is not worth sending ahead. */
const WORTHWHILE = 0.15
const MAX_RESOURCES = 512

export class TraceBook {
  readonly #traces: StateSpace<Merged>
  readonly #clock: () => number
  readonly #maxBlocks: number
  readonly #maxTraces: number
  #count: number | undefined

  constructor(components: { state: SharedState; clock?: () => number }, options: { maxBlocks?: number; maxTraces?: number } = {}) {
    this.#traces = components.state.space('traces', mergedSchema)
    this.#clock = components.clock ?? Date.now
    this.#maxBlocks = options.maxBlocks ?? DEFAULT_MAX_TRACE_BLOCKS
    this.#maxTraces = options.maxTraces ?? DEFAULT_MAX_TRACES
  }

  /** Add one start. */
  async put(image: string, trace: Trace): Promise<void> {
    if (trace.blocks.length === 0) return
    if ((await this.#traces.get(image)) === undefined) await this.#makeRoom()
    await this.#traces.update(image, known => this.#merged(known, trace))
  }

  /** What a start will likely read, in the order in which it will. */
  async get(image: string): Promise<Trace | undefined> {
    const merged = await this.#traces.get(image)
    if (merged === undefined) return undefined
    const blocks = merged.blocks.filter(([, , count]) => count / merged.runs >= WORTHWHILE)
    blocks.sort((a, b) => a[3] - b[3])
    return { resources: merged.resources, blocks: blocks.map(([resource, block]) => [resource, block]) }
  }

  #merged(known: Merged | undefined, trace: Trace): Merged {
    const fade = known !== undefined && known.runs >= MAX_RUNS ? 0.5 : 1
    const resources = [...(known?.resources ?? [])]
    const at = new Map(resources.map((resource, index) => [resource, index]))
    const blocks = new Map<string, [number, number, number, number]>()
    for (const [resource, block, count, place] of known?.blocks ?? []) blocks.set(`${resource} ${block}`, [resource, block, count * fade, place])
    const seen = new Set<string>()
    for (const [position, [resource, block]] of trace.blocks.entries()) {
      const name = trace.resources[resource]
      let index = at.get(name)
      if (index === undefined) {
        if (resources.length >= MAX_RESOURCES) continue
        at.set(name, (index = resources.push(name) - 1))
      }
      const key = `${index} ${block}`
      if (seen.has(key)) continue
      seen.add(key)
      const place = position / trace.blocks.length
      const old = blocks.get(key)
      if (old === undefined) blocks.set(key, [index, block, 1, place])
      else blocks.set(key, [index, block, old[2] + 1, old[3] + (place - old[3]) / (old[2] + 1)])
    }
    let kept = [...blocks.values()]
    if (kept.length > this.#maxBlocks) kept = kept.sort((a, b) => b[2] - a[2]).slice(0, this.#maxBlocks)
    return { resources, runs: (known === undefined ? 0 : Math.max(1, Math.round(known.runs * fade))) + 1, lastUse: this.#clock(), blocks: kept }
  }

  async #makeRoom(): Promise<void> {
    if (this.#count === undefined) {
      this.#count = 0
      for await (const [image] of this.#traces.entries()) if (image !== undefined) this.#count++
    }
    if (this.#count >= this.#maxTraces) {
      // Rare: a tenth goes at once, the longest untouched first.
      const ages: [string, number][] = []
      for await (const [image, merged] of this.#traces.entries()) ages.push([image, merged.lastUse])
      ages.sort((a, b) => a[1] - b[1])
      const going = ages.slice(0, Math.max(1, Math.ceil(this.#maxTraces / 10)))
      for (const [image] of going) await this.#traces.delete(image)
      this.#count = ages.length - going.length
    }
    this.#count++
  }
}
