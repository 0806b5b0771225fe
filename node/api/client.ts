// Calls to a node's API socket, for the CLI and the lab.
import { request } from 'node:http'
import { ERROR_CODES, SkimmerError, type ErrorCode } from '../../oci/errors.ts'

/** An answer larger than this is not one of ours. */
const MAX_ANSWER = 64 * 1024 * 1024

export interface ApiCall {
  readonly method?: 'GET' | 'POST' | 'DELETE'
  readonly body?: unknown
  /** Milliseconds without an answer; default 20,000. */
  readonly timeoutMs?: number
  readonly signal?: AbortSignal
}

/** Resolves with the JSON answer. Errors of the node come back with their code and message; UNAVAILABLE when no node listens. */
export function callNode<T>(socketPath: string, path: string, call: ApiCall = {}): Promise<T> {
  return new Promise((resolve, reject) => {
    const body = call.body === undefined ? undefined : JSON.stringify(call.body)
    const outgoing = request(
      { socketPath, path, method: call.method ?? 'GET', timeout: call.timeoutMs ?? 20_000, signal: call.signal, headers: body === undefined ? {} : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) } },
      (response) => {
        const chunks: Buffer[] = []
        let received = 0
        response.on('data', (chunk: Buffer) => {
          received += chunk.length
          if (received > MAX_ANSWER) outgoing.destroy(new SkimmerError('LIMIT_EXCEEDED', `${path}: the answer is larger than ${MAX_ANSWER} bytes`))
          else chunks.push(chunk)
        })
        response.on('end', () => {
          try {
            const answer = chunks.length === 0 ? undefined : (JSON.parse(Buffer.concat(chunks).toString()) as { code?: ErrorCode; message?: string })
            if (response.statusCode !== undefined && response.statusCode < 300) resolve(answer as T)
            else if (answer?.code !== undefined && ERROR_CODES.includes(answer.code)) reject(new SkimmerError(answer.code, answer.message ?? 'no reason given'))
            else reject(new SkimmerError('UNAVAILABLE', `${path}: the node answered ${response.statusCode}`))
          } catch (cause) {
            reject(new SkimmerError('INVALID_DATA', `${path}: the node's answer is not JSON`, { cause }))
          }
        })
      },
    )
    outgoing.on('timeout', () => outgoing.destroy(new SkimmerError('TIMEOUT', `${path}: the node at ${socketPath} does not answer`)))
    outgoing.on('error', (cause: NodeJS.ErrnoException) => {
      if (cause instanceof SkimmerError) reject(cause)
      else if (cause.name === 'AbortError') reject(new SkimmerError('ABORTED', `${path}: given up by the caller`, { cause }))
      else reject(new SkimmerError('UNAVAILABLE', `no node listens on ${socketPath} (${cause.code ?? cause.message}): start one with \`skimmer node\`, or name its socket with --socket`, { cause }))
    })
    outgoing.end(body)
  })
}
