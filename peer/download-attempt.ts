// One attempt at one version of a download: it is learnt what its blocks are, they are brought, and the source is gone back to when nothing else helps.
import type { Logger } from 'pino'
import { SkimmerError, hasCode } from '../oci/errors.ts'
import { bringBlocks } from './block-bringer.ts'
import type { BringOptions } from './block-bringer.ts'
import type { DownloadContent } from './download-content.ts'
import type { DownloadRequest } from './download-request.ts'
import type { Pace } from './pace.ts'
import { pause } from './pause.ts'
import type { Peer } from './peer.ts'
import { SourceFill } from './source-fill.ts'
import type { SourceReads } from './source-fill.ts'
import { followTable } from './table-follower.ts'

export interface AttemptOptions extends BringOptions {
  /** Without a way to the source, a lost supernode is waited for so long, milliseconds. */
  reconnectMs: number
  /** Nothing came for so long and no supernode is connected: back to source, milliseconds. */
  stalledMs: number
  /** The same while one is connected: it may be busy. */
  stalledConnectedMs: number
}

export interface AttemptComponents {
  peer: Peer
  content: DownloadContent
  pace: Pace
  request: DownloadRequest
  reads: SourceReads
  logger: Logger
  /** Bytes that the supernode has read from the source. */
  onFetched: (bytes: number) => void
  /** The store has no room for all of it. */
  onFull: () => void
}

const LOOK_MS = 500
/** A supernode that is there, but whose answer breaks off, is asked again so often without having told anything new. */
const ASKS = 3
/** What is under way gets so long to end when it is called off, milliseconds. */
const WIND_UP_MS = 5_000
/** What another way to the same bytes does not change. */
const FINAL = ['NOT_FOUND', 'UNAUTHORIZED', 'DIGEST_MISMATCH', 'CONFLICT', 'ABORTED'] as const

export class DownloadAttempt {
  readonly #components: AttemptComponents
  readonly #options: AttemptOptions
  readonly #over = new AbortController()
  readonly #signal: AbortSignal
  readonly #works: Promise<void>[] = []
  readonly #failed: Promise<never>
  #fail!: (error: unknown) => void
  #atSource = false

  constructor(components: AttemptComponents, options: AttemptOptions, signal: AbortSignal) {
    this.#components = components
    this.#options = options
    this.#signal = AbortSignal.any([signal, this.#over.signal])
    this.#failed = new Promise<never>((_, reject) => { this.#fail = reject })
    this.#failed.catch(() => {}) // it may fail when all is here
  }

  /** Resolves when all is here. CONFLICT when the source changed; else what the supernode or the source says, when that is the end of it. */
  async run(): Promise<void> {
    const { peer, content, pace, request } = this.#components
    try {
      if (request.ask !== undefined) this.#add(this.#follow(request.ask))
      // What is known and was found damaged here may still come from peers.
      else if (!content.known || request.source !== undefined) this.#backToSource(new SkimmerError('INVALID_ARGUMENT', `${content.name}: there is neither a supernode to ask nor a source`))
      this.#add(bringBlocks({ peer, content, pace, onVain: error => this.onVain(error) }, this.#options, this.#signal))
      if (request.source !== undefined) this.#add(this.#watch())
      await Promise.race([this.#untilWhole(), this.#failed])
    } finally {
      this.#over.abort(new SkimmerError('ABORTED', `${content.name}: it is over`))
      // Before anything begins anew nothing of this may still write.
      const ended = new AbortController()
      await Promise.race([Promise.all(this.#works), pause(WIND_UP_MS, ended.signal)])
      ended.abort()
    }
  }

  /** Nobody could bring some blocks, and this is why. Throws when nothing else can be done. */
  onVain(error: SkimmerError): void {
    // While a supernode still tells, it is there, and what it tells of will come.
    if (!this.#components.content.known && this.#components.request.source !== undefined) return
    this.#backToSource(error)
  }

  #add(work: Promise<void>): void {
    this.#works.push(work.catch(this.#fail))
  }

  #backToSource(why: Error): void {
    const { peer, content, pace, request: { source }, reads } = this.#components
    if (source === undefined) throw why
    if (this.#atSource || this.#signal.aborted) return
    this.#atSource = true
    this.#add(new SourceFill({ peer, content, pace, source, reads }, this.#signal).run())
  }

  async #untilWhole(): Promise<void> {
    const { content, onFull } = this.#components
    while (!content.whole) {
      if (content.full) onFull()
      await content.change(LOOK_MS, this.#signal)
    }
  }

  /** Until everything was told, by whichever supernode; else back to source. */
  async #follow(ask: NonNullable<DownloadRequest['ask']>): Promise<void> {
    const { peer, content, request, logger, onFetched } = this.#components
    let since = performance.now()
    for (let asks = 1; ; asks++) {
      const before = content.news
      try {
        await followTable({ peer, content, onFetched }, ask, this.#signal)
        return
      } catch (error) {
        this.#signal.throwIfAborted()
        if (content.known) return
        if (hasCode(error, ...FINAL)) throw error
        const told = content.news > before
        if (told) {
          since = performance.now()
          asks = 1
        }
        const lost = hasCode(error, 'UNAVAILABLE', 'TIMEOUT')
        const connected = peer.supernodes.inOrder('').length > 0
        logger.info({ download: content.name, connected, error: (error as Error).message }, 'a supernode does not tell what a download needs')
        // One that told something may have gone for a moment only; and many nodes at a source at once are what it should keep from it.
        if (!lost || (connected && asks >= ASKS) || (request.source !== undefined && !told)) return this.#backToSource(error as Error)
        if (performance.now() - since > this.#options.reconnectMs) {
          throw new SkimmerError('UNAVAILABLE', `${content.name}: the supernode is lost (${(error as Error).message}), and the source may not be read; ask again when it is back: ${content.storedBytes} bytes are kept`, { cause: error })
        }
        await pause(LOOK_MS, this.#signal)
        this.#signal.throwIfAborted()
      }
    }
  }

  /** Blocks may be known and yet not come: the source has them. */
  async #watch(): Promise<void> {
    const { peer, content } = this.#components
    const { stalledMs, stalledConnectedMs } = this.#options
    let before = -1
    let at = performance.now()
    while (!content.whole) {
      await content.change(LOOK_MS, this.#signal)
      const now = performance.now()
      if (content.storedBytes !== before || !content.known || content.full) {
        before = content.storedBytes
        at = now
      }
      if (now - at < (peer.supernodes.inOrder('').length > 0 ? stalledConnectedMs : stalledMs)) continue
      this.#backToSource(new SkimmerError('UNAVAILABLE', `${content.name}: nothing comes`))
      at = now
    }
  }
}
