// Uncompressed layers that this machine has as layers: their stream is the blob, bit for bit, so no second copy is made.
import { createHash } from 'node:crypto'
import { SkimmerError } from '../oci/errors.ts'
import type { BlockStore } from '../peer/block-store.ts'
import type { Resource } from '../peer/resource.ts'

const READ_BYTES = 1024 * 1024

export class LayerBlobs {
  readonly #byDiffId = new Map<string, Resource>()
  readonly #store: BlockStore
  readonly #added = (resource: Resource): void => {
    if (resource.id.startsWith('layer:') && resource.diffId !== undefined) this.#byDiffId.set(resource.diffId, resource)
  }
  readonly #removed = (id: string): void => {
    for (const [diffId, resource] of this.#byDiffId) if (resource.id === id) this.#byDiffId.delete(diffId)
  }
  #readers = 0

  constructor(components: { store: BlockStore }) {
    this.#store = components.store
    for (const resource of this.#store.list()) this.#added(resource)
    this.#store.on('added', this.#added)
    this.#store.on('removed', this.#removed)
  }

  stop(): void {
    this.#store.off('added', this.#added)
    this.#store.off('removed', this.#removed)
  }

  /** The layer whose uncompressed tar has this digest, when all of it is here and was proved to be that. */
  find(digest: string): Resource | undefined {
    const resource = this.#byDiffId.get(digest)
    return resource !== undefined && resource.whole && resource.proved && !resource.quarantined ? resource : undefined
  }

  size(resource: Resource): number {
    return resource.table.rawOffsets[resource.table.count]
  }

  /** Bytes `from` to `to` (excluded) of its stream; it stays on the disk meanwhile. All of it is checked against its digest before the last of them: DIGEST_MISMATCH. */
  async *read(resource: Resource, from: number, to: number): AsyncGenerator<Buffer, void, undefined> {
    const owner = `registry-proxy:${++this.#readers}`
    resource.pin(owner)
    const hash = from === 0 && to === this.size(resource) ? createHash('sha256') : undefined
    try {
      for (let position = from; position < to;) {
        const length = Math.min(READ_BYTES, to - position)
        const bytes = await resource.readRaw(position, length)
        position += length
        hash?.update(bytes)
        if (hash !== undefined && position === to && `sha256:${hash.digest('hex')}` !== resource.diffId) {
          resource.doubt()
          // Without its damaged blocks it is not whole, and not found here any more.
          for (let block = 0; block < resource.table.count; block++) await resource.check(block)
          throw new SkimmerError('DIGEST_MISMATCH', `${resource.id} is damaged on this disk: it is not ${resource.diffId} any more`, { details: { damaged: true } })
        }
        yield bytes
      }
    } finally {
      resource.unpin(owner)
    }
  }
}
