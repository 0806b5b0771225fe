// `/v2/`: whether there is a registry, and how one logs in to it. The token server's address is the registry's own: clients ask it themselves.
import { LRUCache } from 'lru-cache'
import { hasCode } from '../oci/errors.ts'
import { passOn } from './answers.ts'
import type { Outcome } from './answers.ts'
import { MAX_REFUSAL_BYTES } from './proxy-options.ts'
import type { ProxyRequest } from './proxy-request.ts'
import { isTrouble } from './upstream-requests.ts'
import type { SmallAnswer, UpstreamRequests } from './upstream-requests.ts'

/** A registry's challenge seldom changes; a client that logs in is asked about each time. */
const REMEMBERED_MS = 5 * 60_000
/** A registry that cannot be asked is not waited for at every client's greeting. */
const SILENCE_MS = 30_000
/** Clients greet before anything else, and give up soon. A registry that takes longer is taken for one that cannot be asked. */
const PATIENCE_MS = 4_000
const MAX_REMEMBERED = 10_000

interface Greeting {
  readonly until: number
  /** undefined: it could not be asked. */
  readonly answer: SmallAnswer | undefined
}

export class Ping {
  readonly #upstream: UpstreamRequests
  /** What each registry says to who brings nothing. */
  readonly #greetings = new LRUCache<string, Greeting>({ max: MAX_REMEMBERED })
  readonly #asking = new Map<string, Promise<SmallAnswer | undefined>>()

  constructor(components: { upstream: UpstreamRequests }) {
    this.#upstream = components.upstream
  }

  async answer(request: ProxyRequest): Promise<Outcome> {
    const { caller, method, response } = request
    const answer = caller.kind === 'client' && caller.authorization === undefined ? await this.#greeting(request) : await this.#ask(request)
    // When it cannot be asked: what is cached may still be served, so there is a registry as far as the client is concerned.
    if (answer !== undefined && answer.status !== 200) return passOn(response, answer)
    response.writeHead(200, { 'content-type': 'application/json', 'content-length': 2 })
    response.end(method === 'HEAD' ? undefined : '{}')
    return answer === undefined ? 'stale' : 'passed'
  }

  async #greeting(request: ProxyRequest): Promise<SmallAnswer | undefined> {
    const { registry } = request.upstream
    const known = this.#greetings.get(registry)
    if (known !== undefined && known.until > Date.now()) return known.answer
    let asking = this.#asking.get(registry)
    if (asking === undefined) {
      asking = this.#ask(request).then((answer) => {
        const remembered = answer ?? known?.answer
        this.#greetings.set(registry, { until: Date.now() + (answer === undefined ? SILENCE_MS : REMEMBERED_MS), answer: remembered })
        return remembered
      }).finally(() => this.#asking.delete(registry))
      asking.catch(() => {}) // who waits for it hears of it; nobody may be left
      this.#asking.set(registry, asking)
    }
    const patience = Promise.withResolvers<SmallAnswer | undefined>()
    const timer = setTimeout(() => patience.resolve(known?.answer), PATIENCE_MS)
    return await Promise.race([asking, patience.promise]).finally(() => clearTimeout(timer))
  }

  async #ask({ upstream, caller, mirrored }: ProxyRequest): Promise<SmallAnswer | undefined> {
    try {
      const answer = await this.#upstream.small({ method: 'GET', upstream, caller, mirrored, path: '' }, MAX_REFUSAL_BYTES)
      return isTrouble(answer.status) ? undefined : answer
    } catch (error) {
      if (hasCode(error, 'UNAVAILABLE', 'TIMEOUT')) return undefined
      throw error
    }
  }
}
