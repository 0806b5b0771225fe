// The origin of layers: each is downloaded and indexed once however many ask, stored as a resource, and remembered; failures too.
import { availableParallelism } from 'node:os'
import { randomUUID } from 'node:crypto'
import { LRUCache } from 'lru-cache'
import type { Logger } from 'pino'
import { Counter, Gauge, Histogram } from 'prom-client'
import type { Registry as Metrics } from 'prom-client'
import { z } from 'zod'
import type { IndexerPool } from '../image/indexer-pool.ts'
import { packedLength, rawLength } from '../image/block-table.ts'
import { digestMismatch } from '../oci/digest.ts'
import { SkimmerError, hasCode } from '../oci/errors.ts'
import { isForeignLayer, mediaTypeCompression } from '../oci/media-types.ts'
import { parseReference } from '../oci/reference.ts'
import type { Reference } from '../oci/reference.ts'
import type { BlockStore } from '../peer/block-store.ts'
import type { Resource } from '../peer/resource.ts'
import { DEFAULT_LASTING_FAILURE_MS, DEFAULT_MAX_FAILURES, DEFAULT_PARALLEL_LAYERS, DEFAULT_PASSING_FAILURE_MS } from './defaults.ts'
import { digestSchema, layerRecordSchema } from './image-record.ts'
import type { ImageLayerRecord } from './image-record.ts'
import { OriginWork } from './origin-work.ts'
import type { OriginProgress } from './origin-work.ts'
import type { RegistryAccess } from './registry-access.ts'
import type { SharedState, StateSpace } from './shared-state.ts'
import { WorkSlots } from './work-slots.ts'

const indexedLayerSchema = layerRecordSchema.extend({
  index: digestSchema, rawLength: z.number().int().min(0), packedLength: z.number().int().min(0), indexedAt: z.number(),
  /** `registry/repository` names that were seen to hold this layer. */
  repositories: z.array(z.string()),
})
/** A layer that is indexed: its index object's digest, and its sizes in bytes. The resource is `layer:<index>`. */
export type IndexedLayer = z.infer<typeof indexedLayerSchema>

export interface LayerRequest {
  readonly reference: Reference
  readonly layer: ImageLayerRecord
  /** As whom the layer is asked of the registry. */
  readonly access: RegistryAccess
}

export interface LayerOriginOptions {
  /** Layers that are downloaded at the same time. */
  parallelLayers?: number
  lastingFailureMs?: number
  passingFailureMs?: number
}

const MAX_REPOSITORIES = 128
/** Failures that come from the bytes themselves: the same bytes fail the same way. */
const LASTING = ['UNSUPPORTED', 'INVALID_DATA', 'DIGEST_MISMATCH', 'LIMIT_EXCEEDED'] as const
/** Failures of the moment, remembered for seconds so that a crowd does not hammer. Refused credentials are not: the next asker has others. */
const PASSING = ['UNAVAILABLE', 'TIMEOUT', 'NOT_FOUND', 'NO_SPACE', 'INTERNAL'] as const

export const layerResource = (index: string): string => `layer:${index}`

export class LayerOrigin {
  readonly #store: BlockStore
  readonly #indexer: Pick<IndexerPool, 'index'>
  readonly #logger: Logger
  readonly #layers: StateSpace<IndexedLayer>
  /** Resource id -> which layer it is. */
  readonly #made: StateSpace<{ layerDigest: string }>
  readonly #works = new Map<string, { work: OriginWork<IndexedLayer>; repository: string; layer: ImageLayerRecord }>()
  readonly #failures: LRUCache<string, { error: SkimmerError }>
  readonly #slots: WorkSlots
  readonly #lastingMs: number
  readonly #passingMs: number
  readonly #stop = new AbortController()
  readonly #bytes: Counter | undefined
  readonly #results: Counter<'result'> | undefined
  readonly #seconds: Histogram | undefined

  constructor(components: { store: BlockStore; indexer: Pick<IndexerPool, 'index'>; state: SharedState; logger: Logger; metrics?: Metrics }, options: LayerOriginOptions = {}) {
    this.#store = components.store
    this.#indexer = components.indexer
    this.#logger = components.logger
    this.#layers = components.state.space('layers', indexedLayerSchema)
    this.#made = components.state.space('made', z.object({ layerDigest: digestSchema }))
    this.#slots = new WorkSlots(options.parallelLayers ?? Math.max(DEFAULT_PARALLEL_LAYERS, availableParallelism()))
    this.#lastingMs = options.lastingFailureMs ?? DEFAULT_LASTING_FAILURE_MS
    this.#passingMs = options.passingFailureMs ?? DEFAULT_PASSING_FAILURE_MS
    this.#failures = new LRUCache({ max: DEFAULT_MAX_FAILURES })
    if (components.metrics !== undefined) {
      const registers = [components.metrics]
      const works = this.#works
      this.#bytes = new Counter({ name: 'skimmer_supernode_origin_bytes', help: 'Bytes of layers read from registries', registers })
      this.#results = new Counter({ name: 'skimmer_supernode_layers_indexed_total', help: 'Layers indexed, by result', labelNames: ['result'], registers })
      this.#seconds = new Histogram({ name: 'skimmer_supernode_layer_index_seconds', help: 'Time to download and index a layer', buckets: [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000], registers })
      void new Gauge({ name: 'skimmer_supernode_layers_in_work', help: 'Layers being downloaded and indexed now, or waiting for it', registers, collect() { this.set(works.size) } })
    }
  }

  /** What is indexed and here of a layer; undefined when it must be made (again). DIGEST_MISMATCH when the layer is known under another diffID. */
  async known(layer: { digest: string; diffId: string }): Promise<IndexedLayer | undefined> {
    const record = await this.#layers.get(layer.digest)
    if (record === undefined) return undefined
    // Its bytes were hashed here: an image that says otherwise is wrong.
    if (record.diffId !== layer.diffId) throw digestMismatch(`the uncompressed layer ${layer.digest}`, layer.diffId, record.diffId)
    const resource = this.#store.get(layerResource(record.index))
    if (resource === undefined || !resource.whole || !this.#store.hasObject(record.index)) return undefined
    return record
  }

  /**
   * The layer's index, made if need be: one download however many ask. The layer is known to lie in the request's repository when this
   * resolves: from another one it is never handed out unseen. Errors: UNSUPPORTED and INVALID_DATA for layers that must be unpacked the
   * ordinary way, DIGEST_MISMATCH for wrong bytes or a wrong diffID, UNAUTHORIZED, NOT_FOUND, UNAVAILABLE, NO_SPACE; ABORTED by `signal`.
   */
  async ensureIndexed(request: LayerRequest, options: { signal?: AbortSignal; onProgress?: (progress: OriginProgress) => void } = {}): Promise<IndexedLayer> {
    const { layer } = request
    const repository = `${request.reference.registry}/${request.reference.repository}`
    const key = `${layer.digest} ${layer.diffId}`
    for (;;) {
      const failed = this.#failures.get(`${repository} ${key}`)
      if (failed !== undefined) throw failed.error
      const record = await this.known(layer)
      if (record !== undefined && this.#store.quarantineReason(layerResource(record.index)) !== undefined) {
        throw new SkimmerError('INVALID_DATA', `layer ${layer.digest} is quarantined: ${this.#store.quarantineReason(layerResource(record.index))}; an operator can lift that at the supernode's API`)
      }
      if (record !== undefined) return record.repositories.includes(repository) ? record : await this.#lies(request, repository, record)
      // No await from here to the work's entry in the table: two askers must not both begin.
      let entry = this.#works.get(key)
      if (entry === undefined) {
        entry = { work: new OriginWork(layer.size, work => this.#make(request, repository, key, work)), repository, layer }
        this.#works.set(key, entry)
      }
      try {
        const made = await entry.work.wait(options)
        if (made.repositories.includes(repository)) return made
      } catch (error) {
        // Another repository's failure says nothing about ours: it may have lied about the bytes, or refused its credentials.
        if (entry.repository === repository || options.signal?.aborted) throw error
      }
    }
  }

  /** Layers being made, for the API. */
  inWork(): { layerDigest: string; repository: string; bytes: number; total: number; startedAt: number }[] {
    return [...this.#works.values()].map(({ work, repository, layer }) => ({ layerDigest: layer.digest, repository, bytes: work.bytes, total: work.total, startedAt: work.started }))
  }

  records(): AsyncIterable<[string, IndexedLayer]> {
    return this.#layers.entries()
  }

  /**
   * Makes a layer's resource again that was indexed before and is no longer here (evicted, or damaged on disk), for a peer that asks for its
   * blocks. undefined when it was never made here, or cannot be made as `access`.
   */
  async restore(resource: string, access: RegistryAccess): Promise<Resource | undefined> {
    const made = await this.#made.get(resource)
    const record = made === undefined ? undefined : await this.#layers.get(made.layerDigest)
    if (record === undefined || layerResource(record.index) !== resource || record.repositories.length === 0) return undefined
    const reference = parseReference(`${record.repositories.at(-1)!}@${record.digest}`)
    await this.ensureIndexed({ reference, layer: record, access })
    return this.#store.get(resource)
  }

  async close(): Promise<void> {
    this.#stop.abort(new SkimmerError('ABORTED', 'the origin is stopping'))
    await Promise.allSettled([...this.#works.values()].map(({ work }) => work.result))
  }

  async #make(request: LayerRequest, repository: string, key: string, work: OriginWork<IndexedLayer>): Promise<IndexedLayer> {
    const { layer } = request
    try {
      const made = await this.#slots.run(async () => {
        this.#stop.signal.throwIfAborted()
        const begun = performance.now()
        const record = await this.#index(request, repository, work)
        this.#seconds?.observe((performance.now() - begun) / 1000)
        this.#logger.info({ layer: layer.digest, repository, index: record.index, bytes: layer.size, rawBytes: record.rawLength, packedBytes: record.packedLength, ms: Math.round(performance.now() - begun) }, 'layer indexed')
        return record
      })
      this.#results?.inc({ result: 'success' })
      return made
    } catch (cause) {
      const error = cause instanceof SkimmerError ? cause : new SkimmerError('INTERNAL', `layer ${layer.digest} of ${repository} could not be indexed: ${(cause as Error).message}`, { cause })
      if (!this.#stop.signal.aborted) {
        this.#results?.inc({ result: error.code })
        this.#logger.warn({ layer: layer.digest, repository, code: error.code, err: error }, 'a layer could not be indexed')
        if (hasCode(error, ...LASTING)) this.#failures.set(`${repository} ${key}`, { error }, { ttl: this.#lastingMs })
        else if (hasCode(error, ...PASSING)) this.#failures.set(`${repository} ${key}`, { error }, { ttl: this.#passingMs })
      }
      throw error
    } finally {
      this.#works.delete(key)
    }
  }

  async #index(request: LayerRequest, repository: string, work: OriginWork<IndexedLayer>): Promise<IndexedLayer> {
    const { layer, reference, access } = request
    const compression = mediaTypeCompression(layer.mediaType)
    if (compression === undefined) throw new SkimmerError('UNSUPPORTED', `layer ${layer.digest} of ${repository} has media type ${layer.mediaType.slice(0, 200)}, which is no filesystem layer that can be served lazily`)
    const { signal } = this.#stop
    // As containerd does, the bytes' own magic decides, except where the media type says that they are not compressed.
    const growing = await this.#store.create(`making:${randomUUID()}`)
    try {
      const blob = access.client.blob(reference, { digest: layer.digest, size: layer.size }, { signal })
      const result = await this.#indexer.index(work.counted(blob, bytes => this.#bytes?.inc(bytes)), {
        layerDigest: layer.digest, layerSize: layer.size, compression: compression === 'none' && layer.mediaType.startsWith('application/vnd.oci.') ? 'none' : 'detect', expectedDiffId: layer.diffId, verified: true, signal,
        sink: { blocks: batch => growing.appendLent(batch) },
      })
      await this.#store.putObject(result.encoded)
      const resource = await growing.seal(layerResource(result.indexDigest), { diffId: layer.diffId, origin: { layerDigest: layer.digest, repository } })
      await this.#made.put(resource.id, { layerDigest: layer.digest })
      return (await this.#layers.update(layer.digest, before => ({
        digest: layer.digest, size: layer.size, mediaType: layer.mediaType, diffId: layer.diffId, index: result.indexDigest, rawLength: rawLength(resource.table), packedLength: packedLength(resource.table), indexedAt: Date.now(),
        repositories: withRepository(before, repository),
      })))!
    } catch (error) {
      await growing.discard()
      throw error
    }
  }

  /**
   * A layer that is here, asked for from a repository that was not seen to hold it. A registry is believed about its own repositories;
   * a registry that never gave us these bytes must show that it has them, or anyone's manifest could name somebody's private layer.
   */
  async #lies(request: LayerRequest, repository: string, record: IndexedLayer): Promise<IndexedLayer> {
    const { layer, reference, access } = request
    const sameRegistry = record.repositories.some(name => name.startsWith(`${reference.registry}/`))
    if (sameRegistry && !isForeignLayer(layer.mediaType)) {
      const found = await access.client.headBlob(reference, layer.digest, { signal: this.#stop.signal })
      if (found === undefined) throw new SkimmerError('NOT_FOUND', `${repository} does not hold the layer ${layer.digest} that its manifest names`)
    } else {
      await this.#slots.run(async () => {
        for await (const chunk of access.client.blob(reference, { digest: layer.digest, size: layer.size }, { signal: this.#stop.signal })) this.#bytes?.inc(chunk.length)
      })
    }
    return (await this.#layers.update(layer.digest, now => ({ ...(now ?? record), repositories: withRepository(now ?? record, repository) })))!
  }
}

const withRepository = (record: IndexedLayer | undefined, repository: string): string[] => [...new Set([...(record?.repositories ?? []), repository])].slice(-MAX_REPOSITORIES)
