// The next page of a listing: the Link header of the distribution spec (RFC 8288), followed only within the registry itself.
import { SkimmerError } from './errors.ts'
import type { RegistryResponse } from './registry-requests.ts'

/** undefined on the last page. Throws INVALID_DATA when the link leads to another host, where our credentials have no business. */
export function nextPage(response: RegistryResponse, what: string): URL | undefined {
  const header = response.headers.link
  const link = (Array.isArray(header) ? header.join(', ') : (header ?? '')).slice(0, 8192)
  const target = /<([^<>]*)>\s*;[^<]*\brel\s*=\s*"?next"?/i.exec(link)?.[1]
  if (target === undefined) return undefined
  const url = linkTarget(target, response.asked)
  if (url === null) throw new SkimmerError('INVALID_DATA', `${what}: the link to the next page is no address`)
  if (url.origin !== response.asked.origin) throw new SkimmerError('INVALID_DATA', `${what}: ${response.asked.host} names a next page on another host (${url.host})`)
  return url
}

/** A link as a registry writes it. Behind a proxy that ends TLS a registry calls itself http: the same host is reached the way we came. */
export function linkTarget(link: string, asked: URL): URL | null {
  const url = URL.parse(link, asked.href)
  if (url?.host === asked.host) url.protocol = asked.protocol
  return url
}
