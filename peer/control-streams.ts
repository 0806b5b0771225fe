// The control protocol's long calls by which a node follows a download of its supernode: what a URL answers, or a registry's blob.
import { z } from 'zod'
import { HASH_LENGTH } from '../image/block-table.ts'
import { MAX_BLOCK_BYTES } from './block-codec.ts'
import { count, credentials, digest, grant, reference, resourceIdSchema } from './control-fields.ts'

/** More hashes than this go into the next frame. */
export const MAX_HASHES_A_FRAME = 16_384
const MAX_HEADERS = 64

const name = z.string().max(1024)
const shown = z.string().max(8192)
const headerName = z.string().regex(/^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}$/, 'not a header name')
const headerValue = z.string().max(8192).regex(/^[^\r\n\0]*$/, 'a header value is one line')
/** 0 is the most urgent, as in Dragonfly: 6 waits for everyone else. */
const priority = z.number().int().min(0).max(6)
const fileDigest = z.string().regex(/^(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}|md5:[0-9a-f]{32}|crc32:[0-9a-f]{1,10})$/, 'a digest is sha256:…, sha512:…, md5:… or crc32:…, in lower case hex')
const hashes = z.base64().max(Math.ceil(MAX_HASHES_A_FRAME * HASH_LENGTH / 3) * 4).refine(text => {
  const bytes = text.length / 4 * 3 - (text.endsWith('==') ? 2 : text.endsWith('=') ? 1 : 0)
  return bytes > 0 && bytes % HASH_LENGTH === 0
}, `hashes have ${HASH_LENGTH} bytes each`)

/** What comes while a download goes on. A source that says its length has one part, told at once; else each part is told when it has been read. */
const streamProgress = z.union([
  /** First of all. `version` is opaque: two downloads of one version have the same bytes. */
  z.object({ head: z.object({ version: z.string().max(8192), length: count.optional(), contentType: shown.optional(), contentEncoding: shown.optional(), etag: shown.optional(), lastModified: shown.optional() }) }),
  /** A resource that holds `length` bytes of the stream from `offset` on, cut into blocks of `blockBytes`. */
  z.object({ part: z.object({ resource: resourceIdSchema, offset: count, length: count, blockBytes: z.number().int().min(1).max(MAX_BLOCK_BYTES), grant, last: z.boolean().optional() }) }),
  /** sha256 of the blocks of a part from block `from` on. */
  z.object({ hashes: z.object({ resource: resourceIdSchema, from: count, hashes }) }),
  /** Bytes that the supernode has read from the source so far. */
  z.object({ fetched: count }),
])
export type StreamProgress = z.infer<typeof streamProgress>

/** Everything was read, and everything said. `digest`: sha256 of the whole, when it was computed. */
const streamAnswer = z.object({ length: count, parts: count, digest: digest.optional() })
export type StreamAnswer = z.infer<typeof streamAnswer>

/**
 * Errors of both: NOT_FOUND, UNAUTHORIZED, FORBIDDEN (what the source says), CONFLICT (changed at the source while it was read: ask again),
 * UNAVAILABLE, TIMEOUT, DIGEST_MISMATCH, LIMIT_EXCEEDED, UNSUPPORTED.
 */
export const STREAM_OPERATIONS = {
  /** What a URL answers, downloaded by the supernode once for all who ask. */
  'file.open': {
    request: z.object({
      url: z.string().min(1).max(8192).optional(),
      headers: z.record(headerName, headerValue).refine(headers => Object.keys(headers).length <= MAX_HEADERS, `more than ${MAX_HEADERS} headers`).optional(),
      tag: name.optional(), application: name.optional(), identifier: name.optional(),
      /** Query parameters that make no other resource. */
      filteredQueryParams: z.array(name).max(256).optional(),
      /** Wanted bytes a block: see blockBytesFor(). */
      pieceLength: z.number().int().min(1).max(2 ** 32).optional(),
      expireMs: count.optional(),
      digest: fileDigest.optional(),
      /** Bytes of what the URL answers; `end` is included. */
      range: z.object({ start: count, end: count }).refine(({ start, end }) => start <= end, 'a range ends before it starts').optional(),
      priority: priority.optional(),
      /** PEM of authorities to trust for this source. */
      ca: z.string().max(256 * 1024).optional(),
      insecure: z.boolean().optional(),
      /** Ask the source again now, whatever was expected to be still good. */
      fresh: z.boolean().optional(),
      /** A file that this peer was told to hold (`hold-file`); needs no url. */
      resource: resourceIdSchema.optional(),
    }).refine(({ url, resource }) => url !== undefined || resource !== undefined, { path: ['url'], message: 'neither a url nor a resource' }),
    answer: streamAnswer, progress: streamProgress,
  },
  /** A registry's blob as it is. `reference` is registry/repository. */
  'blob.open': {
    request: z.object({ reference, digest, size: count.optional(), credentials: credentials.optional(), priority: priority.optional() }),
    answer: streamAnswer, progress: streamProgress,
  },
} as const
