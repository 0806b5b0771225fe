// Images composed ahead: the EROFS metadata of an image is made once here, so that nodes only fetch it. They prove it later by composing themselves.
import { randomBytes } from 'node:crypto'
import { readFileSync, rmSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { zstdCompress } from 'node:zlib'
import type { Logger } from 'pino'
import type { ComposerThread } from '../image/composer-thread.ts'
import { SkimmerError } from '../oci/errors.ts'
import type { BlockStore } from '../peer/block-store.ts'
import { type ComposedImage, composedImageSchema } from '../peer/control.ts'
import type { SharedState, StateSpace } from './shared-state.ts'
import { SingleFlight } from './single-flight.ts'

const compress = promisify(zstdCompress)

export class ComposedImages {
  readonly #store: BlockStore
  readonly #composer: ComposerThread
  readonly #logger: Logger
  readonly #directory: string
  readonly #known: StateSpace<ComposedImage>
  readonly #making = new SingleFlight<ComposedImage>()

  /** `directory` is for files of a moment. */
  constructor(components: { store: BlockStore; composer: ComposerThread; state: SharedState; logger: Logger }, options: { directory: string }) {
    this.#store = components.store
    this.#composer = components.composer
    this.#logger = components.logger
    this.#known = components.state.space('composed', composedImageSchema)
    this.#directory = options.directory
    rmSync(options.directory, { recursive: true, force: true })
    mkdirSync(options.directory, { recursive: true, mode: 0o700 })
  }

  /** The image of this chainID, if it was composed and is still here. */
  async find(chainId: string): Promise<ComposedImage | undefined> {
    const known = await this.#known.get(chainId)
    return known !== undefined && this.#store.hasObject(known.object) ? known : undefined
  }

  /** Composes the image of these layer indexes (bottom first) unless that was done. UNSUPPORTED for images that must be unpacked the ordinary way. */
  ensure(chainId: string, indexes: readonly string[]): Promise<ComposedImage> {
    return this.#making.run(chainId, async () => (await this.find(chainId)) ?? (await this.#make(chainId, indexes)))
  }

  /** The same in the background; a failure is logged, nodes compose for themselves then. */
  ensureSoon(chainId: string, indexes: readonly string[]): void {
    this.ensure(chainId, indexes).catch((error: unknown) => this.#logger.info({ chainId, reason: (error as Error).message }, 'an image could not be composed ahead'))
  }

  async #make(chainId: string, indexes: readonly string[]): Promise<ComposedImage> {
    const begun = performance.now()
    const encoded = await Promise.all(indexes.map(async (index) => {
      const bytes = await this.#store.getObject(index)
      if (bytes === undefined) throw new SkimmerError('NOT_FOUND', `layer index ${index} is not here any more`)
      return bytes
    }))
    const path = join(this.#directory, `${randomBytes(8).toString('hex')}.erofs`)
    try {
      const { written } = await this.#composer.compose(encoded, path)
      const object = await this.#store.putObject(await compress(readFileSync(path)))
      const composed: ComposedImage = { object, length: written.length, layers: written.layers.map(({ diffId, rawLength, uniaddr }) => ({ diffId, rawLength, uniaddr })) }
      await this.#known.put(chainId, composed)
      this.#logger.info({ chainId, object, metadataBytes: written.length, ms: Math.round(performance.now() - begun) }, 'image composed ahead')
      return composed
    } finally {
      rmSync(path, { force: true })
    }
  }
}
