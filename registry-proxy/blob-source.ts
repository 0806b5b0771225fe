// A blob straight from its registry on behalf of one client, as the source of a download: when no supernode and no peer gives it.
import { streamBlob } from '../oci/blob-stream.ts'
import { SkimmerError } from '../oci/errors.ts'
import { discard } from '../oci/transport.ts'
import type { SourceAnswer, SourceFrom } from '../peer/download-request.ts'
import { blockBytesFor } from '../peer/file-blocks.ts'
import type { Caller } from './caller.ts'
import type { Upstream } from './upstream-choice.ts'
import type { UpstreamAnswer, UpstreamRequests } from './upstream-requests.ts'

export interface BlobWish {
  readonly digest: string
  readonly size: number
  readonly upstream: Upstream
  readonly caller: Caller
  readonly mirrored: string | undefined
}

/** Bytes from `offset`, resumed by Range where a connection breaks; those of a whole blob are checked against its digest. */
export function blobSource(requests: UpstreamRequests, wish: BlobWish): (from: SourceFrom) => Promise<SourceAnswer> {
  return async ({ offset, signal }) => ({
    version: wish.digest,
    length: wish.size,
    resourceId: () => `blob:${wish.digest}`,
    blockBytes: blockBytesFor(wish.size),
    body: registryBlob(requests, wish, { from: offset, to: wish.size, signal }),
  })
}

export function registryBlob(requests: UpstreamRequests, wish: BlobWish, { from, to, signal }: { from: number; to: number; signal: AbortSignal }): AsyncIterable<Buffer> {
  const { digest, size, upstream, caller, mirrored } = wish
  const what = `pulling blob ${digest} of ${upstream.registry}/${upstream.repository}`
  return streamBlob({ digest, size }, {
    open: async (range) => {
      const headers: Record<string, string> = range === undefined ? {} : { range: `bytes=${range.from}-${range.to}` }
      const answer = await requests.send({ method: 'GET', upstream, caller, mirrored, path: `blobs/${digest}`, headers, signal })
      if (answer.status === 200 || answer.status === 206 || answer.status === 416) return answer
      throw await refusal(answer, what)
    },
  }, what, { range: { offset: from, length: to - from }, signal })
}

async function refusal(answer: UpstreamAnswer, what: string): Promise<SkimmerError> {
  await discard(answer.body)
  const { status } = answer
  const code = status === 401 || status === 403 ? 'UNAUTHORIZED' : status === 404 ? 'NOT_FOUND' : 'UNAVAILABLE'
  return new SkimmerError(code, `${what}: ${answer.url.host} answered ${status}`, { details: { status, transient: status >= 500 } })
}
