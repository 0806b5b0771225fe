// Grants as the supernode gives them: which peer was let to read which resources, remembered so that grants can be renewed.
import { z } from 'zod'
import { SkimmerError } from '../oci/errors.ts'
import type { GrantSigner } from '../peer/grants.ts'
import { DEFAULT_GRANT_MS, DEFAULT_PEER_ACCESS_MS } from './defaults.ts'
import type { SharedState, StateSpace } from './shared-state.ts'

const grantedSchema = z.object({ resources: z.record(z.string(), z.number()) })
/** As many as one grant may name; the longest unused are forgotten first. */
const MAX_RESOURCES = 4_096
/** A grant within this of the last write is not worth another. */
const TOUCH_MS = 3_600_000

export class Granter {
  readonly #signer: GrantSigner
  readonly #granted: StateSpace<{ resources: Record<string, number> }>
  readonly #clock: () => number
  readonly #grantMs: number
  readonly #peerAccessMs: number

  constructor(components: { signer: GrantSigner; state: SharedState; clock?: () => number }, options: { grantMs?: number; peerAccessMs?: number } = {}) {
    this.#signer = components.signer
    this.#granted = components.state.space('granted', grantedSchema)
    this.#clock = components.clock ?? Date.now
    this.#grantMs = options.grantMs ?? DEFAULT_GRANT_MS
    this.#peerAccessMs = options.peerAccessMs ?? DEFAULT_PEER_ACCESS_MS
  }

  get publicKey(): string {
    return this.#signer.publicKey
  }

  /** A token for `peer`, who has just been let to read `resources`. */
  async grant(peer: string, resources: readonly string[]): Promise<string> {
    const now = this.#clock()
    await this.#granted.update(peer, value => {
      const known = value?.resources ?? {}
      if (resources.every(resource => now - (known[resource] ?? -Infinity) <= TOUCH_MS)) return undefined
      const kept = Object.entries({ ...known, ...Object.fromEntries(resources.map(resource => [resource, now])) })
        .filter(([, granted]) => now - granted <= this.#peerAccessMs).sort(([, a], [, b]) => b - a).slice(0, MAX_RESOURCES)
      return { resources: Object.fromEntries(kept) }
    })
    return this.#sign(peer, resources)
  }

  async mayRead(peer: string, resource: string): Promise<boolean> {
    const granted = (await this.#granted.get(peer))?.resources[resource]
    return granted !== undefined && this.#clock() - granted <= this.#peerAccessMs
  }

  /** A new token for those of the resources that the peer was granted before; FORBIDDEN when that is none. */
  async renew(peer: string, resources: readonly string[]): Promise<string> {
    const allowed: string[] = []
    for (const resource of resources) if (await this.mayRead(peer, resource)) allowed.push(resource)
    if (allowed.length === 0) throw new SkimmerError('FORBIDDEN', 'none of these resources was granted to this node before: resolve the image again')
    return this.#sign(peer, allowed)
  }

  #sign(peer: string, resources: readonly string[]): string {
    return this.#signer.sign({ peer, resources: [...resources], expires: this.#clock() + this.#grantMs })
  }
}
