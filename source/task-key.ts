// When two requests mean the same file: one canonical text for what a request asks, without what only proves who asks.
import { hash } from 'node:crypto'
import { parseContentDigest } from './content-digest.ts'
import { normalizeHeaders, provesWhoAsks } from './request-headers.ts'
import type { Headers } from './request-headers.ts'
import { parseSourceUrl } from './source-url.ts'

export interface TaskRequest {
  readonly url: string
  readonly headers?: Headers
  readonly tag?: string
  readonly application?: string
  readonly identifier?: string
  /** Names of query parameters that do not make another resource. */
  readonly filteredQueryParams?: readonly string[]
  readonly pieceLength?: number
  readonly range?: { readonly start: number; readonly end: number }
  readonly digest?: string
  readonly ca?: string
  readonly insecure?: boolean
}

/** The query with the named parameters dropped; the others keep their order and their spelling. */
export function filterQuery(search: string, names: readonly string[] = []): string {
  const dropped = new Set(names)
  const kept = search.replace(/^\?/, '').split('&').filter((part) => part !== '' && !dropped.has(parameterName(part)))
  return kept.length === 0 ? '' : `?${kept.join('&')}`
}

function parameterName(part: string): string {
  const raw = part.split('=', 1)[0].replaceAll('+', ' ')
  try {
    return decodeURIComponent(raw)
  } catch {
    return raw
  }
}

/** `--filter "a&b"` as Dragonfly 1 writes it. */
export const splitFilter = (text: string): string[] => text.split('&').map((name) => name.trim()).filter(Boolean)

/**
 * Canonical JSON: equal exactly when the requests may share one download. Holds query values and headers, so it is no text
 * for logs; `taskHash` is. Throws INVALID_ARGUMENT for a URL, header or digest that is none.
 */
export function taskKey(request: TaskRequest): string {
  const url = parseSourceUrl(request.url)
  url.username = url.password = ''
  url.search = filterQuery(url.search, request.filteredQueryParams)
  const headers = Object.entries(normalizeHeaders(request.headers)).filter(([name]) => !provesWhoAsks(name)).toSorted(([a], [b]) => (a < b ? -1 : 1))
  return JSON.stringify({
    url: url.href,
    headers,
    tag: request.tag || undefined,
    application: request.application || undefined,
    identifier: request.identifier || undefined,
    pieceLength: request.pieceLength,
    range: request.range && [request.range.start, request.range.end],
    digest: request.digest === undefined ? undefined : parseContentDigest(request.digest).text,
    ca: request.ca === undefined ? undefined : hash('sha256', request.ca.trim(), 'hex'),
    insecure: request.insecure === true || undefined,
  })
}

/** Names a task in logs and lists. 64 hex digits. */
export const taskHash = (key: string): string => hash('sha256', key, 'hex')

/** `file:<hex>` for part 0, `file:<hex>.<n>` for later ones: the same on every machine for one task and one version. */
export function fileResourceId(key: string, version: string, part = 0): string {
  return `file:${hash('sha256', JSON.stringify([key, version]), 'hex')}${part === 0 ? '' : `.${part}`}`
}
