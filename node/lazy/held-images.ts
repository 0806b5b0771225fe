// Images held without a container: a supernode's push, `skimmer mount`, and the benches; whole and proved, then kept while there is room.
import type { Logger } from 'pino'
import type { Hold, Prefetcher } from '../../peer/prefetcher.ts'
import type { KnownLayer, LayerLibrary } from './layer-library.ts'
import type { NodeImages } from './node-images.ts'

export class HeldImages {
  readonly #images: NodeImages
  readonly #library: LayerLibrary
  readonly #prefetcher: Prefetcher
  readonly #logger: Logger
  readonly #holds = new Map<string, Hold>()

  constructor(components: { images: NodeImages; library: LayerLibrary; prefetcher: Prefetcher; logger: Logger }) {
    this.#images = components.images
    this.#library = components.library
    this.#prefetcher = components.prefetcher
    this.#logger = components.logger
  }

  /** Resolves when the work has begun; the errors of NodeImages.resolve. */
  async hold(reference: string, manifestDigest?: string): Promise<void> {
    const diffIds = await this.#images.resolve({ reference, manifestDigest })
    const key = diffIds.join(' ')
    if (this.#holds.has(key)) return
    const known = diffIds.map((diffId) => this.#library.get(diffId)).filter((layer): layer is KnownLayer => layer !== undefined)
    const hold = this.#prefetcher.hold(known.map(({ resource }) => resource), { image: reference, now: true })
    this.#holds.set(key, hold)
    hold.on('proved', () => this.#holds.delete(key))
    hold.on('failed', (error) => {
      this.#holds.delete(key)
      this.#logger.error({ reference, err: error }, 'an image could not be held')
    })
  }
}
