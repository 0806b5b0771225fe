// URLs of sources: read without ever repeating them, since user, password and query may be secrets.
import { SkimmerError } from '../oci/errors.ts'

export const MAX_URL_LENGTH = 8192

/** Without fragment. Throws INVALID_ARGUMENT. */
export function parseSourceUrl(url: string | URL): URL {
  const text = String(url)
  const parsed = text.length > MAX_URL_LENGTH ? null : URL.parse(text)
  if (parsed === null) throw new SkimmerError('INVALID_ARGUMENT', `the URL to read is not one of at most ${MAX_URL_LENGTH} characters; write it like https://host/path`)
  parsed.hash = ''
  return parsed
}

/** User and password of a URL as Basic authorization, undefined when it has none. */
export function basicAuthorization(url: URL): string | undefined {
  if (url.username === '' && url.password === '') return undefined
  return `Basic ${Buffer.from(`${percentDecoded(url.username)}:${percentDecoded(url.password)}`).toString('base64')}`
}

function percentDecoded(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}
