// Preheat of one file: brought as a node's own request would bring it, held, and pushed to nodes while it comes.
import { SkimmerError } from '../oci/errors.ts'
import { credentialHeaders, normalizeHeaders } from '../source/request-headers.ts'
import { parseSourceUrl } from '../source/source-url.ts'
import type { FileOrigin, FileRequest } from './file-origin.ts'
import { FILE_WORDS } from './preheat-job.ts'
import type { PreheatJob, PreheatRequest } from './preheat-job.ts'
import type { StreamWork } from './stream-work.ts'

/** What is asked of the source, and what of it may be kept and shown. */
export interface FilePreheat {
  readonly request: FileRequest
  readonly shown: Pick<PreheatJob, 'url' | 'file' | 'unkept'>
}

/** INVALID_ARGUMENT for a URL, header or digest that is none, UNSUPPORTED for what is no source. */
export function filePreheat({ url, credentials, ...asked }: PreheatRequest): FilePreheat {
  const words = Object.fromEntries(FILE_WORDS.flatMap(word => (asked[word] === undefined ? [] : [[word, asked[word]]]))) as Pick<PreheatRequest, (typeof FILE_WORDS)[number]>
  const headers = normalizeHeaders(words.headers)
  if (credentials !== undefined) headers.authorization = 'token' in credentials ? `Bearer ${credentials.token}` : `Basic ${Buffer.from(`${credentials.username}:${credentials.secret}`).toString('base64')}`
  const parsed = parseSourceUrl(url)
  const secrets = credentialHeaders(headers)
  const unkept = Object.keys(secrets).length > 0 || parsed.username !== '' || parsed.password !== '' || parsed.search !== ''
  parsed.username = parsed.password = parsed.search = ''
  const kept = Object.fromEntries(Object.entries(headers).filter(([name]) => !(name in secrets)))
  const withHeaders = (given: Record<string, string>) => ({ ...words, headers: Object.keys(given).length === 0 ? undefined : given })
  return { request: { ...withHeaders(headers), url }, shown: { url: parsed.href, file: withHeaders(kept), ...(unkept && { unkept }) } }
}

/** The request of a job that a restart interrupted. UNAUTHORIZED when it held secrets. */
export function keptRequest({ url, file, unkept }: PreheatJob): FileRequest {
  if (unkept === true) throw new SkimmerError('UNAUTHORIZED', `${url}: the supernode was restarted, and does not keep the secrets in the URL, headers or credentials of this job: ask for it again`)
  return { ...file, url }
}

/**
 * Brings the file. `onWork` is called when it is known which version it is, before its bytes have come. Resolves with the ids of its
 * resources, which are held until `release`. ABORTED by `signal`: the download goes on, whoever else wants it.
 */
export async function bringFile(files: FileOrigin, request: FileRequest, signal: AbortSignal, on: { work: (work: StreamWork) => Promise<void>; progress: (bytes: number, total: number) => void }): Promise<{ resources: string[]; release: () => void }> {
  const work = await files.open({ ...request, fresh: true }, signal)
  const leave = work.follow()
  try {
    await on.work(work)
    for (;;) {
      const { changes, ended, failure } = work
      const stored = work.parts.reduce((sum, { resource }) => sum + resource.storedBytes, 0)
      on.progress(stored, work.record.head.length ?? stored)
      if (failure !== undefined) throw failure
      if (ended) break
      await work.changed(changes, signal)
    }
    return { resources: work.parts.map(({ resource }) => resource.id), release: leave }
  } catch (error) {
    leave()
    throw error
  }
}
