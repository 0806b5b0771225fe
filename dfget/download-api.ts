// dfget's API on a unix socket, of the node as of the peer that dfget starts: a request's file as the body of the answer, while it comes.
import { once } from 'node:events'
import express, { type Request, type Response, type Router } from 'express'
import type { Logger } from 'pino'
import { SkimmerError } from '../oci/errors.ts'
import { describeIssue } from '../peer/control.ts'
import type { Download } from '../peer/download.ts'
import type { Downloads } from '../peer/downloads.ts'
import { giveBack } from '../peer/lent-buffers.ts'
import { streamedDigest } from '../source/content-digest.ts'
import type { Sources } from '../source/sources.ts'
import { parseSourceUrl } from '../source/source-url.ts'
import { downloadRequestOf, fileRequestSchema, type FileRequest } from './file-request.ts'
import type { HostRate, Lane } from './host-rate.ts'
import { Transfer, type TransferAnswer } from './transfer.ts'
import { Turns } from './turns.ts'

/** 64 headers of 8 KiB and a certificate authority of 256 KiB, as JSON. */
const MAX_REQUEST = '1mb'
/** How a download ended can be asked for this long. */
const KEPT_MS = 60_000
const MAX_KEPT = 1_000
const MAX_CONTENT_TYPE = 256

export interface DownloadApiComponents {
  readonly downloads: Downloads
  readonly sources: Sources
  readonly rate: HostRate
  readonly logger: Logger
}

export interface DownloadApiOptions {
  /** Downloads at once; more wait for their turn. Default 32. */
  readonly parallel?: number
  /** Told when a call begins and when it has ended, with its request. */
  readonly onUse?: (request: FileRequest, ended: boolean) => void
}

/**
 * `POST /v1/files`: 200 and the content, or an error as JSON; when it goes wrong after the first byte, the connection breaks. `GET /v1/files` and
 * `GET /v1/files/ID` tell how far each is, and for a minute afterwards how it ended. Whoever may open the socket may use it.
 */
export class DownloadApi {
  readonly #components: DownloadApiComponents
  readonly #options: DownloadApiOptions
  readonly #turns: Turns
  readonly #transfers = new Map<string, Transfer>()
  readonly #lanes = new Map<string, { lane: Lane; users: number }>()

  constructor(components: DownloadApiComponents, options: DownloadApiOptions = {}) {
    this.#components = components
    this.#options = options
    this.#turns = new Turns(options.parallel ?? 32)
  }

  /** Calls that have not ended. */
  get active(): number {
    let active = 0
    for (const transfer of this.#transfers.values()) if (transfer.endedAt === undefined) active++
    return active
  }

  list(): TransferAnswer[] {
    this.#sweep()
    return [...this.#transfers.values()].map((transfer) => transfer.answer())
  }

  router(): Router {
    const router = express.Router()
    router.post('/v1/files', express.json({ limit: MAX_REQUEST, strict: true }), (request, response) => this.#download(request, response))
    router.get('/v1/files', (_, response) => void response.json({ files: this.list() }))
    router.get('/v1/files/:id', (request, response) => {
      this.#sweep()
      const transfer = this.#transfers.get(request.params.id)
      if (transfer === undefined) throw new SkimmerError('NOT_FOUND', `${request.params.id.slice(0, 100)} is no download of the last minute`)
      response.json(transfer.answer())
    })
    return router
  }

  async #download(incoming: Request, response: Response): Promise<void> {
    const parsed = fileRequestSchema.safeParse(incoming.body)
    if (!parsed.success) throw new SkimmerError('INVALID_ARGUMENT', describeIssue(parsed.error))
    const request = parsed.data
    const gone = new AbortController()
    response.once('close', () => gone.abort(new SkimmerError('ABORTED', 'the caller of the download has gone')))
    const shown = parseSourceUrl(request.url)
    const transfer = new Transfer(`${shown.protocol}//${shown.host}${shown.pathname}`)
    this.#transfers.set(transfer.id, transfer)
    this.#options.onUse?.(request, false)
    let failure: unknown
    try {
      const endTurn = await this.#turns.take(gone.signal)
      try {
        await this.#send(request, transfer, response, gone.signal)
      } finally {
        endTurn()
      }
    } catch (error) {
      failure = gone.signal.aborted && !response.writableFinished ? gone.signal.reason : error
    }
    transfer.ends(failure)
    this.#sweep()
    this.#options.onUse?.(request, true)
    if (failure === undefined) this.#components.logger.info(transfer.answer(), 'a download is done')
    else this.#components.logger.warn(transfer.answer(), 'a download ended early')
    if (failure !== undefined && !gone.signal.aborted) throw failure
  }

  async #send(request: FileRequest, transfer: Transfer, response: Response, signal: AbortSignal): Promise<void> {
    const asked = downloadRequestOf(request, { sources: this.#components.sources, buckets: () => [lane] })
    const { lane, end } = this.#lane(asked.key, request)
    try {
      const download = await this.#components.downloads.open(asked, { signal })
      try {
        transfer.begins(download)
        await this.#stream(request, download, transfer, response, signal)
      } finally {
        download.release()
      }
    } finally {
      end()
    }
  }

  async #stream(request: FileRequest, download: Download, transfer: Transfer, response: Response, signal: AbortSignal): Promise<void> {
    const from = request.from ?? 0
    const version = (): string => encodeURIComponent(download.head.version)
    if (request.version !== undefined && request.version !== version()) throw new SkimmerError('CONFLICT', `${transfer.url} has changed at its source: begin again`)
    if (download.length !== undefined && from > download.length) throw new SkimmerError('INVALID_ARGUMENT', `from: ${transfer.url} has ${download.length} bytes`)
    // sha256 of the whole is checked by the download itself.
    const digest = request.digest !== undefined && from === 0 && !/^sha-?256/i.test(request.digest) ? request.digest : undefined
    const content = download.read({ from }, { signal })
    const chunks = (digest === undefined ? content : checked(content, digest, transfer.url))[Symbol.asyncIterator]()
    try {
      let chunk = await chunks.next()
      // The source may have changed before its first byte came.
      if (request.version !== undefined && request.version !== version()) throw new SkimmerError('CONFLICT', `${transfer.url} has changed at its source: begin again`)
      this.#head(download, transfer, response, from, version())
      while (!chunk.done) {
        const { value } = chunk
        // The next is read while this one goes out.
        const next = chunks.next()
        next.catch(() => {})
        const full = !response.write(value, (error) => { if (!error) giveBack(value) })
        transfer.sent += value.length
        if (full) await once(response, 'drain', { signal })
        chunk = await next
      }
      const finished = once(response, 'finish', { signal })
      response.end()
      await finished
    } finally {
      await chunks.return?.(undefined)
    }
  }

  #head({ head, length }: Download, transfer: Transfer, response: Response, from: number, version: string): void {
    response.status(200)
    response.setHeader('x-skimmer-download', transfer.id)
    response.setHeader('x-skimmer-version', version)
    const type = head.contentType
    response.setHeader('content-type', type !== undefined && type.length <= MAX_CONTENT_TYPE && /^[\x20-\x7e]+$/.test(type) ? type : 'application/octet-stream')
    if (length !== undefined) response.setHeader('content-length', length - from)
    response.flushHeaders()
  }

  /** Calls that share a download pay by the same lane. */
  #lane(key: string, request: FileRequest): { lane: Lane; end: () => void } {
    const shared = this.#lanes.get(key) ?? { lane: this.#components.rate.lane({ bytesPerSecond: request.bytesPerSecond, total: request.totalBytesPerSecond }), users: 0 }
    shared.users++
    this.#lanes.set(key, shared)
    return {
      lane: shared.lane,
      end: () => {
        if (--shared.users > 0) return
        shared.lane.end()
        this.#lanes.delete(key)
      },
    }
  }

  /** Forgets those that ended long ago, and the oldest when they are many. */
  #sweep(): void {
    const now = Date.now()
    let kept = this.#transfers.size
    for (const [id, { endedAt }] of this.#transfers) {
      if (endedAt === undefined || (now - endedAt < KEPT_MS && kept <= MAX_KEPT)) continue
      this.#transfers.delete(id)
      kept--
    }
  }
}

/** The last chunk is given only when all of them have the digest. */
async function* checked(content: AsyncIterable<Buffer>, spec: string, what: string): AsyncGenerator<Buffer> {
  const digest = streamedDigest(spec)
  let held: Buffer | undefined
  for await (const chunk of content) {
    if (held !== undefined) yield held
    digest.update(chunk)
    held = chunk
  }
  digest.verify(what)
  if (held !== undefined) yield held
}
