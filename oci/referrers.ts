// Referrers: what points at a manifest by `subject`. The distribution spec's API, and the tag schema where a registry lacks it.
import { MAX_REFERRER_PAGES } from './defaults.ts'
import { parseDigest } from './digest.ts'
import { SkimmerError } from './errors.ts'
import { MAX_MANIFEST_BYTES, parseManifest } from './manifest.ts'
import type { IndexEntry } from './manifest.ts'
import { MEDIA_TYPES, bareMediaType } from './media-types.ts'
import { nextPage } from './pages.ts'
import type { Reference } from './reference.ts'
import type { RegistryRequests } from './registry-requests.ts'
import { discard, readBody } from './transport.ts'

export interface ReferrerComponents {
  readonly requests: RegistryRequests
  readonly manifest: (tagged: Reference) => Promise<{ bytes: Buffer; mediaType: string; digest: string } | undefined>
}

/** The tag that stands in for the API: `sha256-<hex>`, by the spec's "Referrers Tag Schema" cut to 32 and 64 characters. */
export function referrersTag(digest: string): string {
  const { algorithm, hex } = parseDigest(digest)
  return `${algorithm.slice(0, 32)}-${hex.slice(0, 64)}`
}

/** Entries whose artifactType is the wanted one (all without), each once. No referrers is an empty list, not an error. */
export async function listReferrers(components: ReferrerComponents, reference: Reference, digest: string, artifactType?: string, signal?: AbortSignal): Promise<IndexEntry[]> {
  const found = (await fromApi(components, reference, digest, artifactType, signal)) ?? (await fromTag(components, reference, digest))
  const byDigest = new Map(found.map((entry) => [entry.digest, entry]))
  // Filtering is a request that registries may ignore.
  return [...byDigest.values()].filter((entry) => artifactType === undefined || entry.artifactType === artifactType)
}

async function fromApi({ requests }: ReferrerComponents, reference: Reference, digest: string, artifactType: string | undefined, signal: AbortSignal | undefined): Promise<IndexEntry[] | undefined> {
  parseDigest(digest)
  const what = `listing the referrers of ${reference.registry}/${reference.repository}@${digest}`
  const entries: IndexEntry[] = []
  let path: string | URL = `referrers/${digest}`
  for (let page = 0; page < MAX_REFERRER_PAGES; page++) {
    const response = await requests.send({
      method: 'GET', registry: reference.registry, repository: reference.repository, path, what, accept: [400, 404, 405, 406],
      headers: { accept: MEDIA_TYPES.ociIndex },
      ...(page === 0 && artifactType !== undefined ? { query: { artifactType } } : {}), signal,
    })
    if (response.status !== 200 || bareMediaType(response.headers['content-type'] ?? '') !== MEDIA_TYPES.ociIndex) {
      await discard(response.body)
      return undefined
    }
    const index = parseManifest(await readBody(response, MAX_MANIFEST_BYTES, what, signal), MEDIA_TYPES.ociIndex, `${what}: the answer`)
    if (index.kind === 'index') entries.push(...index.manifests)
    const next = nextPage(response, what)
    if (next === undefined) return entries
    path = next
  }
  throw new SkimmerError('LIMIT_EXCEEDED', `${what}: more than ${MAX_REFERRER_PAGES} pages`)
}

async function fromTag({ manifest }: ReferrerComponents, { registry, repository }: Reference, digest: string): Promise<IndexEntry[]> {
  const found = await manifest({ registry, repository, tag: referrersTag(digest) })
  if (found === undefined) return []
  const index = parseManifest(found.bytes, found.mediaType, `the referrers tag of ${registry}/${repository}@${digest}`)
  return index.kind === 'index' ? index.manifests : []
}

/** The fallback tag's index with one more entry, for a registry that does not keep track itself. */
export async function fallbackIndexWith(components: ReferrerComponents, reference: Reference, subject: string, entry: IndexEntry): Promise<{ tagged: Reference; bytes: Buffer }> {
  const present = await fromTag(components, reference, subject)
  const manifests = [...present.filter((other) => other.digest !== entry.digest), entry]
  return {
    tagged: { registry: reference.registry, repository: reference.repository, tag: referrersTag(subject) },
    bytes: Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests })),
  }
}
