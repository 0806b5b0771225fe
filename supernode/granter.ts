// Grants as the supernode gives them: which peer was let to read which resources, remembered so that grants can be renewed.
import { LRUCache } from 'lru-cache'
import type { Logger } from 'pino'
import { z } from 'zod'
import { SkimmerError } from '../oci/errors.ts'
import type { GrantSigner } from '../peer/grants.ts'
import { DEFAULT_GRANT_MS, DEFAULT_PEER_ACCESS_MS } from './defaults.ts'
import type { SharedState, StateSpace } from './shared-state.ts'
import { SingleFlight } from './single-flight.ts'

const grantedSchema = z.object({ resources: z.record(z.string(), z.number()) })
/** As many as one grant may name; the longest unused are forgotten first. */
const MAX_RESOURCES = 4_096
/** A grant within this of the last write is not worth another. */
const TOUCH_MS = 3_600_000
/** What was granted is written after this, for all that came meanwhile: who opens thousands of files would else have all of them written for each. */
const WRITE_MS = 1_000
/** Peers whose grants are kept in memory. */
const MAX_PEERS = 4_096

/** Resource -> when it was granted last. */
type Granted = Map<string, number>

export class Granter {
  readonly #signer: GrantSigner
  readonly #granted: StateSpace<{ resources: Record<string, number> }>
  readonly #logger: Logger
  readonly #clock: () => number
  readonly #grantMs: number
  readonly #peerAccessMs: number
  readonly #peers = new LRUCache<string, Granted>({ max: MAX_PEERS })
  readonly #loading = new SingleFlight<Granted>()
  /** What is not written yet. */
  readonly #unwritten = new Map<string, Granted>()
  #writing: NodeJS.Timeout | undefined

  constructor(components: { signer: GrantSigner; state: SharedState; logger: Logger; clock?: () => number }, options: { grantMs?: number; peerAccessMs?: number } = {}) {
    this.#signer = components.signer
    this.#granted = components.state.space('granted', grantedSchema)
    this.#logger = components.logger
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
    const granted = await this.#of(peer)
    if (resources.some(resource => now - (granted.get(resource) ?? -Infinity) > TOUCH_MS)) {
      for (const resource of resources) {
        granted.delete(resource)
        granted.set(resource, now)
      }
      // The longest ago granted stands first.
      for (const resource of granted.keys()) {
        if (granted.size <= MAX_RESOURCES) break
        granted.delete(resource)
      }
      this.#unwritten.set(peer, granted)
      this.#writing ??= setTimeout(() => { this.#write().catch((error: unknown) => { this.#logger.error({ err: error }, 'grants could not be saved: after a restart nodes must ask for them anew') }) }, WRITE_MS)
    }
    return this.#sign(peer, resources)
  }

  async mayRead(peer: string, resource: string): Promise<boolean> {
    const granted = (await this.#of(peer)).get(resource)
    return granted !== undefined && this.#clock() - granted <= this.#peerAccessMs
  }

  /** A new token for those of the resources that the peer was granted before; FORBIDDEN when that is none. */
  async renew(peer: string, resources: readonly string[]): Promise<string> {
    const allowed: string[] = []
    for (const resource of resources) if (await this.mayRead(peer, resource)) allowed.push(resource)
    if (allowed.length === 0) throw new SkimmerError('FORBIDDEN', 'none of these resources was granted to this node before: ask for the image or file again')
    return this.#sign(peer, allowed)
  }

  /** Writes what is not written yet. */
  async close(): Promise<void> {
    await this.#write()
  }

  async #of(peer: string): Promise<Granted> {
    const known = this.#peers.get(peer) ?? this.#unwritten.get(peer)
    if (known !== undefined) return known
    return await this.#loading.run(peer, async () => {
      const stored = (await this.#granted.get(peer))?.resources ?? {}
      const granted: Granted = new Map(Object.entries(stored).sort(([, a], [, b]) => a - b))
      this.#peers.set(peer, granted)
      return granted
    })
  }

  async #write(): Promise<void> {
    clearTimeout(this.#writing)
    this.#writing = undefined
    const oldest = this.#clock() - this.#peerAccessMs
    const writing = [...this.#unwritten]
    this.#unwritten.clear()
    for (const [peer, granted] of writing) {
      for (const [resource, at] of granted) if (at < oldest) granted.delete(resource)
      await this.#granted.put(peer, { resources: Object.fromEntries(granted) })
    }
  }

  #sign(peer: string, resources: readonly string[]): string {
    return this.#signer.sign({ peer, resources: [...resources], expires: this.#clock() + this.#grantMs })
  }
}
