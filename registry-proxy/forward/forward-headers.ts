// Headers on their way through a proxy: what belongs to one connection stays behind (RFC 9110 section 7.6.1).
import type { IncomingMessage } from 'node:http'

const HOP_BY_HOP = new Set(['connection', 'proxy-connection', 'keep-alive', 'te', 'trailer', 'transfer-encoding', 'upgrade', 'proxy-authorization', 'proxy-authenticate', 'proxy-authentication-info', 'expect'])
/** They tell of the client, not of what it wants: with them every client would ask for another file. */
const OF_THE_CLIENT = new Set(['host', 'user-agent', 'accept-encoding', 'accept-language', 'cache-control', 'pragma', 'range', 'if-range', 'via', 'forwarded', 'x-forwarded-for', 'x-forwarded-host', 'x-forwarded-proto', 'traceparent', 'tracestate', 'baggage', 'x-request-id', 'dnt', 'priority', 'content-length', 'docker-upload-uuid'])

export type RawHeaders = [name: string, value: string][]

export function pairs(message: IncomingMessage): RawHeaders {
  const found: RawHeaders = []
  for (let index = 0; index < message.rawHeaders.length; index += 2) found.push([message.rawHeaders[index], message.rawHeaders[index + 1]])
  return found
}

/** In the order and spelling in which they came, without those for this connection only, and those that `Connection` names. */
export function endToEnd(message: IncomingMessage): RawHeaders {
  const named = new Set((message.headers.connection ?? '').toLowerCase().split(',').map((name) => name.trim()))
  return pairs(message).filter(([name]) => {
    const lower = name.toLowerCase()
    return !HOP_BY_HOP.has(lower) && !named.has(lower)
  })
}

/** What a request to the server carries: `host` from the URL alone, the body's framing anew, and `via`. */
export function requestHeaders(message: IncomingMessage, host: string, via: string): RawHeaders {
  const rest = endToEnd(message).filter(([name]) => !/^(?:host|via)$/i.test(name))
  const chunked: RawHeaders = message.headers['transfer-encoding'] === undefined ? [] : [['Transfer-Encoding', 'chunked']]
  return [['Host', host], ...rest, ...chunked, ['Via', message.headers.via === undefined ? via : `${message.headers.via}, ${via}`]]
}

/** Of a request, what makes it another file or proves who asks; for the swarm. */
export function fileHeaders(message: IncomingMessage): Record<string, string> {
  const wanted: Record<string, string> = {}
  for (const [name, value] of endToEnd(message)) {
    const lower = name.toLowerCase()
    if (OF_THE_CLIENT.has(lower) || lower.startsWith('sec-') || (lower === 'accept' && value.trim() === '*/*')) continue
    wanted[lower] = wanted[lower] === undefined ? value : `${wanted[lower]}${lower === 'cookie' ? '; ' : ', '}${value}`
  }
  return wanted
}

export const hasBody = (message: IncomingMessage): boolean => message.headers['transfer-encoding'] !== undefined || Number(message.headers['content-length'] ?? 0) > 0
