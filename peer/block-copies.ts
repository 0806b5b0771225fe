// The same block in another resource here: found by its hash, taken instead of fetched.
import type { Logger } from 'pino'
import { ABSENT } from './block-state.ts'
import { CopyIndex } from './copy-index.ts'
import type { Resource } from './resource.ts'

/** The block `block` of the resource that was asked about is also block `from` of `source`. */
export interface Copy { readonly block: number; readonly source: Resource; readonly from: number }

export class BlockCopies {
  readonly #index = new CopyIndex()
  readonly #byNumber = new Map<number, Resource>()
  readonly #logger: Logger
  constructor(components: { logger: Logger }) {
    this.#logger = components.logger
  }

  add(resource: Resource): void {
    this.#byNumber.set(resource.number, resource)
    this.#index.add(resource.number, resource.table, block => resource.knows(block))
  }

  /** Hashes of these blocks have come to be known. */
  learnt(resource: Resource, from: number, to: number): void {
    this.#index.learnt(resource.number, from, to)
  }

  delete(resource: Resource): void {
    this.#byNumber.delete(resource.number)
    this.#index.delete(resource.number)
  }

  /** For each of these blocks that some other resource has, one place to take it from. */
  find(resource: Resource, blocks: Iterable<number>): Copy[] {
    const found: Copy[] = []
    for (const block of blocks) {
      if (!resource.knows(block)) continue
      this.#index.find(resource.table, block, (number, from) => {
        const source = this.#byNumber.get(number)
        if (source === undefined || source === resource || source.quarantined || source.state[from] === ABSENT) return false
        found.push({ block, source, from })
        return true
      })
    }
    return found
  }

  /** Copies what can be found, verified on the way; answers the blocks that are in `resource` now. */
  async copy(resource: Resource, blocks: Iterable<number>, options: { priority?: 'demand' | 'background'; signal?: AbortSignal } = {}): Promise<number[]> {
    const copied: number[] = []
    for (const { block, source, from } of this.find(resource, blocks)) {
      if (options.signal?.aborted === true) break
      try {
        await resource.putBlock(block, await source.readPacked(from), options)
        copied.push(block)
      } catch (error) {
        this.#logger.debug({ resource: resource.id, block, source: source.id, err: error }, 'a block could not be copied from another resource')
      }
    }
    return copied
  }
}
