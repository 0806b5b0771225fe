// Tags and referrers: the registry's own lists, passed on page by page, with links that lead back here.
import { isDigest } from '../oci/digest.ts'
import { answerProblem, passOn } from './answers.ts'
import type { Outcome } from './answers.ts'
import { MAX_LISTING_BYTES } from './proxy-options.ts'
import { headerOf } from './proxy-request.ts'
import type { ProxyRequest } from './proxy-request.ts'
import type { UpstreamRequests } from './upstream-requests.ts'

export class Listings {
  readonly #upstream: UpstreamRequests

  constructor(components: { upstream: UpstreamRequests }) {
    this.#upstream = components.upstream
  }

  async tags(request: ProxyRequest): Promise<Outcome> {
    const count = request.query.get('n')
    if (count !== null && !/^[0-9]{1,9}$/.test(count)) {
      answerProblem(request.response, 400, 'PAGINATION_NUMBER_INVALID', 'n is not a number')
      return 'invalid'
    }
    return await this.#list(request, 'tags/list')
  }

  /** What a registry without the referrers API answers (404) is passed on as well: its client then looks for the tag `sha256-<hex>` itself. */
  async referrers(request: ProxyRequest, digest: string): Promise<Outcome> {
    if (!isDigest(digest)) {
      answerProblem(request.response, 400, 'DIGEST_INVALID', `${JSON.stringify(digest.slice(0, 140))} is not a sha256 or sha512 digest`)
      return 'invalid'
    }
    // Of a name that is unknown clients would not look for the tag.
    return await this.#list(request, `referrers/${digest}`, 'MANIFEST_UNKNOWN')
  }

  async #list(request: ProxyRequest, path: string, unknown?: string): Promise<Outcome> {
    const { upstream, caller, mirrored, query, signal, method } = request
    const passed = new URLSearchParams([...query].filter(([name]) => name !== 'ns'))
    const accept = headerOf(request.incoming.headers.accept)
    const answer = await this.#upstream.small({ method, upstream, caller, mirrored, path, query: passed, headers: accept === undefined ? {} : { accept }, signal }, MAX_LISTING_BYTES)
    return passOn(request.response, answer, { link: nextLink(headerOf(answer.headers.link), answer.asked, request) }, unknown)
  }
}

/** Where the registry says the next page is, as a path of this proxy: of the registry's link only the query counts. */
function nextLink(header: string | undefined, asked: URL, { path, query }: ProxyRequest): string | undefined {
  const target = /<([^<>]*)>\s*;[^<]*\brel\s*=\s*"?next"?/i.exec((header ?? '').slice(0, 8192))?.[1]
  const url = target === undefined ? null : URL.parse(target, asked.href)
  if (url === null || url.search === '') return undefined
  const next = new URLSearchParams(url.search)
  next.delete('ns')
  const ns = query.get('ns')
  if (ns !== null) next.set('ns', ns)
  return `<${path}?${next.toString()}>; rel="next"`
}
