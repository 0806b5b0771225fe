// Files of the forward proxy as this node's downloads: the same downloads as dfget's, so that whoever asks for a URL shares it.
import type { Downloads } from '../peer/downloads.ts'
import type { TokenBucket } from '../peer/token-bucket.ts'
import type { OpenFile } from '../registry-proxy/forward/forward-options.ts'
import type { Sources } from '../source/sources.ts'
import { downloadRequestOf, fileRequestSchema } from '../dfget/file-request.ts'

/** `buckets`: what bytes over the network are paid from. */
export function forwardFiles({ downloads, sources, buckets }: { downloads: Downloads; sources: Sources; buckets: () => readonly TokenBucket[] }): OpenFile {
  return async ({ signal, fresh, ...wish }) => {
    const request = fileRequestSchema.parse({ ...wish, ...(fresh && { fresh: true }) })
    return await downloads.open(downloadRequestOf(request, { sources, buckets }), { signal })
  }
}
