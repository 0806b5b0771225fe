// One HTTP answer from a unix socket, its body in a few buffers that are used again and again: a gigabyte leaves no garbage behind.
import { connect, type Socket } from 'node:net'

const BUFFERS = 8
const BUFFER_BYTES = 256 * 1024
const MAX_HEAD_BYTES = 64 * 1024
const MAX_LINE_BYTES = 1024
const CRLF2 = Buffer.from('\r\n\r\n')

/** ECONNRESET and the like: the connection ended before the answer did. */
export class BrokenOff extends Error {
  readonly code: string
  constructor(code: string) {
    super(`the connection broke off (${code})`)
    this.code = code
  }
}

/** What came is no HTTP, or none of ours. */
export class NoAnswer extends Error {}

type BodyState =
  | { kind: 'length'; left: number }
  | { kind: 'data'; left: number }
  | { kind: 'end of data'; left: number }
  | { kind: 'size'; line: string }
  | { kind: 'trailer'; line: string }
  | { kind: 'done' }

/**
 * HTTP/1.1 as far as a daemon of ours speaks it (RFC 9112): a body of known length or in chunks. Rejects with BrokenOff, with the
 * connection's own error, or with NoAnswer.
 */
export class LentAnswer {
  status = 0
  readonly headers = new Map<string, string>()
  readonly #socket: Socket
  readonly #head = Promise.withResolvers<void>()
  #headBytes: Buffer | undefined = Buffer.alloc(0)
  #body: BodyState = { kind: 'done' }
  /** Buffers that nothing is in, but for the one that is read into next. */
  readonly #free: Buffer[] = Array.from({ length: BUFFERS }, () => Buffer.allocUnsafeSlow(BUFFER_BYTES))
  #filled: { buffer: Buffer; parts: Buffer[] }[] = []
  #lent: Buffer[] = []
  #paused = false
  #failure: Error | undefined
  #waits: PromiseWithResolvers<void> | undefined

  private constructor(socketPath: string) {
    this.#socket = connect({
      path: socketPath,
      // Node asks for the next buffer as soon as one was given: the last free one is only ever waiting there.
      onread: { buffer: () => this.#free.pop()!, callback: (length, buffer) => this.#read(length, buffer as Buffer) },
    })
    this.#socket.on('error', (error) => this.#fail(error))
    this.#socket.on('close', () => this.#fail(new BrokenOff('ECONNRESET')))
    this.#head.promise.catch(() => {})
  }

  /** The call is under way; `head` resolves when its answer begins. */
  static begin(socketPath: string, path: string, json: string): LentAnswer {
    const answer = new LentAnswer(socketPath)
    answer.#socket.write(`POST ${path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(json)}\r\n\r\n${json}`)
    return answer
  }

  get head(): Promise<void> {
    return this.#head.promise
  }

  /** What came, in order; empty: that was all. The bytes are lent until the next call. */
  async next(): Promise<readonly Buffer[]> {
    this.#free.unshift(...this.#lent)
    this.#lent = []
    if (this.#paused && this.#free.length > 1) {
      this.#paused = false
      this.#socket.resume()
    }
    for (;;) {
      const filled = this.#filled
      if (filled.length > 0) {
        this.#filled = []
        this.#lent = filled.map(({ buffer }) => buffer)
        const parts = filled.flatMap(({ parts }) => parts)
        if (parts.length > 0) return parts
        this.#free.unshift(...this.#lent)
        this.#lent = []
      }
      // The connection's end is the end of an answer that is whole.
      if (this.#failure !== undefined && !(this.#body.kind === 'done' && this.#failure instanceof BrokenOff)) throw this.#failure
      if (this.#body.kind === 'done') return []
      this.#waits = Promise.withResolvers()
      await this.#waits.promise
    }
  }

  destroy(reason?: Error): void {
    this.#fail(reason ?? new BrokenOff('ABORTED'))
    this.#socket.destroy()
  }

  #fail(error: Error): void {
    this.#failure ??= error
    this.#head.reject(this.#failure)
    this.#wake()
  }

  #wake(): void {
    this.#waits?.resolve()
    this.#waits = undefined
  }

  /** False: read no more for now. */
  #read(length: number, buffer: Buffer): boolean {
    try {
      let bytes = buffer.subarray(0, length)
      if (this.#headBytes !== undefined) {
        const rest = this.#readHead(bytes)
        if (rest === undefined) {
          this.#free.unshift(buffer)
          return true
        }
        bytes = rest
      }
      const parts: Buffer[] = []
      this.#readBody(bytes, parts)
      this.#filled.push({ buffer, parts })
    } catch (error) {
      this.destroy(error as Error)
      return false
    }
    this.#wake()
    this.#paused = this.#free.length <= 1
    return !this.#paused
  }

  /** What stands behind the head, once that is whole. */
  #readHead(bytes: Buffer): Buffer | undefined {
    const all = Buffer.concat([this.#headBytes!, bytes])
    const end = all.indexOf(CRLF2)
    if (end < 0 || end > MAX_HEAD_BYTES) {
      if (all.length > MAX_HEAD_BYTES) throw new NoAnswer('the head of the answer is too long')
      this.#headBytes = all
      return undefined
    }
    this.#headBytes = undefined
    const [first, ...lines] = all.toString('latin1', 0, end).split('\r\n')
    const status = /^HTTP\/1\.1 (\d{3})(?: |$)/.exec(first)?.[1]
    if (status === undefined) throw new NoAnswer('the answer is not HTTP/1.1')
    this.status = Number(status)
    for (const line of lines) {
      const at = line.indexOf(':')
      this.headers.set(line.slice(0, at).trim().toLowerCase(), line.slice(at + 1).trim())
    }
    const length = this.headers.get('content-length')
    if (this.headers.get('transfer-encoding')?.toLowerCase() === 'chunked') this.#body = { kind: 'size', line: '' }
    else if (length !== undefined && /^\d{1,15}$/.test(length)) this.#body = Number(length) === 0 ? { kind: 'done' } : { kind: 'length', left: Number(length) }
    else throw new NoAnswer('the answer tells no length')
    this.#head.resolve()
    return Buffer.from(all.subarray(end + CRLF2.length))
  }

  #readBody(bytes: Buffer, parts: Buffer[]): void {
    for (let at = 0; at < bytes.length;) {
      const body = this.#body
      if (body.kind === 'done') throw new NoAnswer('more came than the answer has')
      if (body.kind === 'size' || body.kind === 'trailer') {
        const end = bytes.indexOf(10, at)
        body.line += bytes.toString('latin1', at, end < 0 ? bytes.length : end)
        if (body.line.length > MAX_LINE_BYTES) throw new NoAnswer('a line of the answer is too long')
        at = end < 0 ? bytes.length : end + 1
        if (end >= 0) this.#body = body.kind === 'size' ? sizeLine(body.line) : body.line.trim() === '' ? { kind: 'done' } : { kind: 'trailer', line: '' }
        continue
      }
      const taken = Math.min(body.left, bytes.length - at)
      if (body.kind !== 'end of data') parts.push(bytes.subarray(at, at + taken))
      at += taken
      body.left -= taken
      if (body.left > 0) continue
      this.#body = body.kind === 'data' ? { kind: 'end of data', left: 2 } : body.kind === 'length' ? { kind: 'done' } : { kind: 'size', line: '' }
    }
  }
}

function sizeLine(line: string): BodyState {
  const size = /^([0-9a-f]{1,12})(?:[;\s]|$)/i.exec(line)?.[1]
  if (size === undefined) throw new NoAnswer('a chunk of the answer has no size')
  return Number.parseInt(size, 16) === 0 ? { kind: 'trailer', line: '' } : { kind: 'data', left: Number.parseInt(size, 16) }
}
