// Answers that are the forward proxy's own: an error's code in a header, its reason as plain text.
import type { ServerResponse } from 'node:http'
import type { Duplex } from 'node:stream'
import { type ErrorCode, SkimmerError } from '../../oci/errors.ts'

const STATUS: Partial<Record<ErrorCode, number>> = { INVALID_ARGUMENT: 400, INVALID_DATA: 502, LIMIT_EXCEEDED: 414, FORBIDDEN: 403, UNAUTHORIZED: 407, UNAVAILABLE: 502, TIMEOUT: 504, CONFLICT: 508 }
const WORDS: Record<number, string> = { 400: 'Bad Request', 403: 'Forbidden', 407: 'Proxy Authentication Required', 414: 'URI Too Long', 500: 'Internal Server Error', 502: 'Bad Gateway', 504: 'Gateway Timeout', 508: 'Loop Detected' }

interface Answer {
  readonly status: number
  readonly headers: Record<string, string>
  readonly body: string
}

function answerOf(error: SkimmerError): Answer {
  const status = STATUS[error.code] ?? 500
  const body = `skimmer: ${error.message}\n`
  return {
    status,
    headers: {
      'Content-Type': 'text/plain; charset=utf-8',
      'Content-Length': String(Buffer.byteLength(body)),
      'X-Skimmer-Error': error.code,
      ...(status === 407 ? { 'Proxy-Authenticate': 'Basic realm="skimmer", charset="UTF-8"' } : {}),
      Connection: 'close',
    },
    body,
  }
}

/** Ends the answer with the error; an answer that has begun is broken off. */
export function answerError(response: ServerResponse, error: SkimmerError): void {
  if (response.headersSent) return void response.destroy()
  const { status, headers, body } = answerOf(error)
  response.writeHead(status, WORDS[status], headers)
  response.end(body)
}

/** The same on a connection that HTTP does not hold any more: CONNECT and upgrades. */
export function answerErrorOn(socket: Duplex, error: SkimmerError): void {
  const { status, headers, body } = answerOf(error)
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}`)
  socket.end(`HTTP/1.1 ${status} ${WORDS[status]}\r\n${lines.join('\r\n')}\r\n\r\n${body}`, () => socket.destroy())
}

/** What kept a server from being reached, without what the URL may hold of secrets. */
export function unreachable(where: string, cause: unknown): SkimmerError {
  if (cause instanceof SkimmerError) return cause
  const { code, message } = cause as NodeJS.ErrnoException
  const errors = (cause as AggregateError).errors as NodeJS.ErrnoException[] | undefined
  return new SkimmerError('UNAVAILABLE', `${where} cannot be reached: ${code ?? errors?.[0]?.code ?? message}`, { cause })
}
