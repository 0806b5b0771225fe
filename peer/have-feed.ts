// Tells connected peers what is here: the bitmap when they take an interest, then new blocks in batches.
import type { BlockStore } from './block-store.ts'
import { FRAME_HAVE, HAVE_BITMAP, HAVE_MORE, HAVE_WHOLE, frame, haveBody, packBitmap } from './exchange-wire.ts'
import type { Resource } from './resource.ts'

/** Where `have` frames go: false when the remote cannot take more now, then the news stays for the next round. */
export interface HaveSink { sendHave(bytes: Uint8Array): boolean }

interface Told { /** The bitmap must be sent (again). */ whole: boolean }

interface Feed {
  resource: Resource | undefined
  readonly fresh: number[]
  readonly sinks: Map<HaveSink, Told>
  readonly onBlock: (block: number) => void
}

/** For each who listens what it hears in a round. */
type News = Map<HaveSink, { bytes: number; readonly frames: Buffer[]; readonly told: Told[] }>
/** More than this is not kept for company, bytes: bitmaps of many large resources. */
const MOST_TOGETHER = 64 * 1024

/** Milliseconds between batches: short against a transfer, long against a block. */
const ROUND_MS = 50
/** More new blocks than this in a round are said as a bitmap. */
const MAX_LISTED = 4096

export class HaveFeed {
  readonly #store: BlockStore
  readonly #feeds = new Map<string, Feed>()
  #timer: NodeJS.Timeout | undefined

  constructor(store: BlockStore) {
    this.#store = store
  }

  add(resourceId: string, sink: HaveSink): void {
    let feed = this.#feeds.get(resourceId)
    if (feed === undefined) {
      const fresh: number[] = []
      feed = { resource: undefined, fresh, sinks: new Map(), onBlock: block => { fresh.push(block) } }
      this.#feeds.set(resourceId, feed)
    }
    feed.sinks.set(sink, { whole: true })
    this.#timer ??= setInterval(() => this.#round(), ROUND_MS)
    this.#send(news => this.#tell(resourceId, feed, news))
  }

  remove(resourceId: string, sink: HaveSink): void {
    const feed = this.#feeds.get(resourceId)
    if (feed === undefined || !feed.sinks.delete(sink) || feed.sinks.size > 0) return
    feed.resource?.off('block', feed.onBlock)
    this.#feeds.delete(resourceId)
    if (this.#feeds.size === 0) this.stop()
  }

  stop(): void {
    clearInterval(this.#timer)
    this.#timer = undefined
  }

  #round(): void {
    this.#send(news => { for (const [id, feed] of this.#feeds) this.#tell(id, feed, news) })
  }

  /** What is new of all resources goes to each in one piece: a message, a packet and a wake-up cost more than what they say. */
  #send(collect: (news: News) => void): void {
    const news: News = new Map()
    collect(news)
    this.#flush(news)
  }

  #flush(news: News): void {
    for (const [sink, { frames, told }] of news) if (!sink.sendHave(Buffer.concat(frames))) for (const each of told) each.whole = true
    news.clear()
  }

  #tell(id: string, feed: Feed, news: News): void {
    const current = this.#store.get(id)
    if (current !== feed.resource) {
      // The resource came, or was evicted and came again: start over.
      feed.resource?.off('block', feed.onBlock)
      feed.resource = current
      feed.fresh.length = 0
      current?.on('block', feed.onBlock)
      for (const told of feed.sinks.values()) told.whole = true
    }
    if (current === undefined || current.quarantined) return
    let full = false
    let bitmap: Buffer | undefined
    let more: Buffer | undefined
    if (feed.fresh.length > MAX_LISTED || (feed.fresh.length > 0 && current.whole)) for (const told of feed.sinks.values()) told.whole = true
    for (const [sink, told] of feed.sinks) {
      let bytes: Buffer
      if (told.whole) bytes = bitmap ??= frame(FRAME_HAVE, 0, current.whole ? haveBody(id, HAVE_WHOLE) : haveBody(id, HAVE_BITMAP, packBitmap(current.state)))
      else if (feed.fresh.length > 0) bytes = more ??= frame(FRAME_HAVE, 0, haveBody(id, HAVE_MORE, numbers(feed.fresh)))
      else continue
      told.whole = false
      let said = news.get(sink)
      if (said === undefined) news.set(sink, said = { bytes: 0, frames: [], told: [] })
      said.frames.push(bytes)
      said.told.push(told)
      said.bytes += bytes.length
      full ||= said.bytes > MOST_TOGETHER
    }
    if (full) this.#flush(news)
    feed.fresh.length = 0
  }
}

function numbers(blocks: readonly number[]): Buffer {
  const bytes = Buffer.allocUnsafe(blocks.length * 4)
  for (let index = 0; index < blocks.length; index++) bytes.writeUInt32BE(blocks[index], index * 4)
  return bytes
}
