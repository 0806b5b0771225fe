// Who may read which image: what the registry answered to whose credentials, remembered for minutes, and used beyond that when it is down.
import type { Logger } from 'pino'
import { atDigest } from '../oci/reference.ts'
import { SkimmerError, hasCode } from '../oci/errors.ts'
import type { Reference } from '../oci/reference.ts'
import { DEFAULT_ACCESS_TTL_MS, DEFAULT_PEER_ACCESS_MS, DEFAULT_REFUSED_GRACE_MS, DEFAULT_REVALIDATE_MS } from './defaults.ts'
import { accessRecordSchema } from './image-record.ts'
import type { ImageRecord } from './image-record.ts'
import type { RegistryAccess } from './registry-access.ts'
import type { SharedState, StateSpace } from './shared-state.ts'
import { SingleFlight } from './single-flight.ts'

export interface ImageAccessOptions {
  /** How long a registry's answer is believed without asking again, milliseconds. */
  accessTtlMs?: number
  /** How long an earlier yes outlives a later no for the same credentials, milliseconds. */
  refusedGraceMs?: number
  peerAccessMs?: number
  revalidateMs?: number
}

interface AccessRecord { allowed: boolean; checked: number; granted: number }

export class ImageAccess {
  readonly #answers: StateSpace<AccessRecord>
  readonly #logger: Logger
  readonly #clock: () => number
  readonly #options: Required<ImageAccessOptions>
  readonly #asking = new SingleFlight<boolean>()

  constructor(components: { state: SharedState; logger: Logger; clock?: () => number }, options: ImageAccessOptions = {}) {
    this.#answers = components.state.space('access', accessRecordSchema)
    this.#logger = components.logger
    this.#clock = components.clock ?? Date.now
    this.#options = {
      accessTtlMs: options.accessTtlMs ?? DEFAULT_ACCESS_TTL_MS, refusedGraceMs: options.refusedGraceMs ?? DEFAULT_REFUSED_GRACE_MS,
      peerAccessMs: options.peerAccessMs ?? DEFAULT_PEER_ACCESS_MS, revalidateMs: options.revalidateMs ?? DEFAULT_REVALIDATE_MS,
    }
  }

  /** The registry has just let `who` see this manifest. */
  async seen(image: ImageRecord, who: string): Promise<void> {
    const now = this.#clock()
    await this.#answers.put(keyOf(image, who), { allowed: true, checked: now, granted: now })
  }

  /** A peer was given this image: it may name it by its chainID from now on. */
  async seenByPeer(image: ImageRecord, peer: string): Promise<void> {
    await this.seen(image, `peer:${peer}`)
  }

  async peerMayRead(image: ImageRecord, peer: string): Promise<boolean> {
    const record = await this.#answers.get(keyOf(image, `peer:${peer}`))
    return record !== undefined && this.#clock() - record.granted <= this.#options.peerAccessMs
  }

  /**
   * May these credentials read the image? The answer of the last minutes if there is one, else the registry's. When the registry
   * cannot be asked, its last yes counts however old it is: what is indexed in the datacenter still starts.
   */
  async mayRead(image: ImageRecord, access: RegistryAccess): Promise<boolean> {
    const key = keyOf(image, access.who)
    const known = await this.#answers.get(key)
    if (known !== undefined && this.#clock() - known.checked < this.#options.accessTtlMs && known.allowed) return true
    return await this.#asking.run(key, () => this.#ask(key, image, access, known))
  }

  /** The registry refused: does an earlier yes still carry? */
  async refused(image: ImageRecord, who: string): Promise<boolean> {
    const key = keyOf(image, who)
    const known = await this.#answers.get(key)
    return await this.#refuse(key, image, known)
  }

  /** The registry could not be asked: did it ever say yes, and nothing else since? */
  async lastKnown(image: ImageRecord, who: string): Promise<boolean> {
    return (await this.#answers.get(keyOf(image, who)))?.allowed === true
  }

  async prune(oldest: number): Promise<void> {
    for await (const [key, answer] of this.#answers.entries()) if (answer.checked < oldest) await this.#answers.delete(key)
  }

  async #ask(key: string, image: ImageRecord, access: RegistryAccess, known: AccessRecord | undefined): Promise<boolean> {
    const reference: Reference = atDigest({ registry: image.registry, repository: image.repository }, image.manifestDigest)
    try {
      const found = await access.client.headManifest(reference, { signal: AbortSignal.timeout(this.#options.revalidateMs) })
      // A manifest that was deleted from the registry may be what runs everywhere: who could read it still can.
      if (found === undefined) return known?.allowed ?? false
      await this.seen(image, access.who)
      return true
    } catch (error) {
      if (hasCode(error, 'UNAUTHORIZED', 'FORBIDDEN')) return await this.#refuse(key, image, known)
      this.#logger.warn({ registry: image.registry, repository: image.repository, err: error }, 'the registry cannot be asked who may read an image; its last answer counts')
      return known?.allowed ?? false
    }
  }

  async #refuse(key: string, image: ImageRecord, known: AccessRecord | undefined): Promise<boolean> {
    const now = this.#clock()
    const carried = known !== undefined && known.allowed && now - known.granted <= this.#options.refusedGraceMs
    if (carried) this.#logger.warn({ registry: image.registry, repository: image.repository }, 'the registry now refuses credentials that it accepted before; running on its earlier answer: renew them')
    await this.#answers.put(key, { allowed: carried, checked: now, granted: known?.granted ?? 0 })
    return carried
  }
}

const keyOf = (image: ImageRecord, who: string): string => `${image.registry}/${image.repository}@${image.manifestDigest} ${who}`

/** The error of someone who may not read: it does not tell whether the image is here. */
export const mayNotRead = (reference: string, cause?: unknown): SkimmerError =>
  new SkimmerError('UNAUTHORIZED', `${reference}: the registry lets neither the node's nor the supernode's credentials read it; log in on the node, or give the supernode credentials`, { cause })
