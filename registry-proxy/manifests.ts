// Manifests by tag and by digest: from here when the registry would give this client the same, else from the registry, and kept.
import type { IncomingHttpHeaders } from 'node:http'
import type { Logger } from 'pino'
import { digestOf, isDigest, parseDigest } from '../oci/digest.ts'
import { SkimmerError, hasCode } from '../oci/errors.ts'
import { MAX_MANIFEST_BYTES } from '../oci/manifest.ts'
import { bareMediaType, isSchema1Type } from '../oci/media-types.ts'
import { isTag } from '../oci/reference.ts'
import { accepts, wishKey } from './accept.ts'
import { answerProblem, passOn } from './answers.ts'
import type { Outcome } from './answers.ts'
import type { ClientAccess } from './client-access.ts'
import type { CachedManifest, ManifestCache, TagFact } from './manifest-cache.ts'
import { headerOf, isKnown } from './proxy-request.ts'
import type { ProxyRequest } from './proxy-request.ts'
import type { PublicRepositories } from './public-repositories.ts'
import { DEFAULT_STALE_TAGS_MS, DEFAULT_TAG_TTL_MS, STALE_LOOK_UP_MS } from './proxy-options.ts'
import { isTrouble } from './upstream-requests.ts'
import type { SmallAnswer, UpstreamRequests } from './upstream-requests.ts'

export interface ManifestsOptions {
  readonly tagTtlMs?: number
  readonly staleTagsMs?: number
}

/** What a registry said, or the reason why it could not be asked. */
type Heard = { readonly answer: SmallAnswer } | { readonly down: SkimmerError | SmallAnswer }

export class Manifests {
  readonly #upstream: UpstreamRequests
  readonly #cache: ManifestCache
  readonly #access: ClientAccess
  readonly #public: PublicRepositories
  readonly #logger: Logger
  readonly #now: () => number
  readonly #tagTtlMs: number
  readonly #staleTagsMs: number
  /** Many clients that want the same at once, with the same credentials, are one question. */
  readonly #asking = new Map<string, Promise<Heard>>()

  constructor(components: { upstream: UpstreamRequests; cache: ManifestCache; access: ClientAccess; publicRepositories: PublicRepositories; logger: Logger; clock?: () => number }, options: ManifestsOptions = {}) {
    this.#upstream = components.upstream
    this.#cache = components.cache
    this.#access = components.access
    this.#public = components.publicRepositories
    this.#logger = components.logger
    this.#now = components.clock ?? Date.now
    this.#tagTtlMs = options.tagTtlMs ?? DEFAULT_TAG_TTL_MS
    this.#staleTagsMs = options.staleTagsMs ?? DEFAULT_STALE_TAGS_MS
  }

  async answer(request: ProxyRequest, reference: string): Promise<Outcome> {
    if (isDigest(reference)) return await this.#byDigest(request, reference)
    if (isTag(reference)) return await this.#byTag(request, reference)
    answerProblem(request.response, 400, reference.includes(':') ? 'DIGEST_INVALID' : 'MANIFEST_INVALID', `${JSON.stringify(reference.slice(0, 140))} is neither a tag nor a digest`)
    return 'invalid'
  }

  async #byDigest(request: ProxyRequest, digest: string): Promise<Outcome> {
    const { caller, upstream } = request
    const cached = await this.#suiting(request, digest)
    if (cached === undefined) return await this.#fetch(request, digest)
    if (this.#access.mayRead(caller, upstream, digest)) return this.#send(request, cached, 'hit')
    // By its type: some registries answer 404 to whoever does not name it, and this client takes it.
    const heard = await this.#ask(request, 'HEAD', digest, { accept: bareMediaType(cached.contentType), hurry: this.#access.mayReadOffline(caller, upstream, digest) })
    if ('answer' in heard) {
      if (heard.answer.status === 404) this.#access.missing(upstream, digest)
      if (heard.answer.status !== 200) return this.#passRefusal(request, heard.answer)
      this.#access.granted(caller, upstream, digest)
      return this.#send(request, cached, 'hit')
    }
    if (!this.#access.mayReadOffline(caller, upstream, digest)) return this.#sendDown(request, heard.down)
    return this.#send(request, cached, 'stale')
  }

  async #byTag(request: ProxyRequest, tag: string): Promise<Outcome> {
    const { caller, upstream, method } = request
    const accept = headerOf(request.incoming.headers.accept)
    const fact = await this.#cache.tag(upstream, tag, accept)
    const cached = fact === undefined ? undefined : await this.#suiting(request, fact.digest)
    if (fact !== undefined && this.#now() - fact.checked < this.#tagTtlMs && this.#access.mayRead(caller, upstream, fact.digest)) {
      if (cached !== undefined) return this.#send(request, cached, 'hit')
      if (method === 'HEAD') return this.#sendHead(request, fact)
    }
    if (cached === undefined && method === 'GET') return await this.#fetch(request, tag, fact)

    // What is here is asked for by its head alone: that costs no pull where pulls are counted, and 304 or the same digest settles it.
    const heard = await this.#ask(request, 'HEAD', tag, { ...(cached !== undefined && { etag: fact?.etag }), hurry: this.#mayServeStale(request, fact) })
    if ('down' in heard) return this.#stale(request, fact, cached, heard.down)
    const { answer } = heard
    if (answer.status === 304 && fact !== undefined && cached !== undefined) {
      await this.#note(request, tag, fact)
      return this.#send(request, cached, 'hit')
    }
    if (answer.status !== 200) {
      if (answer.status === 405 && method === 'GET') return await this.#fetch(request, tag, fact)
      if (answer.status === 404) await this.#cache.forgetTag(upstream, tag, accept)
      return this.#passRefusal(request, answer)
    }
    const said = statedHead(answer.headers)
    if (said !== undefined) await this.#note(request, tag, said)
    if (method === 'HEAD') return passOn(request.response, answer)
    const now = said === undefined ? undefined : await this.#suiting(request, said.digest)
    return now === undefined ? await this.#fetch(request, tag, fact) : this.#send(request, now, 'hit')
  }

  /** From the registry, checked, kept and passed on. */
  async #fetch(request: ProxyRequest, reference: string, fact?: TagFact): Promise<Outcome> {
    const { upstream, caller, method } = request
    const heard = await this.#ask(request, method, reference)
    if ('down' in heard) return this.#stale(request, fact, undefined, heard.down)
    const { answer } = heard
    const expected = isDigest(reference) ? reference : undefined
    if (answer.status !== 200) return this.#passRefusal(request, answer)
    if (method === 'HEAD') {
      this.#access.granted(caller, upstream, expected)
      return passOn(request.response, answer)
    }
    const contentType = String(answer.headers['content-type'] ?? 'application/octet-stream')
    const stated = headerOf(answer.headers['docker-content-digest'])
    // A signed schema 1 manifest is not hashed as it is: its client must judge it, and it is not kept.
    if (isSchema1Type(bareMediaType(contentType))) return passOn(request.response, answer)
    const digest = digestOf(answer.bytes, expected === undefined && (stated === undefined || !isDigest(stated)) ? 'sha256' : parseDigest(expected ?? stated!).algorithm)
    if ((expected !== undefined && digest !== expected) || (stated !== undefined && isDigest(stated) && expected === undefined && stated !== digest)) {
      throw new SkimmerError('DIGEST_MISMATCH', `${upstream.registry}/${upstream.repository}: the registry answers ${reference} with bytes of ${digest}${expected === undefined ? `, and says that they are ${stated}` : ''}; they are not passed on`)
    }
    const manifest: CachedManifest = { digest, contentType, bytes: answer.bytes }
    this.#access.granted(caller, upstream, digest)
    await this.#cache.keep(manifest)
    if (expected === undefined) await this.#note(request, reference, { digest, contentType, size: answer.bytes.length, ...etagOf(answer.headers) })
    return this.#send(request, manifest, 'miss')
  }

  /** What is here under this digest, when the client takes its type. */
  async #suiting(request: ProxyRequest, digest: string): Promise<CachedManifest | undefined> {
    const cached = await this.#cache.find(digest)
    return cached !== undefined && accepts(headerOf(request.incoming.headers.accept), cached.contentType) ? cached : undefined
  }

  async #note(request: ProxyRequest, tag: string, said: Omit<TagFact, 'checked'>): Promise<void> {
    this.#access.granted(request.caller, request.upstream, said.digest)
    const { digest, contentType, size, etag } = said
    await this.#cache.noteTag(request.upstream, tag, headerOf(request.incoming.headers.accept), { digest, contentType, size, ...(etag !== undefined && { etag }) })
  }

  #ask(request: ProxyRequest, method: 'GET' | 'HEAD', reference: string, how: { accept?: string; etag?: string | undefined; hurry?: boolean } = {}): Promise<Heard> {
    const { upstream, caller, mirrored, incoming } = request
    const { accept = headerOf(incoming.headers.accept), etag, hurry = false } = how
    const key = JSON.stringify([method, upstream.registry, upstream.repository, reference, wishKey(accept), etag, caller.identity, mirrored, hurry])
    let asking = this.#asking.get(key)
    if (asking === undefined) {
      const headers = { ...(accept !== undefined && { accept }), ...(etag !== undefined && { 'if-none-match': etag }) }
      // Shared, so no one client's leaving may end it; the transport's timeouts bound it.
      asking = this.#hear(this.#upstream.small({ method, upstream, caller, mirrored, path: `manifests/${reference}`, headers, ...(hurry && { signal: AbortSignal.timeout(STALE_LOOK_UP_MS) }) }, MAX_MANIFEST_BYTES)).finally(() => this.#asking.delete(key))
      this.#asking.set(key, asking)
    }
    return asking
  }

  async #hear(asked: Promise<SmallAnswer>): Promise<Heard> {
    try {
      const answer = await asked
      return isTrouble(answer.status) ? { down: answer } : { answer }
    } catch (error) {
      if (hasCode(error, 'UNAVAILABLE', 'TIMEOUT')) return { down: error }
      throw error
    }
  }

  #mayServeStale({ caller, upstream }: ProxyRequest, fact: TagFact | undefined): boolean {
    return fact !== undefined && this.#now() - fact.checked < this.#staleTagsMs && this.#access.mayReadOffline(caller, upstream, fact.digest)
  }

  /** The registry cannot be asked: what a tag stood for not long ago, to those whom it served not long ago. */
  #stale(request: ProxyRequest, fact: TagFact | undefined, cached: CachedManifest | undefined, down: SkimmerError | SmallAnswer): Outcome {
    if (fact === undefined || !this.#mayServeStale(request, fact)) return this.#sendDown(request, down)
    this.#logger.info({ registry: request.upstream.registry, repository: request.upstream.repository, ageMs: this.#now() - fact.checked }, 'the registry cannot be asked: a tag is served as it was')
    if (cached !== undefined) return this.#send(request, cached, 'stale')
    return request.method === 'HEAD' ? this.#sendHead(request, fact, 'stale') : this.#sendDown(request, down)
  }

  #send(request: ProxyRequest, manifest: CachedManifest, outcome: Outcome): Outcome {
    const { response, method, incoming } = request
    if (outcome !== 'stale') this.#public.served(request.caller, request.upstream, manifest, request.mirrored)
    const headers = headersOf(manifest.digest, manifest.contentType, outcome)
    if (isKnown(headerOf(incoming.headers['if-none-match']), headers.etag)) {
      response.writeHead(304, { etag: headers.etag, 'docker-content-digest': manifest.digest })
      response.end()
      return outcome
    }
    response.writeHead(200, { ...headers, 'content-length': manifest.bytes.length })
    response.end(method === 'HEAD' ? undefined : manifest.bytes)
    return outcome
  }

  #sendHead(request: ProxyRequest, fact: TagFact, outcome: Outcome = 'hit'): Outcome {
    request.response.writeHead(200, { ...headersOf(fact.digest, fact.contentType, outcome), 'content-length': fact.size })
    request.response.end()
    return outcome
  }

  #passRefusal(request: ProxyRequest, answer: SmallAnswer): Outcome {
    if (answer.status === 401 || answer.status === 403) this.#access.refused(request.caller, request.upstream)
    return passOn(request.response, answer, {}, 'MANIFEST_UNKNOWN')
  }

  #sendDown(request: ProxyRequest, down: SkimmerError | SmallAnswer): Outcome {
    if (down instanceof SkimmerError) throw down
    return passOn(request.response, down)
  }
}

const headersOf = (digest: string, contentType: string, outcome: Outcome): { etag: string } & Record<string, string> => ({
  'content-type': contentType,
  'docker-content-digest': digest,
  etag: `"${digest}"`,
  ...(outcome === 'stale' && { warning: '110 skimmer "the registry cannot be asked"' }),
})

function etagOf(headers: IncomingHttpHeaders): { etag?: string } {
  const { etag } = headers
  return etag !== undefined && /^(?:W\/)?"[\x21\x23-\x7e]{1,300}"$/.test(etag) ? { etag } : {}
}

function statedHead(headers: IncomingHttpHeaders): Omit<TagFact, 'checked'> | undefined {
  const digest = headerOf(headers['docker-content-digest']) ?? ''
  const size = Number(headers['content-length'] ?? Number.NaN)
  if (!isDigest(digest) || !Number.isSafeInteger(size) || headers['content-type'] === undefined) return undefined
  return { digest, contentType: headers['content-type'], size, ...etagOf(headers) }
}
