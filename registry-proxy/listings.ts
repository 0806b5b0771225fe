// Tags and referrers: the registry's own lists, passed on page by page, with links that lead back here.
import { isDigest } from '../oci/digest.ts'
import { answerProblem, passOn } from './answers.ts'
import type { Outcome } from './answers.ts'
import { MAX_LISTING_BYTES } from './proxy-options.ts'
import { headerOf } from './proxy-request.ts'
import type { ProxyRequest } from './proxy-request.ts'
import { tagPage } from './tag-page.ts'
import type { SmallAnswer, UpstreamRequests } from './upstream-requests.ts'

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
    const { query, path, response } = request
    const answer = await this.#ask(request, 'tags/list')
    const link = nextLink(headerOf(answer.headers.link), answer.asked, request)
    const page = answer.status !== 200 || request.method === 'HEAD' ? undefined : tagPage(answer.bytes, { count: count === null ? undefined : Number(count), last: query.get('last') ?? undefined, linked: link !== undefined })
    if (page === undefined) return passOn(response, answer, { link })
    const next = new URLSearchParams(query)
    if (page.next !== undefined) next.set('last', page.next)
    // What the registry says of its own bytes is not true of these.
    const { etag: _etag, 'docker-content-digest': _digest, ...headers } = answer.headers
    return passOn(response, { ...answer, headers, bytes: page.bytes }, { link: page.next === undefined ? undefined : linkTo(path, next) })
  }

  /** What a registry without the referrers API answers (404) is passed on as well: its client then looks for the tag `sha256-<hex>` itself. */
  async referrers(request: ProxyRequest, digest: string): Promise<Outcome> {
    if (!isDigest(digest)) {
      answerProblem(request.response, 400, 'DIGEST_INVALID', `${JSON.stringify(digest.slice(0, 140))} is not a sha256 or sha512 digest`)
      return 'invalid'
    }
    // Of a name that is unknown clients would not look for the tag.
    const answer = await this.#ask(request, `referrers/${digest}`)
    return passOn(request.response, answer, { link: nextLink(headerOf(answer.headers.link), answer.asked, request) }, 'MANIFEST_UNKNOWN')
  }

  #ask(request: ProxyRequest, path: string): Promise<SmallAnswer> {
    const { upstream, caller, mirrored, query, signal, method } = request
    const passed = new URLSearchParams([...query].filter(([name]) => name !== 'ns'))
    // Not every registry takes 0; of one tag none are passed on.
    if (path === 'tags/list' && /^0+$/.test(query.get('n') ?? '')) passed.set('n', '1')
    const accept = headerOf(request.incoming.headers.accept)
    return this.#upstream.small({ method, upstream, caller, mirrored, path, query: passed, headers: accept === undefined ? {} : { accept }, signal }, MAX_LISTING_BYTES)
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
  return linkTo(path, next)
}

const linkTo = (path: string, query: URLSearchParams): string => `<${path}?${query.toString()}>; rel="next"`
