// A request to dfget's API as the peer's downloads know it: what the supernode is asked, and how this host reads the source itself.
import { hash } from 'node:crypto'
import { z } from 'zod'
import { SkimmerError } from '../oci/errors.ts'
import { CONTROL_OPERATIONS } from '../peer/control.ts'
import type { DownloadRequest, SourceAnswer, SourceFrom } from '../peer/download-request.ts'
import { blockBytesFor } from '../peer/file-blocks.ts'
import type { TokenBucket } from '../peer/token-bucket.ts'
import { parseContentDigest } from '../source/content-digest.ts'
import { normalizeHeaders } from '../source/request-headers.ts'
import { resumable } from '../source/resumable.ts'
import type { Sources } from '../source/sources.ts'
import { parseSourceUrl } from '../source/source-url.ts'
import { fileResourceId, taskKey } from '../source/task-key.ts'

const { resource: _, ...asked } = CONTROL_OPERATIONS['file.open'].request.shape
const bytesPerSecond = z.number().int().min(1).max(Number.MAX_SAFE_INTEGER)

/** The body of `POST /v1/files`. Sizes are bytes, times milliseconds. */
export const fileRequestSchema = z.strictObject({
  ...asked,
  url: z.string().min(1).max(8192),
  digest: z.string().max(200).optional(),
  /** p2p (default): peers and the supernode; cdn: the supernode alone; source: neither. */
  pattern: z.enum(['p2p', 'cdn', 'source']).default('p2p'),
  /** May this host read the source itself when the supernode cannot be had? */
  backToSource: z.boolean().default(true),
  /** For this download. */
  bytesPerSecond: bytesPerSecond.optional(),
  /** For all downloads through this process while this one runs; the smallest that is named anywhere counts. */
  totalBytesPerSecond: bytesPerSecond.optional(),
  /** The answer begins with this byte of the file (or of its range): for going on after a broken connection. Needs `version`. */
  from: z.number().int().min(0).max(Number.MAX_SAFE_INTEGER).optional(),
  /** The answer must be of this version (`x-skimmer-version` of the answer that broke), else CONFLICT. */
  version: z.string().max(8192).optional(),
  /** A peer that lives for downloads alone lives at least this long after this one. Nodes ignore it. */
  aliveMs: z.number().int().min(0).max(30 * 86_400_000).optional(),
}).refine(({ from, version }) => from === undefined || from === 0 || version !== undefined, { path: ['from'], message: 'going on from a byte needs the version of the bytes before it' })
export type FileRequest = z.infer<typeof fileRequestSchema>
/** As a caller writes it. */
export type FileRequestInput = z.input<typeof fileRequestSchema>

/**
 * Requests with the same key share a download while it runs: same file, same caller's headers, same ways to get it. INVALID_ARGUMENT: URL, header or
 * digest is none; UNSUPPORTED: the pattern or the protocol does not go this way.
 */
export function downloadRequestOf(request: FileRequest, components: { sources: Sources; buckets: () => readonly TokenBucket[] }): DownloadRequest {
  const { pattern, backToSource, bytesPerSecond: _rate, totalBytesPerSecond: _total, from: _from, version: _version, aliveMs: _alive, ...file } = request
  const { protocol } = parseSourceUrl(request.url)
  if (protocol !== 'http:' && protocol !== 'https:') {
    throw new SkimmerError('UNSUPPORTED', `${protocol}// does not go through the swarm: dfget reads it straight from its source`)
  }
  const ask = { ...file, headers: normalizeHeaders(file.headers), ...(file.digest !== undefined && { digest: parseContentDigest(file.digest).text }) }
  const task = taskKey(ask)
  return {
    key: hash('sha256', JSON.stringify([task, ask.url, Object.entries(ask.headers).toSorted(([a], [b]) => (a < b ? -1 : 1)), ask.fresh === true, ask.expireMs, pattern, backToSource, request.bytesPerSecond, request.totalBytesPerSecond]), 'hex'),
    ...(pattern !== 'source' && { ask: { operation: 'file.open' as const, request: ask } }),
    ...((pattern === 'source' || backToSource) && { source: (where: SourceFrom) => readSource(ask, task, where, components.sources) }),
    peers: pattern === 'p2p',
    bytesPerSecond: components.buckets,
    ...(ask.digest?.startsWith('sha256:') && { digest: ask.digest }),
  }
}

type Asked = Omit<FileRequest, 'pattern' | 'backToSource' | 'bytesPerSecond' | 'totalBytesPerSecond' | 'from' | 'version' | 'aliveMs'>

/** What the supernode would say, under the same names, read by this host. */
async function readSource(file: Asked, task: string, { offset, version, signal }: SourceFrom, sources: Sources): Promise<SourceAnswer> {
  const source = sources.open(file.url, { headers: file.headers, ca: file.ca, insecure: file.insecure })
  const { start, end } = file.range ?? { start: 0, end: undefined }
  const wanted = { offset: start + offset, ...(end !== undefined && { length: Math.max(0, end + 1 - start - offset) }), ...(version !== undefined && { version }), signal }
  try {
    const answer = await source.open(wanted)
    const { length: total, contentType, contentEncoding, etag, lastModified, version: read } = answer.head
    const length = total === undefined ? undefined : Math.max(0, Math.min(total, end === undefined ? total : end + 1) - start)
    return {
      version: read,
      ...(length !== undefined && { length }),
      ...(contentType !== undefined && { contentType }),
      ...(contentEncoding !== undefined && { contentEncoding }),
      ...(etag !== undefined && { etag }),
      ...(lastModified !== undefined && { lastModified }),
      resourceId: (part) => fileResourceId(task, read, part),
      blockBytes: blockBytesFor(length, file.pieceLength),
      body: closing(resumable(source, { ...wanted, answer }), source),
    }
  } catch (error) {
    await source.close()
    throw error
  }
}

async function* closing(body: AsyncIterable<Buffer>, source: { close(): Promise<void> }): AsyncGenerator<Buffer> {
  try {
    yield* body
  } finally {
    await source.close()
  }
}
