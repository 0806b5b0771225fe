// Manifests that are here: their bytes by digest among the store's objects, and what each tag stood for when the registry was last asked.
import type { Logger } from 'pino'
import type { BlockStore } from '../peer/block-store.ts'
import type { KeySpace } from '../peer/store-records.ts'
import { wishKey } from './accept.ts'
import type { Upstream } from './upstream-choice.ts'

export interface CachedManifest {
  readonly digest: string
  /** As the registry wrote it, with parameters. */
  readonly contentType: string
  readonly bytes: Buffer
}

export interface TagFact {
  readonly digest: string
  readonly contentType: string
  readonly size: number
  readonly etag?: string
  /** When the registry said so, milliseconds since 1970. */
  readonly checked: number
}

interface ManifestFact { readonly contentType: string; readonly used: number }

const USED_EVERY_MS = 3600_000
/** Facts about manifests whose bytes were evicted long ago. */
const FORGET_AFTER_MS = 90 * 24 * 3600_000

export class ManifestCache {
  readonly #store: BlockStore
  readonly #tags: KeySpace<TagFact>
  readonly #manifests: KeySpace<ManifestFact>
  readonly #logger: Logger
  readonly #now: () => number

  constructor(components: { store: BlockStore; logger: Logger; clock?: () => number }) {
    this.#store = components.store
    this.#tags = components.store.sublevel<TagFact>('proxy-tags', { valueEncoding: 'json' })
    this.#manifests = components.store.sublevel<ManifestFact>('proxy-manifests', { valueEncoding: 'json' })
    this.#logger = components.logger
    this.#now = components.clock ?? Date.now
  }

  /** Drops what was noted too long ago to be of use. */
  async prune(): Promise<void> {
    const oldest = this.#now() - FORGET_AFTER_MS
    for await (const [key, fact] of this.#tags.iterator()) if (!(fact?.checked >= oldest)) await this.#tags.del(key)
    for await (const [key, fact] of this.#manifests.iterator()) if (!(fact?.used >= oldest)) await this.#manifests.del(key)
  }

  async find(digest: string): Promise<CachedManifest | undefined> {
    if (!this.#store.hasObject(digest)) return undefined
    const fact = await this.#manifests.get(digest)
    const bytes = fact === undefined ? undefined : await this.#store.getObject(digest)
    if (fact === undefined || bytes === undefined) return undefined
    if (this.#now() - fact.used > USED_EVERY_MS) this.#note(digest, fact.contentType)
    return { digest, contentType: fact.contentType, bytes }
  }

  /** Keeps verified bytes. A store that is full keeps nothing, and that is all. */
  async keep(manifest: CachedManifest): Promise<void> {
    // Only sha256 names an object; other digests are rare enough to be asked for each time.
    if (!manifest.digest.startsWith('sha256:')) return
    try {
      await this.#store.putObject(manifest.bytes)
      await this.#manifests.put(manifest.digest, { contentType: manifest.contentType, used: this.#now() })
    } catch (error) {
      this.#logger.warn({ err: error, digest: manifest.digest }, 'a manifest could not be kept')
    }
  }

  async tag(upstream: Upstream, tag: string, accept: string | undefined): Promise<TagFact | undefined> {
    return await this.#tags.get(tagKey(upstream, tag, accept))
  }

  async noteTag(upstream: Upstream, tag: string, accept: string | undefined, fact: Omit<TagFact, 'checked'>): Promise<void> {
    await this.#tags.put(tagKey(upstream, tag, accept), { ...fact, checked: this.#now() }).catch((error: unknown) => this.#logger.debug({ err: error }, 'a tag could not be noted'))
  }

  async forgetTag(upstream: Upstream, tag: string, accept: string | undefined): Promise<void> {
    await this.#tags.del(tagKey(upstream, tag, accept))
  }

  #note(digest: string, contentType: string): void {
    this.#manifests.put(digest, { contentType, used: this.#now() }).catch((error: unknown) => this.#logger.debug({ err: error }, 'the use of a manifest could not be noted'))
  }
}

const tagKey = (upstream: Upstream, tag: string, accept: string | undefined): string => `${upstream.registry}/${upstream.repository}:${tag} ${wishKey(accept)}`
