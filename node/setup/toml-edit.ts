// TOML edits that keep every byte of the user's text: lines go in between marks, and both texts are parsed to prove that nothing but the wanted entry changed.
import { isDeepStrictEqual } from 'node:util'
import { parse, type TomlTable } from 'smol-toml'
import { SkimmerError } from '../../oci/errors.ts'

/** INVALID_DATA that names the file and the place. */
export function parseToml(text: string, path: string): TomlTable {
  try {
    return parse(text, { integersAsBigInt: 'asNeeded' })
  } catch (cause) {
    throw new SkimmerError('INVALID_DATA', `${path} is not TOML (${(cause as Error).message.split('\n')[0]}); nothing was changed`, { cause })
  }
}

const parses = (text: string): boolean => {
  try {
    parse(text, { integersAsBigInt: 'asNeeded' })
    return true
  } catch {
    return false
  }
}

/** Whether `text` means exactly `wanted`; the order of keys is not compared. */
export function means(text: string, wanted: TomlTable): boolean {
  try {
    return isDeepStrictEqual(plain(parse(text, { integersAsBigInt: 'asNeeded' })), plain(wanted))
  } catch {
    return false
  }
}

/** Without the parser's own classes: a date keeps its exact writing, a table is an ordinary object. */
function plain(value: unknown): unknown {
  if (value instanceof Date) return { date: value.toISOString() }
  if (Array.isArray(value)) return value.map(plain)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, plain(inner)]))
}

/** Offsets of the lines that begin with `[` and are no part of a value: the headers of tables, in order. `text` must be TOML. */
export function headerLines(text: string): { offset: number; line: string }[] {
  const found: { offset: number; line: string }[] = []
  for (const match of text.matchAll(/^[ \t]*\[.*$/gm)) {
    // Inside an array or a string of several lines, what stands before is not TOML by itself.
    if (parses(text.slice(0, match.index))) found.push({ offset: match.index, line: match[0].replace(/\r$/, '') })
  }
  return found
}

/** The parts of a table's header: `[host."http://x"]` -> { path: ['host', 'http://x'], array: false }. */
export function headerPath(line: string): { path: string[]; array: boolean } | undefined {
  let at: unknown
  try {
    at = parse(line)
  } catch {
    return undefined
  }
  const path: string[] = []
  let array = false
  for (;;) {
    if (Array.isArray(at)) {
      array = true
      at = at[0]
    }
    const [key] = Object.keys(at as object)
    if (key === undefined) return path.length === 0 ? undefined : { path, array }
    path.push(key)
    at = (at as Record<string, unknown>)[key]
  }
}

export const asTable = (value: unknown): TomlTable | undefined => (typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Date) ? (value as TomlTable) : undefined)

export const tomlString = (text: string): string => JSON.stringify(text)
