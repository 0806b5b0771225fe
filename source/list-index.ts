// What lies below a URL: the links of an index page, the files of an artifact, a directory, the keys under a prefix.
import { hasCode, SkimmerError } from '../oci/errors.ts'
import { parseIndexPage } from './index-page.ts'
import type { ListedEntry } from './index-page.ts'
import type { SourceBody } from './source.ts'
import { parseSourceUrl } from './source-url.ts'
import type { SourceRequest, Sources } from './sources.ts'

const DEFAULT_MAX_ENTRIES = 100_000
const MAX_INDEX_BYTES = 32 * 1024 * 1024

export interface ListOptions {
  readonly maxEntries?: number
  readonly signal?: AbortSignal
}

/**
 * One level: directories end with `/` and are listed by another call with their URL. http(s): `url` is taken for a directory, its
 * query is not passed on to what it lists. Throws LIMIT_EXCEEDED, INVALID_DATA when the answer is no index, and what reading throws.
 */
export async function listIndex(sources: Sources, url: string | URL, request: SourceRequest = {}, options: ListOptions = {}): Promise<ListedEntry[]> {
  const base = parseSourceUrl(url)
  const maxEntries = options.maxEntries ?? DEFAULT_MAX_ENTRIES
  const special = await sources.list(base, request, { ...options, maxEntries })
  if (special !== undefined) return special
  if (!base.pathname.endsWith('/')) base.pathname += '/'
  // The page is read, not kept: it must come as it is.
  const headers = Object.fromEntries(Object.entries(request.headers ?? {}).filter(([name]) => name.toLowerCase() !== 'accept-encoding'))
  const source = sources.open(base, { ...request, headers })
  try {
    const { head, body } = await source.open({ signal: options.signal })
    if (body === undefined) throw new SkimmerError('INTERNAL', `${source.url.href}: no body`)
    if (head.contentEncoding !== undefined) {
      await body.return?.()
      throw new SkimmerError('UNSUPPORTED', `the index ${source.url.href} comes encoded (${head.contentEncoding.slice(0, 40)}) although that was not asked for`)
    }
    base.username = base.password = base.search = ''
    return parseIndexPage(await readText(body, source.url), head.contentType, base, maxEntries)
  } catch (error) {
    if (hasCode(error, 'NOT_FOUND')) throw new SkimmerError('NOT_FOUND', `there is no index at ${source.url.href}; check the URL, and that the server lists directories`, { cause: error, details: error.details })
    throw error
  } finally {
    await source.close()
  }
}

async function readText(body: SourceBody, url: URL): Promise<string> {
  const chunks: Buffer[] = []
  let length = 0
  for await (const chunk of body) {
    length += chunk.length
    if (length > MAX_INDEX_BYTES) throw new SkimmerError('LIMIT_EXCEEDED', `the index ${url.href} is larger than ${MAX_INDEX_BYTES} bytes`)
    chunks.push(chunk)
  }
  return Buffer.concat(chunks, length).toString('utf8')
}
