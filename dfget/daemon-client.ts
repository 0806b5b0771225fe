// The API of a node, or of dfget's own peer, on a unix socket: a file as the body of an answer, and how far it is.
import { request } from 'node:http'
import { ERROR_CODES, SkimmerError, type ErrorCode } from '../oci/errors.ts'
import type { Content } from './content.ts'
import type { FileRequestInput } from './file-request.ts'
import { LentAnswer, NoAnswer } from './lent-answer.ts'
import type { TransferAnswer } from './transfer.ts'

const MAX_ERROR_BYTES = 64 * 1024
/** Who sends nothing for so long is asked whether it lives. */
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
    const answer = LentAnswer.begin(this.socket, '/v1/files', JSON.stringify(request))
    const abort = (): void => answer.destroy(signal.reason instanceof Error ? signal.reason : undefined)
    signal.addEventListener('abort', abort, { once: true })
    const looking = this.#look(answer, content)
    let head: BodyHead | undefined
    try {
      signal.throwIfAborted()
      await answer.head
      if (answer.status !== 200) throw await readError(answer, `${this.who} on ${this.socket}`)
      head = headOf(answer)
      await onHead(head)
      for (let chunks = await answer.next(); chunks.length > 0; chunks = await answer.next()) await content.write(chunks)
    } catch (error) {
      signal.throwIfAborted()
      if (error instanceof NoAnswer) throw new SkimmerError('UNAVAILABLE', `what listens on ${this.socket} is not ${this.who}: ${error.message}`, { cause: error, details: { reached: true } })
      throw error instanceof SkimmerError ? error : await this.#broke(error as NodeJS.ErrnoException, head, content)
    } finally {
      clearInterval(looking)
      signal.removeEventListener('abort', abort)
      answer.destroy()
    }
  }

  /** How far a download is, and until a minute after its end how it ended. */
  state(id: string): Promise<TransferAnswer> {
    return this.#get(`/v1/files/${id}`)
  }

  /** A long wait is no fault: the source may be slow. Silence altogether is. */
  #look(answer: LentAnswer, content: Content): NodeJS.Timeout {
    let before = content.received
    return setInterval(() => {
      const silent = content.received === before
      before = content.received
      if (silent) this.#get('/v1/files').catch(() => answer.destroy(new SkimmerError('UNAVAILABLE', `${this.who} on ${this.socket} is silent`, { details: { reached: true, broke: true } })))
    }, SILENT_MS)
  }

  async #broke(cause: NodeJS.ErrnoException, head: BodyHead | undefined, content: Content): Promise<SkimmerError> {
    const failed = head === undefined ? undefined : (await this.state(head.id).catch(() => undefined))?.failed
    if (failed !== undefined && failed.code !== 'ABORTED') return new SkimmerError(codeOf(failed.code), failed.message, { details: { reached: true } })
    const reached = cause.syscall !== 'connect'
    const what = head !== undefined ? `broke off after ${content.received} bytes` : reached ? 'broke off' : 'does not answer'
    return new SkimmerError('UNAVAILABLE', `${this.who} on ${this.socket} ${what} (${cause.code ?? cause.message})`, { cause, details: { reached, broke: reached } })
  }

  #get<T>(path: string): Promise<T> {
    return new Promise((resolve, reject) => {
      const outgoing = request({ socketPath: this.socket, path, agent: false, timeout: PROBE_MS }, (response) => {
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

function headOf({ headers }: LentAnswer): BodyHead {
  const length = headers.get('content-length')
  const contentType = headers.get('content-type')
  return {
    id: headers.get('x-skimmer-download') ?? '',
    version: headers.get('x-skimmer-version') ?? '',
    ...(length !== undefined && { length: Number(length) }),
    ...(contentType !== undefined && { contentType }),
  }
}

const codeOf = (code: string): ErrorCode => ((ERROR_CODES as readonly string[]).includes(code) ? (code as ErrorCode) : 'UNAVAILABLE')

async function readError(answer: LentAnswer, who: string): Promise<SkimmerError> {
  let text = ''
  for (let chunks = await answer.next(); chunks.length > 0 && text.length < MAX_ERROR_BYTES; chunks = await answer.next()) text += chunks.map(String).join('')
  try {
    const { code, message } = JSON.parse(text) as { code: string; message: string }
    return new SkimmerError(codeOf(code), message, { details: { reached: true } })
  } catch {
    return new SkimmerError('UNAVAILABLE', `${who} answered ${answer.status}`, { details: { reached: true } })
  }
}
