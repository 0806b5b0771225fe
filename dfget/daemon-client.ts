// The API of a node, or of dfget's own peer, on a unix socket: a file as the body of an answer, and how far it is.
import { request as send, type IncomingMessage } from 'node:http'
import { ERROR_CODES, SkimmerError, type ErrorCode } from '../oci/errors.ts'
import type { Content } from './content.ts'
import type { FileRequestInput } from './file-request.ts'
import type { TransferAnswer } from './transfer.ts'

const MAX_ERROR_BYTES = 64 * 1024
/** Who has not begun to answer after that is asked whether it lives. */
const SILENT_MS = 5_000
const PROBE_MS = 10_000

export interface BodyHead {
  readonly id: string
  /** Given back as it is, to go on with the same bytes. */
  readonly version: string
  /** Of what comes now. */
  readonly length?: number
  readonly contentType?: string
}

export class DaemonClient {
  readonly socket: string
  /** For messages: `the node`, `dfget's peer`. */
  readonly who: string

  constructor(socket: string, options: { who: string }) {
    this.socket = socket
    this.who = options.who
  }

  /**
   * Everything that comes goes into `content`. Rejects with the daemon's own error, or with UNAVAILABLE: `details.reached` tells
   * whether anybody answered at all, `details.broke` that the answer broke off and another call may go on from where it did.
   */
  async download(request: FileRequestInput, content: Content, { signal, onHead }: { signal: AbortSignal; onHead: (head: BodyHead) => Promise<void> | void }): Promise<void> {
    const response = await this.#post(request, signal)
    const head = headOf(response)
    try {
      await onHead(head)
      for await (const chunk of response as AsyncIterable<Buffer>) {
        const written = content.write(chunk)
        if (written !== undefined) await written
      }
    } catch (error) {
      response.destroy()
      if (signal.aborted) throw signal.reason
      if (error instanceof SkimmerError) throw error
      const failed = (await this.state(head.id).catch(() => undefined))?.failed
      if (failed !== undefined && failed.code !== 'ABORTED') throw new SkimmerError(codeOf(failed.code), failed.message, { details: { reached: true } })
      throw new SkimmerError('UNAVAILABLE', `${this.who} broke off after ${content.received} bytes`, { cause: error, details: { reached: true, broke: true } })
    }
  }

  /** How far a download is, and until a minute after its end how it ended. */
  state(id: string): Promise<TransferAnswer> {
    return this.#get(`/v1/files/${id}`)
  }

  #post(request: FileRequestInput, signal: AbortSignal): Promise<IncomingMessage> {
    const body = Buffer.from(JSON.stringify(request))
    return new Promise((resolve, reject) => {
      let probe: NodeJS.Timeout | undefined
      const settle = (): void => {
        clearTimeout(probe)
        signal.removeEventListener('abort', abort)
      }
      const outgoing = send({ socketPath: this.socket, path: '/v1/files', method: 'POST', agent: false, headers: { 'content-type': 'application/json', 'content-length': body.length } }, (response) => {
        settle()
        signal.addEventListener('abort', abort, { once: true })
        response.once('close', settle)
        if (response.statusCode === 200) resolve(response)
        else readError(response).then((error) => reject(error ?? new SkimmerError('UNAVAILABLE', `${this.who} on ${this.socket} answered ${response.statusCode}`, { details: { reached: true } })), reject)
      })
      const abort = (): void => void outgoing.destroy(signal.reason instanceof Error ? signal.reason : undefined)
      signal.addEventListener('abort', abort, { once: true })
      outgoing.on('error', (cause: NodeJS.ErrnoException) => {
        settle()
        if (cause instanceof SkimmerError) return reject(cause)
        const reached = cause.syscall !== 'connect'
        reject(new SkimmerError('UNAVAILABLE', `${this.who} on ${this.socket} ${reached ? 'broke off' : 'does not answer'} (${cause.code ?? cause.message})`, { cause, details: { reached, broke: reached } }))
      })
      // A long wait is no fault: the source may be slow. Silence altogether is.
      const look = (): void => {
        this.#get('/v1/files').then(
          () => (probe = setTimeout(look, SILENT_MS)),
          () => outgoing.destroy(new SkimmerError('UNAVAILABLE', `${this.who} on ${this.socket} is silent`, { details: { reached: true } })),
        )
      }
      probe = setTimeout(look, SILENT_MS)
      outgoing.end(body)
    })
  }

  #get<T>(path: string): Promise<T> {
    return new Promise((resolve, reject) => {
      const outgoing = send({ socketPath: this.socket, path, agent: false, timeout: PROBE_MS }, (response) => {
        let text = ''
        response.setEncoding('utf8')
        response.on('data', (chunk: string) => (text += chunk))
        response.on('error', reject)
        response.on('end', () => {
          try {
            if (response.statusCode === 200) resolve(JSON.parse(text) as T)
            else reject(new SkimmerError('UNAVAILABLE', `${path}: ${response.statusCode}`))
          } catch (error) {
            reject(error as Error)
          }
        })
      })
      outgoing.on('timeout', () => outgoing.destroy(new SkimmerError('TIMEOUT', `${path}: no answer`)))
      outgoing.on('error', reject)
      outgoing.end()
    })
  }
}

function headOf(response: IncomingMessage): BodyHead {
  const { headers } = response
  const length = headers['content-length']
  return {
    id: String(headers['x-skimmer-download'] ?? ''),
    version: String(headers['x-skimmer-version'] ?? ''),
    ...(length !== undefined && { length: Number(length) }),
    ...(headers['content-type'] !== undefined && { contentType: headers['content-type'] }),
  }
}

const codeOf = (code: string): ErrorCode => ((ERROR_CODES as readonly string[]).includes(code) ? (code as ErrorCode) : 'UNAVAILABLE')

async function readError(response: IncomingMessage): Promise<SkimmerError | undefined> {
  let text = ''
  response.setEncoding('utf8')
  for await (const chunk of response) {
    text += chunk as string
    if (text.length > MAX_ERROR_BYTES) return undefined
  }
  try {
    const { code, message } = JSON.parse(text) as { code: string; message: string }
    return new SkimmerError(codeOf(code), message, { details: { reached: true } })
  } catch {
    return undefined
  }
}
