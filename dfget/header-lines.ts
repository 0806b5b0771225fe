// Request headers as people write them: one `Name: value` a line. Messages never hold a value, it may be a secret.
import { refuse } from '../command-line/settings.ts'

/** Empty lines and lines that begin with # are passed over. A name that comes twice: its values joined by a comma, as HTTP has it. */
export function readHeaderLines(lines: readonly string[], where: string): Record<string, string> {
  const headers: Record<string, string> = {}
  for (const [number, line] of lines.entries()) {
    if (line.trim() === '' || line.startsWith('#')) continue
    const at = line.indexOf(':')
    const name = line.slice(0, Math.max(0, at)).trim().toLowerCase()
    if (!/^[!#$%&'*+.^_`|~0-9a-z-]{1,256}$/.test(name)) refuse(`${where}: line ${number + 1} is not NAME: VALUE`)
    const value = line.slice(at + 1).trim()
    headers[name] = Object.hasOwn(headers, name) ? `${headers[name]}${name === 'cookie' ? '; ' : ', '}${value}` : value
  }
  return headers
}

/** Later ones count first. An empty value takes the header away, as with curl. */
export const mergeHeaders = (all: readonly Readonly<Record<string, string>>[]): Record<string, string> =>
  Object.fromEntries(Object.entries(Object.assign({}, ...all) as Record<string, string>).filter(([, value]) => value !== ''))
