// The registry client: resolve a reference, read manifests and blobs, list tags and referrers; and the small half that pushes.
import type { Registry as MetricsRegistry } from 'prom-client'
import { pino } from 'pino'
import type { Logger } from 'pino'
import { Authenticator } from './auth.ts'
import { streamBlob } from './blob-stream.ts'
import { anonymous } from './credentials.ts'
import type { CredentialSource } from './credentials.ts'
import { MAX_TAG_PAGES } from './defaults.ts'
import type { RegistryClientOptions } from './defaults.ts'
import { digestOf, isDigest, verifyDigest, parseDigest } from './digest.ts'
import { SkimmerError } from './errors.ts'
import { openForeign } from './foreign-blob.ts'
import { MAX_CONFIG_BYTES, parseImageConfig } from './image-config.ts'
import type { ImageConfig } from './image-config.ts'
import { MAX_MANIFEST_BYTES, parseJsonObject, parseManifest } from './manifest.ts'
import type { ImageManifest, IndexEntry } from './manifest.ts'
import { MANIFEST_ACCEPT, bareMediaType, isConfigType } from './media-types.ts'
import { nextPage } from './pages.ts'
import { choosePlatform, formatPlatform, hostPlatform } from './platform.ts'
import type { Platform } from './platform.ts'
import { atDigest, formatReference, isTag } from './reference.ts'
import type { Reference } from './reference.ts'
import { listReferrers } from './referrers.ts'
import { pushBlob, pushManifest } from './registry-push.ts'
import type { BlobContent } from './registry-push.ts'
import { RegistryHosts } from './registry-hosts.ts'
import type { HostsConfig } from './registry-hosts.ts'
import { NO_METRICS, registryMetrics } from './registry-metrics.ts'
import type { RegistryMetrics } from './registry-metrics.ts'
import { RegistryRequests } from './registry-requests.ts'
import { Transport, discard, readBody } from './transport.ts'

export interface ResolvedImage {
  readonly manifestDigest: string
  readonly manifest: ImageManifest
  readonly manifestBytes: Buffer
  /** Set when the reference named an index: the digest the name stands for. */
  readonly indexDigest?: string
  readonly config: ImageConfig
  readonly configDigest: string
  readonly configBytes: Buffer
}

export interface ManifestBytes {
  readonly bytes: Buffer
  readonly mediaType: string
  readonly digest: string
}

/** An index in an index in an index is legal and means nothing; deeper is an attack. */
const MAX_INDEX_DEPTH = 3
const MAX_TAGS_PAGE_BYTES = 4 * 1024 * 1024

/**
 * Safe for any number of calls at once; connections are pooled per host. All errors are SkimmerErrors that name the
 * registry and the repository: UNAUTHORIZED, NOT_FOUND, UNAVAILABLE (also rate limits), TIMEOUT, ABORTED, INVALID_DATA,
 * DIGEST_MISMATCH, LIMIT_EXCEEDED, UNSUPPORTED.
 */
export class RegistryClient {
  readonly #hosts: RegistryHosts
  readonly #transport: Transport
  readonly #requests: RegistryRequests
  readonly #metrics: RegistryMetrics
  readonly #logger: Logger
  readonly #options: RegistryClientOptions

  constructor(components: { credentials?: CredentialSource; hosts?: HostsConfig; logger?: Logger; metrics?: MetricsRegistry } = {}, options: RegistryClientOptions = {}) {
    this.#options = options
    this.#hosts = new RegistryHosts(components.hosts)
    this.#logger = components.logger ?? pino({ level: 'silent' })
    this.#metrics = components.metrics === undefined ? NO_METRICS : registryMetrics(components.metrics)
    this.#transport = new Transport(this.#hosts, options)
    const auth = new Authenticator({ transport: this.#transport, credentials: components.credentials ?? anonymous }, options)
    this.#requests = new RegistryRequests({ hosts: this.#hosts, auth, transport: this.#transport, logger: this.#logger, metrics: this.#metrics }, options)
  }

  /** Ends every connection; running calls fail with UNAVAILABLE. */
  async close(): Promise<void> {
    await this.#transport.close()
  }

  /** Follows a reference to the one image that runs on `platform` (default: this host's), with its config. All bytes are proved by their digests. */
  async resolve(reference: Reference, options: { platform?: Platform; signal?: AbortSignal } = {}): Promise<ResolvedImage> {
    const platform = options.platform ?? hostPlatform()
    const name = formatReference(reference)
    let found = await this.manifest(reference, options)
    const indexDigest = found.digest
    for (let depth = 0; depth <= MAX_INDEX_DEPTH; depth++) {
      const manifest = parseManifest(found.bytes, found.mediaType, `the manifest of ${name}`)
      if (manifest.kind === 'manifest') {
        const { config, configBytes } = await this.#config(reference, manifest, options.signal)
        return { manifestDigest: found.digest, manifest, manifestBytes: found.bytes, ...(depth === 0 ? {} : { indexDigest }), config, configDigest: manifest.config.digest, configBytes }
      }
      const entry = choosePlatform(manifest.manifests, platform)
      if (entry === undefined) {
        const offered = manifest.manifests.flatMap((other) => (other.platform === undefined ? [] : [formatPlatform(other.platform)])).slice(0, 20)
        throw new SkimmerError('NOT_FOUND', `${name} has no image for ${formatPlatform(platform)}; it has ${offered.length === 0 ? 'none at all' : [...new Set(offered)].join(', ')}`, { details: { offered } })
      }
      found = await this.manifest(atDigest(reference, entry.digest), options)
    }
    throw new SkimmerError('INVALID_DATA', `${name}: its indexes are nested deeper than ${MAX_INDEX_DEPTH}`)
  }

  async #config(reference: Reference, manifest: ImageManifest, signal: AbortSignal | undefined): Promise<{ config: ImageConfig; configBytes: Buffer }> {
    const name = formatReference(reference)
    if (!isConfigType(manifest.config.mediaType)) {
      throw new SkimmerError('UNSUPPORTED', `${name} is no container image but an artifact of type ${manifest.artifactType ?? manifest.config.mediaType}`)
    }
    if (manifest.config.size > MAX_CONFIG_BYTES) throw new SkimmerError('LIMIT_EXCEEDED', `the config of ${name} has ${manifest.config.size} bytes, more than the ${MAX_CONFIG_BYTES} that are allowed`)
    const configBytes = await collect(this.blob(reference, manifest.config, { signal }))
    const config = parseImageConfig(configBytes, `the config of ${name}`)
    if (config.diffIds.length !== manifest.layers.length) {
      throw new SkimmerError('INVALID_DATA', `${name}: the config names ${config.diffIds.length} diffIDs for the manifest's ${manifest.layers.length} layers`)
    }
    return { config, configBytes }
  }

  /** A manifest or index as the registry has it, proved against the reference's digest or the one the registry states. */
  async manifest(reference: Reference, options: { signal?: AbortSignal } = {}): Promise<ManifestBytes> {
    const found = await this.#findManifest(reference, options)
    if (found !== undefined) return found
    throw new SkimmerError('NOT_FOUND', `there is no ${formatReference(reference)}; check the name, the tag or digest, and whether the repository is private`)
  }

  async #findManifest(reference: Reference, options: { signal?: AbortSignal }): Promise<ManifestBytes | undefined> {
    const what = `pulling the manifest of ${formatReference(reference)}`
    const response = await this.#requests.send({ ...this.#manifestRequest(reference, options), method: 'GET', what })
    if (response.status === 404) {
      await discard(response.body)
      return undefined
    }
    const bytes = await readBody(response, MAX_MANIFEST_BYTES, what, options.signal)
    const stated = String(response.headers['docker-content-digest'] ?? '')
    const expected = reference.digest ?? (isDigest(stated) ? stated : undefined)
    const mediaType = bareMediaType(response.headers['content-type'] ?? '')
    if (expected === undefined) return { bytes, mediaType, digest: digestOf(bytes) }
    try {
      verifyDigest(bytes, expected, what)
    } catch (error) {
      this.#requests.avoid(response.endpoint)
      throw error
    }
    return { bytes, mediaType, digest: expected }
  }

  #manifestRequest(reference: Reference, options: { signal?: AbortSignal }) {
    return {
      registry: reference.registry,
      repository: reference.repository,
      path: `manifests/${reference.digest ?? reference.tag ?? 'latest'}`,
      headers: { accept: MANIFEST_ACCEPT },
      accept: [404],
      signal: options.signal,
    }
  }

  /** What a tag stands for, without its bytes; undefined when there is no such manifest. Costs no pull of Docker Hub's rate limit. */
  async headManifest(reference: Reference, options: { signal?: AbortSignal } = {}): Promise<{ digest: string; mediaType: string; size: number } | undefined> {
    const what = `looking up ${formatReference(reference)}`
    const response = await this.#requests.send({ ...this.#manifestRequest(reference, options), method: 'HEAD', what, accept: [404, 405] })
    await discard(response.body)
    if (response.status === 404) return undefined
    const digest = String(response.headers['docker-content-digest'] ?? '')
    const size = Number(response.headers['content-length'] ?? Number.NaN)
    if (isDigest(digest) && Number.isSafeInteger(size) && (reference.digest ?? digest) === digest) {
      return { digest, size, mediaType: bareMediaType(response.headers['content-type'] ?? '') }
    }
    // A registry without HEAD, or one that does not state the digest: the bytes themselves tell.
    const found = await this.#findManifest(reference, options)
    return found && { digest: found.digest, mediaType: found.mediaType, size: found.bytes.length }
  }

  /**
   * A blob's bytes, or those from `offset` (default 0) for `length` (default to the end). Broken connections are resumed. A
   * whole blob's digest is checked: DIGEST_MISMATCH comes before its last chunk. Stop reading and the connection ends.
   */
  blob(
    reference: Reference,
    descriptor: { readonly digest: string; readonly size: number; readonly urls?: readonly string[] | undefined },
    options: { offset?: number; length?: number; signal?: AbortSignal } = {},
  ): AsyncIterable<Buffer> {
    const { digest, size } = descriptor
    parseDigest(digest)
    const offset = options.offset ?? 0
    const length = options.length ?? size - offset
    if (![offset, length, size].every((value) => Number.isSafeInteger(value) && value >= 0) || offset + length > size) {
      throw new SkimmerError('INVALID_ARGUMENT', `bytes ${offset}+${length} are not inside the blob ${digest} of ${size} bytes`)
    }
    const what = `pulling blob ${digest} of ${reference.registry}/${reference.repository}`
    let endpoint: Parameters<RegistryRequests['avoid']>[0] | undefined
    const open = async (range: { from: number; to: number } | undefined) => {
      const headers = range === undefined ? undefined : { range: `bytes=${range.from}-${range.to}` }
      const urls = this.#hosts.configOf(reference.registry).allowForeignUrls === true ? (descriptor.urls ?? []) : []
      const response = await this.#requests.send({
        method: 'GET', registry: reference.registry, repository: reference.repository, path: `blobs/${digest}`, what,
        accept: [416, ...(urls.length > 0 ? [404] : [])],
        headers, signal: options.signal,
      })
      endpoint = response.endpoint
      if (response.status !== 404) return response
      await discard(response.body)
      return await openForeign(this.#transport, urls, { what, ...this.#options, headers, signal: options.signal })
    }
    return streamBlob(
      { digest, size },
      {
        open,
        blame: () => endpoint && this.#requests.avoid(endpoint),
        onBytes: (bytes) => this.#metrics.received(bytes),
        onResume: (at, why) => {
          this.#metrics.resumed()
          this.#logger.info({ registry: reference.registry, digest, at, why }, 'a broken blob download goes on')
        },
      },
      what,
      { ...this.#options, range: { offset, length }, signal: options.signal },
    )
  }

  /** The blob's size in bytes, or undefined when the registry does not have it. */
  async headBlob(reference: Reference, digest: string, options: { signal?: AbortSignal } = {}): Promise<{ size: number } | undefined> {
    parseDigest(digest)
    const what = `looking up blob ${digest} of ${reference.registry}/${reference.repository}`
    const response = await this.#requests.send({
      method: 'HEAD', registry: reference.registry, repository: reference.repository, path: `blobs/${digest}`, what, accept: [404],
      signal: options.signal,
    })
    await discard(response.body)
    if (response.status === 404) return undefined
    const size = Number(response.headers['content-length'] ?? Number.NaN)
    if (!Number.isSafeInteger(size) || size < 0) throw new SkimmerError('INVALID_DATA', `${what}: ${response.url.host} does not say its size`)
    return { size }
  }

  /** All tags of the repository, page by page. What is no tag by the grammar is passed over. */
  async *tags(reference: Pick<Reference, 'registry' | 'repository'>, options: { pageSize?: number; signal?: AbortSignal } = {}): AsyncGenerator<string, void, undefined> {
    const what = `listing the tags of ${reference.registry}/${reference.repository}`
    let path: string | URL = 'tags/list'
    for (let page = 0; page < MAX_TAG_PAGES; page++) {
      const response = await this.#requests.send({
        method: 'GET', registry: reference.registry, repository: reference.repository, path, what,
        ...(page === 0 && options.pageSize !== undefined ? { query: { n: String(options.pageSize) } } : {}),
        signal: options.signal,
      })
      const { tags } = parseJsonObject(await readBody(response, MAX_TAGS_PAGE_BYTES, what, options.signal), `${what}: the answer`, MAX_TAGS_PAGE_BYTES)
      for (const tag of Array.isArray(tags) ? (tags as unknown[]) : []) if (typeof tag === 'string' && isTag(tag)) yield tag
      const next = nextPage(response, what)
      if (next === undefined) return
      path = next
    }
    throw new SkimmerError('LIMIT_EXCEEDED', `${what}: more than ${MAX_TAG_PAGES} pages`)
  }

  /** What was attached to the manifest `digest` (signatures, indexes): by the referrers API, or its fallback tag on older registries. */
  async referrers(reference: Reference, digest: string, artifactType?: string, options: { signal?: AbortSignal } = {}): Promise<IndexEntry[]> {
    return await listReferrers({ requests: this.#requests, manifest: (tagged) => this.#findManifest(tagged, options) }, reference, digest, artifactType, options.signal)
  }

  /** Checks that the registry is there and takes our credentials. */
  async ping(registry: string, options: { signal?: AbortSignal } = {}): Promise<void> {
    const response = await this.#requests.send({ method: 'GET', registry, path: '', what: `logging in to ${registry}`, signal: options.signal })
    await discard(response.body)
  }

  /** Uploads a blob unless the registry has it. `digest` may be left out for bytes; a stream needs digest and size. */
  async pushBlob(reference: Reference, content: BlobContent, digest?: string, options: { signal?: AbortSignal } = {}): Promise<{ digest: string; size: number }> {
    return await pushBlob({ requests: this.#requests, has: (wanted) => this.headBlob(reference, wanted, options) }, reference, content, digest, options.signal)
  }

  /** Stores a manifest or index under the reference's tag (or its digest) and returns the digest. A `subject` is made findable on registries without the referrers API too. */
  async pushManifest(reference: Reference, bytes: Uint8Array, mediaType: string, options: { signal?: AbortSignal } = {}): Promise<string> {
    return await pushManifest({ requests: this.#requests, manifest: (tagged) => this.#findManifest(tagged, options) }, reference, bytes, mediaType, options.signal)
  }
}

async function collect(stream: AsyncIterable<Buffer>): Promise<Buffer> {
  const chunks: Buffer[] = []
  for await (const chunk of stream) chunks.push(chunk)
  return Buffer.concat(chunks)
}
