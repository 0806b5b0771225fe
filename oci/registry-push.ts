// Pushing: blobs in one piece, manifests under a tag or digest, and the referrers fallback for registries that need it.
import { digestOf, digestMismatch, parseDigest, verifyDigest } from './digest.ts'
import { SkimmerError } from './errors.ts'
import { parseManifest } from './manifest.ts'
import { MEDIA_TYPES } from './media-types.ts'
import { shownUrl } from './network-errors.ts'
import { linkTarget } from './pages.ts'
import type { Reference } from './reference.ts'
import { fallbackIndexWith } from './referrers.ts'
import type { ReferrerComponents } from './referrers.ts'
import type { RegistryRequests } from './registry-requests.ts'
import { discard } from './transport.ts'

/** Bytes, or a stream of known size (sent once: a broken connection fails the push). */
export type BlobContent = Uint8Array | { readonly stream: AsyncIterable<Uint8Array>; readonly size: number }

export async function pushBlob(
  components: { requests: RegistryRequests; has: (digest: string) => Promise<{ size: number } | undefined> },
  { registry, repository }: Reference,
  content: BlobContent,
  digest: string | undefined,
  signal: AbortSignal | undefined,
): Promise<{ digest: string; size: number }> {
  const bytes = content instanceof Uint8Array ? content : undefined
  const size = content instanceof Uint8Array ? content.length : content.size
  if (digest === undefined && bytes === undefined) throw new SkimmerError('INVALID_ARGUMENT', `pushing a stream to ${registry}/${repository} needs its digest`)
  const named = digest ?? digestOf(bytes!)
  parseDigest(named)
  const what = `pushing blob ${named} to ${registry}/${repository}`
  if (bytes !== undefined && digest !== undefined) verifyDigest(bytes, digest, what)
  if ((await components.has(named)) !== undefined) return { digest: named, size }

  const common = { registry, repository, what, push: true, signal }
  const started = await components.requests.send({ ...common, method: 'POST', path: 'blobs/uploads/' })
  await discard(started.body)
  const location = started.headers.location
  const upload = typeof location === 'string' ? linkTarget(location, started.asked) : null
  if (upload === null || (upload.protocol !== 'https:' && (upload.protocol !== 'http:' || started.asked.protocol === 'https:'))) {
    throw new SkimmerError('INVALID_DATA', `${what}: ${started.asked.host} gave no usable place to upload to${upload === null ? '' : ` (${shownUrl(upload)})`}`)
  }
  upload.searchParams.set('digest', named)
  const stored = await components.requests.send({ ...common, method: 'PUT', path: upload, body: content, headers: { 'content-type': 'application/octet-stream' } })
  await discard(stored.body)
  return { digest: named, size }
}

export async function pushManifest(components: ReferrerComponents, reference: Reference, bytes: Uint8Array, mediaType: string, signal: AbortSignal | undefined): Promise<string> {
  const { registry, repository } = reference
  const digest = digestOf(bytes, reference.digest === undefined ? 'sha256' : parseDigest(reference.digest).algorithm)
  const what = `pushing the manifest ${digest} to ${registry}/${repository}`
  if (reference.digest !== undefined && reference.digest !== digest) throw digestMismatch(what, reference.digest, digest)
  const manifest = parseManifest(bytes, mediaType, what)
  const response = await components.requests.send({
    method: 'PUT', registry, repository, path: `manifests/${reference.tag ?? digest}`, what, push: true,
    body: bytes, headers: { 'content-type': mediaType }, signal,
  })
  await discard(response.body)
  // A registry that keeps track of subjects says so; for the others it is the pusher's duty (spec: "Pushing Manifests with Subject").
  if (manifest.subject !== undefined && response.headers['oci-subject'] === undefined) {
    const artifactType = manifest.artifactType ?? (manifest.kind === 'manifest' ? manifest.config.mediaType : undefined)
    const entry = {
      mediaType, digest, size: bytes.length,
      artifactType, ...(manifest.annotations === undefined ? {} : { annotations: manifest.annotations }),
    }
    const { tagged, bytes: index } = await fallbackIndexWith(components, reference, manifest.subject.digest, entry)
    await pushManifest(components, tagged, index, MEDIA_TYPES.ociIndex, signal)
  }
  return digest
}
