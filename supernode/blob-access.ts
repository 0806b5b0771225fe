// Who may read which blob: what its registry answered to whose credentials, remembered for minutes, and used beyond that when the registry is down.
import type { Logger } from 'pino'
import { z } from 'zod'
import { SkimmerError, hasCode } from '../oci/errors.ts'
import type { Reference } from '../oci/reference.ts'
import { DEFAULT_ACCESS_TTL_MS, DEFAULT_REVALIDATE_MS } from './defaults.ts'
import type { RegistryAccess } from './registry-access.ts'
import type { SharedState, StateSpace } from './shared-state.ts'
import { SingleFlight } from './single-flight.ts'

const answerSchema = z.object({ size: z.number().int().min(0), checked: z.number() })
type Answer = z.infer<typeof answerSchema>

export class BlobAccess {
  readonly #answers: StateSpace<Answer>
  readonly #logger: Logger
  readonly #ttlMs: number
  readonly #asking = new SingleFlight<number>()

  /** `ttlMs`: how long a registry's yes is believed without asking again. */
  constructor(components: { state: SharedState; logger: Logger }, options: { ttlMs?: number } = {}) {
    this.#answers = components.state.space('blob-access', answerSchema)
    this.#logger = components.logger
    this.#ttlMs = options.ttlMs ?? DEFAULT_ACCESS_TTL_MS
  }

  /**
   * The blob's size, for those whom the registry lets read it. UNAUTHORIZED or FORBIDDEN when it does not, NOT_FOUND when it has no such blob.
   * When it cannot be asked, its last yes counts; UNAVAILABLE or TIMEOUT when it never said yes.
   */
  async size(reference: Reference, digest: string, access: RegistryAccess): Promise<number> {
    const key = `${reference.registry}/${reference.repository}@${digest} ${access.who}`
    const known = await this.#answers.get(key)
    if (known !== undefined && Date.now() - known.checked < this.#ttlMs) return known.size
    return await this.#asking.run(key, () => this.#ask(key, reference, digest, access, known))
  }

  /** Forgets answers that were checked last before `oldest`. */
  async prune(oldest: number): Promise<void> {
    for await (const [key, answer] of this.#answers.entries()) if (answer.checked < oldest) await this.#answers.delete(key)
  }

  async #ask(key: string, reference: Reference, digest: string, access: RegistryAccess, known: Answer | undefined): Promise<number> {
    const name = `${reference.registry}/${reference.repository}`
    try {
      // Somebody who has a yes waits only so long for another one.
      const found = await access.client.headBlob(reference, digest, known === undefined ? {} : { signal: AbortSignal.timeout(DEFAULT_REVALIDATE_MS) })
      if (found === undefined) throw new SkimmerError('NOT_FOUND', `${name} does not hold the blob ${digest}`)
      await this.#answers.put(key, { size: found.size, checked: Date.now() })
      return found.size
    } catch (error) {
      if (hasCode(error, 'UNAUTHORIZED', 'FORBIDDEN', 'NOT_FOUND')) {
        await this.#answers.delete(key)
        throw error
      }
      if (known === undefined) throw error
      this.#logger.warn({ blob: digest, repository: name, err: error }, 'the registry cannot be asked who may read a blob; its last answer counts')
      return known.size
    }
  }
}
