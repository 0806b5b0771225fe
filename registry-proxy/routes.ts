// The paths of the distribution spec that a mirror answers, and what it says to all others.

export type Route =
  | { readonly kind: 'health' | 'ping' }
  | { readonly kind: 'manifest' | 'blob' | 'referrers'; readonly name: string; readonly reference: string }
  | { readonly kind: 'tags'; readonly name: string }
  | { readonly kind: 'refused'; readonly status: number; readonly code: string; readonly message: string; readonly allow?: string }

const refused = (status: number, code: string, message: string, allow?: string): Route => ({ kind: 'refused', status, code, message, ...(allow !== undefined && { allow }) })

// Greedy: `manifests` may be a part of a repository's name too, and then the last one counts.
const CONTENT = /^\/v2\/(.+)\/(manifests|blobs|referrers)\/([^/]+)$/
const TAGS = /^\/v2\/(.+)\/tags\/list$/
const UPLOADS = /^\/v2\/.+\/blobs\/uploads(?:\/.*)?$/
const CATALOG = /^\/v2\/_catalog\/?$/
const KINDS = { manifests: 'manifest', blobs: 'blob', referrers: 'referrers' } as const

/** `path` as it stands in the request line, without the query. Names are not checked here. */
export function routeOf(method: string, path: string): Route {
  if (path === '/healthz') return { kind: 'health' }
  if (path !== '/v2' && !path.startsWith('/v2/')) return refused(404, 'UNSUPPORTED', 'this is a registry mirror: its paths begin with /v2/')
  if (method !== 'GET' && method !== 'HEAD') return refused(405, 'UNSUPPORTED', 'this is a pull-through mirror: it takes no pushes and deletes nothing; do that at the registry itself', 'GET, HEAD')
  if (path === '/v2' || path === '/v2/') return { kind: 'ping' }
  if (CATALOG.test(path)) return refused(404, 'UNSUPPORTED', 'a mirror has no catalog: ask the registry itself')
  if (UPLOADS.test(path)) return refused(405, 'UNSUPPORTED', 'this is a pull-through mirror: there are no uploads', 'GET, HEAD')
  const tags = TAGS.exec(path)
  if (tags !== null) return { kind: 'tags', name: tags[1] }
  const content = CONTENT.exec(path)
  if (content === null) return refused(404, 'UNSUPPORTED', 'this path is not one of the distribution spec')
  let reference: string
  try {
    // Some clients escape the colon of a digest.
    reference = decodeURIComponent(content[3])
  } catch {
    return refused(400, 'UNSUPPORTED', 'the path is not well-formed')
  }
  return { kind: KINDS[content[2] as keyof typeof KINDS], name: content[1], reference }
}
