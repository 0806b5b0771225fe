// Index pages of HTTP servers (nginx, Apache, python's http.server, nginx's JSON): their links to what lies below, and nothing else.
import { z } from 'zod'
import { SkimmerError } from '../oci/errors.ts'

/** One file or directory below a listed URL. */
export interface ListedEntry {
  /** Absolute; a directory's ends with `/`. */
  readonly url: string
  /**
   * Relative to what was listed, decoded, parts separated by `/`; a directory's ends with `/`. No part is empty, `.` or `..`, or
   * has a NUL or control character: what would have stays percent-encoded.
   */
  readonly name: string
  readonly directory: boolean
  /** Where the index tells. */
  readonly size?: number
}

/** Comments, scripts and styles are passed over; the other two alternatives are the tags that matter, with their attributes. */
const TAGS = /<!--[\s\S]*?(?:-->|$)|<(script|style)\b[\s\S]*?(?:<\/\1|$)|<(a|base)\s([^<>]{0,8192})>/gi
const ATTRIBUTES = /([^\s"'=<>/]+)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'<>]+)))?/g
const ENTITIES: Readonly<Record<string, string>> = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'", nbsp: '\u00a0' }

const jsonIndexSchema = z.array(z.object({ name: z.string().min(1).max(4096), type: z.string().max(32), size: z.number().int().nonnegative().optional() }))

/** `base` is the URL of the page, ending with `/`. Throws INVALID_DATA when it is no index, LIMIT_EXCEEDED. */
export function parseIndexPage(text: string, contentType: string | undefined, base: URL, maxEntries: number): ListedEntry[] {
  const type = contentType?.split(';', 1)[0].trim().toLowerCase() ?? ''
  const entries = new Map<string, ListedEntry>()
  const add = (entry: ListedEntry | undefined): void => {
    if (entry === undefined) return
    if (entries.size === maxEntries && !entries.has(entry.url)) throw new SkimmerError('LIMIT_EXCEEDED', `the index ${shown(base)} has more than the ${maxEntries} entries that are allowed`)
    const before = entries.get(entry.url)
    if (before?.size === undefined) entries.set(entry.url, entry)
  }
  if (type === 'application/json') {
    for (const { name, type: kind, size } of parseJsonIndex(text, base)) {
      const directory = kind === 'directory'
      if (!directory && kind !== 'file') continue
      const entry = entryOf(`./${encodeURIComponent(name)}${directory ? '/' : ''}`, base, base)
      add(entry && (directory || size === undefined ? entry : { ...entry, size }))
    }
  } else if (type === 'text/html' || type === 'application/xhtml+xml') {
    let against = base
    for (const [, , tag, attributes] of text.matchAll(TAGS)) {
      if (tag === undefined) continue
      const href = [...attributes.matchAll(ATTRIBUTES)].find(([, name]) => name.toLowerCase() === 'href')
      if (href === undefined) continue
      const link = decodeEntities(href[2] ?? href[3] ?? href[4] ?? '').trim()
      if (tag.toLowerCase() === 'base') against = URL.parse(link, base.href) ?? base
      else add(entryOf(link, against, base))
    }
  } else throw new SkimmerError('INVALID_DATA', `${shown(base)} is no index page but ${type === '' ? 'something without a type' : type.slice(0, 80)}`)
  return [...entries.values()]
}

const shown = (base: URL): string => `${base.origin}${base.pathname}`

function parseJsonIndex(text: string, base: URL): z.infer<typeof jsonIndexSchema> {
  let document: unknown
  try {
    document = JSON.parse(text)
  } catch (cause) {
    throw new SkimmerError('INVALID_DATA', `the index ${shown(base)} is not JSON`, { cause })
  }
  const parsed = jsonIndexSchema.safeParse(document)
  if (!parsed.success) throw new SkimmerError('INVALID_DATA', `the index ${shown(base)} is not a list of files as nginx writes it`)
  return parsed.data
}

function decodeEntities(text: string): string {
  return text.replaceAll(/&(?:#([0-9]{1,7})|#x([0-9a-f]{1,6})|([a-z]{2,8}));/gi, (whole, decimal?: string, hex?: string, name?: string) => {
    if (name !== undefined) return ENTITIES[name.toLowerCase()] ?? whole
    const code = decimal === undefined ? Number.parseInt(hex!, 16) : Number(decimal)
    return code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code <= 0xdfff) ? String.fromCodePoint(code) : whole
  })
}

/** Undefined for what does not lie below `base`: parents, sort links, other hosts. */
function entryOf(link: string, against: URL, base: URL): ListedEntry | undefined {
  if (link === '' || link.length > 8192) return undefined
  const url = URL.parse(link, against.href)
  // An opaque origin ("null") is no origin to share.
  if (url === null || url.protocol !== base.protocol || url.host !== base.host || url.search !== '' || url.username !== '' || url.password !== '') return undefined
  url.hash = ''
  if (!url.pathname.startsWith(base.pathname) || url.pathname.length === base.pathname.length) return undefined
  const name = relativeName(url.pathname.slice(base.pathname.length))
  return name === undefined ? undefined : { url: url.href, name, directory: name.endsWith('/') }
}

/** A path of a URL as a relative path of files; undefined when some part is empty or leads elsewhere. */
export function relativeName(path: string): string | undefined {
  const parts = path.split('/')
  const directory = parts.at(-1) === ''
  if (directory) parts.pop()
  const names = parts.map(fileName)
  if (names.length === 0 || names.some((name) => name === '' || name === '.' || name === '..')) return undefined
  return names.join('/') + (directory ? '/' : '')
}

/** Percent-decoded, unless that gives what a file name cannot hold, or what would not show as what it is. */
function fileName(part: string): string {
  try {
    const decoded = decodeURIComponent(part)
    return /[/\p{Cc}]/u.test(decoded) ? part : decoded
  } catch {
    return part
  }
}
