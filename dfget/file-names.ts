// Names of files made from URLs: one part of a path each, never a way to somewhere else.
import { existsSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { SkimmerError } from '../oci/errors.ts'

const MAX_NAME_BYTES = 255

/** True for what may be one part of a path: no way up, nothing that a terminal or a path would take for more than letters. */
export function isSafeName(name: string): boolean {
  return name !== '' && name !== '.' && name !== '..' && !/[/\p{Cc}]/u.test(name) && Buffer.byteLength(name) <= MAX_NAME_BYTES
}

/** A relative path whose every part is safe. INVALID_DATA: it is not. */
export function safePath(name: string): string {
  if (name.split('/').every(isSafeName)) return name
  throw new SkimmerError('INVALID_DATA', `${JSON.stringify(name.slice(0, 300))} is no name that a file may get`)
}

/** The last part of the URL's path. INVALID_ARGUMENT: it has none that is fit for a file. */
export function nameOf(url: string): string {
  const last = new URL(url).pathname.replace(/\/+$/, '').split('/').at(-1) ?? ''
  let name = last
  try {
    name = decodeURIComponent(last)
  } catch {
    // As it is written, then.
  }
  if (!isSafeName(name)) throw new SkimmerError('INVALID_ARGUMENT', 'the URL ends with no name for a file: name one by -O FILE')
  return name
}

/** Where `-O` means. */
export function outputOf(written: string | undefined, url: string): string {
  if (written === undefined) return nameOf(url)
  if (written === '-') return written
  return written.endsWith('/') || (existsSync(written) && statSync(written).isDirectory()) ? join(written, nameOf(url)) : written
}

/** For messages: without user, password, query and fragment, which may be secrets. */
export function shownUrl(url: string): string {
  const { protocol, host, pathname } = new URL(url)
  return `${protocol}//${host}${pathname}`
}
