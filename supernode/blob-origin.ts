// Registry blobs as they are: one download for all whom the registry lets have it, checked against the digest before anyone has all of it.
import { LRUCache } from 'lru-cache'
import type { Logger } from 'pino'
import { SkimmerError, hasCode } from '../oci/errors.ts'
import { parseReference } from '../oci/reference.ts'
import type { Reference } from '../oci/reference.ts'
import type { ControlRequest } from '../peer/control.ts'
import { blockBytesFor } from '../peer/file-blocks.ts'
import { streamedDigest } from '../source/content-digest.ts'
import type { BlobAccess } from './blob-access.ts'
import { DEFAULT_PASSING_FAILURE_MS } from './defaults.ts'
import { DEFAULT_PRIORITY } from './priority-slots.ts'
import type { RegistryAccess, RegistryGate } from './registry-access.ts'
import { SingleFlight } from './single-flight.ts'
import type { StreamOrigin } from './stream-origin.ts'
import type { StreamRecord } from './stream-record.ts'
import type { StreamWork } from './stream-work.ts'

export type BlobRequest = ControlRequest<'blob.open'>

const MAX_REGISTRIES = 64
/** Wrong bytes come again when they are asked for again: not for every node that wants them, milliseconds. */
const BROKEN_MS = 60_000

export class BlobOrigin {
  readonly #streams: StreamOrigin
  readonly #gate: RegistryGate
  readonly #access: BlobAccess
  readonly #logger: Logger
  /** registry/repository and digest -> why it cannot be had from there. */
  readonly #failures = new LRUCache<string, { error: SkimmerError }>({ max: 10_000 })
  readonly #proofs = new SingleFlight<void>()

  constructor(components: { streams: StreamOrigin; gate: RegistryGate; access: BlobAccess; logger: Logger }) {
    this.#streams = components.streams
    this.#gate = components.gate
    this.#access = components.access
    this.#logger = components.logger
  }

  /**
   * A blob for a caller whom its registry lets have it: asked with the caller's credentials where he gave some (and then with no others),
   * else with this supernode's. Errors: UNAUTHORIZED, FORBIDDEN, NOT_FOUND, UNAVAILABLE, TIMEOUT, INVALID_ARGUMENT; DIGEST_MISMATCH for a
   * registry that gave wrong bytes a moment ago.
   */
  async open(request: BlobRequest): Promise<StreamWork> {
    const { digest } = request
    const reference = parseReference(`${request.reference}@${digest}`)
    const [access] = this.#gate.accesses(reference.registry, request.credentials)
    const size = await this.#access.size(reference, digest, access)
    const failure = this.#failures.get(nameOf(reference))
    if (failure !== undefined) throw failure.error
    const key = `blob:${digest}`
    for (;;) {
      const known = await this.#streams.known(key)
      // From here on without waiting: nobody else may begin it meanwhile.
      const record = this.#streams.running(key)?.record ?? known
      const seen = record === undefined ? !this.#streams.holds(key) : record.registries?.includes(reference.registry) === true
      if (seen) {
        const there = this.#streams.running(key) ?? (record && this.#streams.stored(key, record))
        return there === undefined ? this.#begin(request, reference, access, record, size) : joined(there, request)
      }
      await this.#proofs.run(nameOf(reference), () => this.#prove(reference, digest, access, record, size))
    }
  }

  #begin(request: BlobRequest, reference: Reference, access: RegistryAccess, known: StreamRecord | undefined, size: number): StreamWork {
    const { digest } = request
    const record = known?.head.length === size ? known : this.#recordOf(reference, digest, size)
    const work = this.#streams.begin(`blob:${digest}`, record, {
      priority: request.priority ?? DEFAULT_PRIORITY,
      read: signal => ({ offset, length }) => access.client.blob(reference, { digest, size }, { offset, ...(length !== undefined && { length }), signal }),
      // A whole blob is checked by the client while it passes, and its last bytes come only when they are right.
      check: all => (all ? undefined : streamedDigest(digest)),
    })
    void work.over.then(() => { this.#noteFailure(reference, work.failure) })
    return work
  }

  /**
   * The blob is here or on its way, but this registry was not seen to have it: that it says so is not enough, or anyone's registry could
   * lay claim to somebody's private blob. It must send the bytes.
   */
  async #prove(reference: Reference, digest: string, access: RegistryAccess, record: StreamRecord | undefined, size: number): Promise<void> {
    this.#logger.info({ blob: digest, repository: `${reference.registry}/${reference.repository}` }, 'a blob that is here is read from another registry too, which must show that it has it')
    try {
      for await (const chunk of access.client.blob(reference, { digest, size }, { signal: this.#streams.signal })) this.#streams.received('blob', chunk.length)
    } catch (error) {
      this.#noteFailure(reference, error)
      throw error
    }
    await this.#streams.change(`blob:${digest}`, record ?? this.#recordOf(reference, digest, size), now => ({ ...now, registries: [...new Set([...(now.registries ?? []), reference.registry])].slice(-MAX_REGISTRIES) }))
  }

  #noteFailure(reference: Reference, error: unknown): void {
    if (hasCode(error, 'DIGEST_MISMATCH', 'INVALID_DATA', 'LIMIT_EXCEEDED')) this.#failures.set(nameOf(reference), { error }, { ttl: BROKEN_MS })
    else if (hasCode(error, 'UNAVAILABLE', 'TIMEOUT', 'NO_SPACE', 'INTERNAL')) this.#failures.set(nameOf(reference), { error }, { ttl: DEFAULT_PASSING_FAILURE_MS })
  }

  #recordOf(reference: Reference, digest: string, size: number): StreamRecord {
    return {
      kind: 'blob', name: nameOf(reference), resource: `blob:${digest}`, head: { version: digest, length: size }, validated: true, blockBytes: blockBytesFor(size), length: size, complete: false, digest,
      registries: [reference.registry], madeAt: Date.now(), lastUse: Date.now(),
    }
  }
}

const nameOf = (reference: Reference): string => `${reference.registry}/${reference.repository}@${reference.digest}`

function joined(work: StreamWork, request: BlobRequest): StreamWork {
  work.priority = Math.min(work.priority, request.priority ?? DEFAULT_PRIORITY)
  return work
}
