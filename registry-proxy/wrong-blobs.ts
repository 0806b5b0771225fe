// Digests under which wrong bytes were seen a moment ago: parts of such a blob cannot be checked, so none are given until all of it was right once.
import { LRUCache } from 'lru-cache'
import { SkimmerError } from '../oci/errors.ts'

const MAX_DIGESTS = 1000
const REMEMBERED_MS = 10 * 60_000

export class WrongBlobs {
  readonly #digests = new LRUCache<string, true>({ max: MAX_DIGESTS, ttl: REMEMBERED_MS })

  seen(digest: string): void {
    this.#digests.set(digest, true)
  }

  right(digest: string): void {
    this.#digests.delete(digest)
  }

  /** A client whose connection broke off has wrong bytes already: with the rest it would have a file that looks whole. DIGEST_MISMATCH. */
  refuseParts(digest: string): void {
    if (this.#digests.has(digest)) throw new SkimmerError('DIGEST_MISMATCH', `bytes that are not ${digest} were seen under this digest a moment ago: no part of it is given, ask for the whole`)
  }
}
