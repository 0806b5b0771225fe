// Which repositories anyone may read: found out while their registry answers, so that they are served to anyone while it does not. Tokens expire within
// minutes and cannot be had anew from a registry that is down: without this only who sends passwords would be served then.
import { LRUCache } from 'lru-cache'
import type { Logger } from 'pino'
import { bareMediaType } from '../oci/media-types.ts'
import { ANYONE } from './caller.ts'
import type { Caller } from './caller.ts'
import type { ClientAccess } from './client-access.ts'
import { DEFAULT_ACCESS_OFFLINE_MS } from './proxy-options.ts'
import type { Upstream } from './upstream-choice.ts'
import type { UpstreamRequests } from './upstream-requests.ts'

const MAX_REPOSITORIES = 10_000
const PROBE_MS = 30_000

export class PublicRepositories {
  readonly #upstream: UpstreamRequests
  readonly #access: ClientAccess
  readonly #logger: Logger
  readonly #asked: LRUCache<string, true>
  readonly #running = new Set<Promise<void>>()
  readonly #stop = new AbortController()

  constructor(components: { upstream: UpstreamRequests; access: ClientAccess; logger: Logger }, options: { accessOfflineMs?: number } = {}) {
    this.#upstream = components.upstream
    this.#access = components.access
    this.#logger = components.logger
    this.#asked = new LRUCache({ max: MAX_REPOSITORIES, ttl: Math.max(60_000, (options.accessOfflineMs ?? DEFAULT_ACCESS_OFFLINE_MS) / 4) })
  }

  async stop(): Promise<void> {
    this.#stop.abort()
    await Promise.all(this.#running)
  }

  /** A client with a token was served this manifest: would anyone be? Asked in the background, by a HEAD with an anonymous token, a few times a day. */
  served(caller: Caller, upstream: Upstream, manifest: { digest: string; contentType: string }, mirrored: string | undefined): void {
    if (caller.kind !== 'client' || !/^bearer /i.test(caller.authorization ?? '')) return
    const name = `${upstream.registry}/${upstream.repository}`
    if (this.#asked.has(name)) return
    this.#asked.set(name, true)
    const asking = this.#ask(upstream, manifest, mirrored)
    this.#running.add(asking)
    void asking.finally(() => this.#running.delete(asking))
  }

  async #ask(upstream: Upstream, { digest, contentType }: { digest: string; contentType: string }, mirrored: string | undefined): Promise<void> {
    try {
      const signal = AbortSignal.any([this.#stop.signal, AbortSignal.timeout(PROBE_MS)])
      const { status } = await this.#upstream.small({ method: 'HEAD', upstream, caller: ANYONE, mirrored, path: `manifests/${digest}`, headers: { accept: bareMediaType(contentType) }, signal }, 0)
      if (status === 200) this.#access.granted(ANYONE, upstream, digest)
      else if (status === 401 || status === 403) this.#access.refused(ANYONE, upstream)
    } catch (error) {
      this.#logger.debug({ err: error, registry: upstream.registry }, 'it could not be found out whether anyone may read a repository')
    }
  }
}
