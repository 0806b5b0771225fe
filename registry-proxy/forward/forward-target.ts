// Where a request of the forward proxy goes: its URL read from what the client sent, and what the first matching rule makes of it.
import { SkimmerError } from '../../oci/errors.ts'
import type { ForwardConfig, InterceptHost, Through } from './forward-config.ts'

/** Longer ones are refused before any rule sees them. */
export const MAX_URL_LENGTH = 8192

export interface Target {
  readonly url: URL
  readonly through: Through
}

/** Of a request line in absolute form (RFC 9112 section 3.2.2). INVALID_ARGUMENT, LIMIT_EXCEEDED. */
export function absoluteUrl(text: string): URL {
  if (text.length > MAX_URL_LENGTH) throw new SkimmerError('LIMIT_EXCEEDED', `the URL has ${text.length} characters; at most ${MAX_URL_LENGTH} are passed on`)
  const url = /^https?:\/\//i.test(text) ? URL.parse(text) : null
  if (url === null || url.hostname === '') throw new SkimmerError('INVALID_ARGUMENT', 'this is a forward proxy: set it as HTTP_PROXY or HTTPS_PROXY; as a registry mirror use the registry proxy')
  if (url.username !== '' || url.password !== '') throw new SkimmerError('INVALID_ARGUMENT', 'a URL with a user in it is not passed on; send an Authorization header')
  return url
}

/** `host:port` of a CONNECT. INVALID_ARGUMENT. */
export function connectAuthority(text: string): { host: string; port: number } {
  const [, host, port] = /^([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})$/.exec(text) ?? []
  if (host === undefined || Number(port) < 1 || Number(port) > 65_535 || !URL.canParse(`https://${host}/`)) throw new SkimmerError('INVALID_ARGUMENT', 'CONNECT needs HOST:PORT')
  return { host: host.toLowerCase(), port: Number(port) }
}

/** Letters, digits, - . _ ~ need no escape (RFC 3986 section 2.3). */
const unescaped = (url: string): string => url.replace(/%(?:2[DE]|3[0-9]|[46][1-9A-F]|[57][0-9A]|5F|7E)/gi, (escape) => String.fromCharCode(Number.parseInt(escape.slice(1), 16)))

export class ForwardRules {
  readonly #config: ForwardConfig

  constructor(config: ForwardConfig) {
    this.#config = config
  }

  /** The first rule that matches holds: the URL as it is, or without escapes that mean nothing, which servers read as the same. */
  target(asked: URL): Target {
    const plain = unescaped(asked.href)
    const rule = this.#config.rules.find(({ match }) => match.test(asked.href) || (plain !== asked.href && match.test(plain)))
    if (rule === undefined) return { url: asked, through: this.#config.otherwise }
    const url = new URL(asked)
    // The scheme first: setting it drops a port that is the new scheme's own.
    if (rule['use-https']) url.protocol = 'https:'
    if (rule.redirect !== undefined) {
      url.port = ''
      url.host = rule.redirect
    }
    return { url, through: rule.through }
  }

  /** For TLS that is passed on unread: all that is known is where it goes. */
  tunnel(host: string, port: number): { host: string; port: number; refused: boolean } {
    const { url, through } = this.target(new URL(`https://${host}:${port}/`))
    return { host: url.hostname, port: url.port === '' ? 443 : Number(url.port), refused: through === 'refuse' }
  }

  /** Whether TLS to this host is opened. */
  intercepted(host: string): InterceptHost | undefined {
    return this.#config.intercept?.hosts.find(({ match }) => match.test(host))
  }

  mayConnect(port: number): boolean {
    const ports = this.#config['connect-ports']
    return ports === 'any' || ports.includes(port)
  }
}
