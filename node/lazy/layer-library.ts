// The layers this node knows: which index each diffID has, the decoded index, and the resource that holds its blocks.
import { z } from 'zod'
import type { Logger } from 'pino'
import { type LayerIndexHead, decodeLayerIndex, decodeLayerIndexHead } from '../../image/index-format.ts'
import type { LayerIndex } from '../../image/layer-index.ts'
import { SkimmerError } from '../../oci/errors.ts'
import type { BlockStore } from '../../peer/block-store.ts'
import type { Resource } from '../../peer/resource.ts'
import type { KeySpace } from '../../peer/store-records.ts'

const digest = z.string().regex(/^sha256:[0-9a-f]{64}$/)
const recordSchema = z.object({ diffId: digest, layerDigest: digest, layerSize: z.number().int().min(0), index: digest, reference: z.string().max(4096).optional() })
/** What a source says of a layer that is indexed; `reference` names an image that holds it, for the way back to the registry. */
export type LayerRecord = z.infer<typeof recordSchema>

export interface KnownLayer {
  readonly record: LayerRecord
  readonly resource: Resource
}

export const layerResourceId = (index: string): string => `layer:${index}`

/** Brings an object by its digest from peers or a supernode; NOT_FOUND, UNAVAILABLE. */
export type ObjectSource = (digest: string, signal?: AbortSignal) => Promise<Uint8Array>

export class LayerLibrary {
  readonly #store: BlockStore
  readonly #space: KeySpace<unknown>
  readonly #logger: Logger
  readonly #fetchObject: ObjectSource
  readonly #byDiffId = new Map<string, KnownLayer>()
  readonly #wholeAt = new Map<string, number>()
  readonly #adopting = new Map<string, Promise<KnownLayer>>()
  readonly #heads = new Map<string, LayerIndexHead>()

  constructor(components: { store: BlockStore; space: KeySpace<unknown>; logger: Logger; fetchObject: ObjectSource }) {
    this.#store = components.store
    this.#space = components.space
    this.#logger = components.logger
    this.#fetchObject = components.fetchObject
  }

  /** Brings back what was known before a restart; a record whose index or resource is gone is dropped. */
  async open(): Promise<void> {
    for await (const [key, value] of this.#space.iterator()) {
      const parsed = recordSchema.safeParse(value)
      const resource = parsed.success ? this.#store.get(layerResourceId(parsed.data.index)) : undefined
      if (!parsed.success || resource === undefined || resource.quarantined) {
        this.#logger.warn({ diffId: key }, 'a layer that was known before the restart is not usable any more; it will be asked for again')
        await this.#space.del(key)
      } else this.#byDiffId.set(parsed.data.diffId, { record: parsed.data, resource })
    }
  }

  get(diffId: string): KnownLayer | undefined {
    const known = this.#byDiffId.get(diffId)
    return known === undefined || this.#store.get(known.resource.id) !== known.resource || known.resource.quarantined ? undefined : known
  }

  /** Entries of the layer's tar. */
  async files(diffId: string): Promise<number> {
    const { record } = this.#known(diffId)
    return (this.#heads.get(diffId) ?? (await this.#readHead(record, undefined))).fileCount
  }

  /** When the layer's last block came, milliseconds since 1970; undefined when it is not whole or was so at the start. */
  wholeAt(diffId: string): number | undefined {
    return this.#wholeAt.get(diffId)
  }

  list(): KnownLayer[] {
    return [...this.#byDiffId.values()]
  }

  byLayerDigest(layerDigest: string): KnownLayer | undefined {
    for (const known of this.#byDiffId.values()) if (known.record.layerDigest === layerDigest) return this.get(known.record.diffId)
    return undefined
  }

  byResource(resourceId: string): KnownLayer | undefined {
    for (const known of this.#byDiffId.values()) if (known.resource.id === resourceId) return known
    return undefined
  }

  /**
   * Makes a layer known here: its index is fetched if need be and checked against the record. Errors: those of the object source,
   * INVALID_DATA for an index that lies, FORBIDDEN for a quarantined layer.
   */
  adopt(record: LayerRecord, signal?: AbortSignal): Promise<KnownLayer> {
    const known = this.get(record.diffId)
    if (known !== undefined) return Promise.resolve(known)
    let adopting = this.#adopting.get(record.index)
    if (adopting === undefined) {
      adopting = this.#adopt(record, signal).finally(() => this.#adopting.delete(record.index))
      this.#adopting.set(record.index, adopting)
    }
    return adopting
  }

  async #adopt(record: LayerRecord, signal: AbortSignal | undefined): Promise<KnownLayer> {
    const id = layerResourceId(record.index)
    const held = this.#store.get(id)
    if (held?.quarantined) throw new SkimmerError('FORBIDDEN', `layer ${record.layerDigest} is quarantined here: its content was not what the image's config names`)
    const head = await this.#readHead(record, signal)
    if (head.diffId !== record.diffId) throw new SkimmerError('INVALID_DATA', `index ${record.index} is of ${head.diffId}, but the image's config names ${record.diffId}`)
    if (head.layerDigest !== record.layerDigest) throw new SkimmerError('INVALID_DATA', `index ${record.index} is of layer ${head.layerDigest}, not of ${record.layerDigest}`)
    const resource = held ?? (await this.#store.add(id, head.blocks, { diffId: record.diffId, origin: { layerDigest: record.layerDigest } }))
    const known: KnownLayer = { record, resource }
    this.#byDiffId.set(record.diffId, known)
    if (!resource.whole) resource.once('whole', () => this.#wholeAt.set(record.diffId, Date.now()))
    await this.#space.put(record.diffId, record)
    return known
  }

  async #readHead(record: LayerRecord, signal: AbortSignal | undefined): Promise<LayerIndexHead> {
    const head = decodeLayerIndexHead(await this.#readIndex(record, signal))
    this.#heads.set(record.diffId, head)
    return head
  }

  async #readIndex(record: LayerRecord, signal: AbortSignal | undefined): Promise<Uint8Array> {
    const here = await this.#store.getObject(record.index)
    if (here !== undefined) return here
    const bytes = await this.#fetchObject(record.index, signal)
    await this.#store.putObject(bytes)
    return bytes
  }

  #known(diffId: string): KnownLayer {
    const known = this.get(diffId)
    if (known === undefined) throw new SkimmerError('NOT_FOUND', `layer ${diffId} is not known on this node`)
    return known
  }

  /** The encoded index of a layer that is known; fetched again if it was evicted. */
  indexBytes(diffId: string, signal?: AbortSignal): Promise<Uint8Array> {
    return this.#readIndex(this.#known(diffId).record, signal)
  }

  /** The decoded index: large, for moments only. */
  async index(diffId: string, signal?: AbortSignal): Promise<LayerIndex> {
    return decodeLayerIndex(await this.indexBytes(diffId, signal))
  }

  /** Nothing here names the layer any more. Its blocks stay until the cache's room is wanted. */
  async forget(diffId: string): Promise<void> {
    const known = this.#byDiffId.get(diffId)
    if (known === undefined) return
    this.#byDiffId.delete(diffId)
    this.#heads.delete(diffId)
    this.#wholeAt.delete(diffId)
    await this.#space.del(diffId)
  }
}
