// Tells connected peers what is here: the bitmap when they take an interest, then new blocks in batches.
import type { BlockStore } from './block-store.ts'
import { FRAME_HAVE, HAVE_BITMAP, HAVE_MORE, HAVE_WHOLE, frame, haveBody, packBitmap } from './exchange-wire.ts'
import type { Resource } from './resource.ts'

/** Where `have` frames go: false when the remote cannot take more now, then the news stays for the next round. */
export interface HaveSink { sendHave(bytes: Uint8Array): boolean }

interface Feed {
  resource: Resource | undefined
  readonly fresh: number[]
  readonly sinks: Map<HaveSink, { /** The bitmap must be sent (again). */ whole: boolean }>
  readonly onBlock: (block: number) => void
}

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
    this.#tell(resourceId, feed)
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
    for (const [id, feed] of this.#feeds) this.#tell(id, feed)
  }

  #tell(id: string, feed: Feed): void {
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
    let bitmap: Buffer | undefined
    let more: Buffer | undefined
    if (feed.fresh.length > MAX_LISTED || (feed.fresh.length > 0 && current.whole)) for (const told of feed.sinks.values()) told.whole = true
    for (const [sink, told] of feed.sinks) {
      if (told.whole) {
        bitmap ??= frame(FRAME_HAVE, 0, current.whole ? haveBody(id, HAVE_WHOLE) : haveBody(id, HAVE_BITMAP, packBitmap(current.state)))
        told.whole = !sink.sendHave(bitmap)
      } else if (feed.fresh.length > 0) {
        more ??= frame(FRAME_HAVE, 0, haveBody(id, HAVE_MORE, numbers(feed.fresh)))
        told.whole = !sink.sendHave(more)
      }
    }
    feed.fresh.length = 0
  }
}

function numbers(blocks: readonly number[]): Buffer {
  const bytes = Buffer.allocUnsafe(blocks.length * 4)
  for (let index = 0; index < blocks.length; index++) bytes.writeUInt32BE(blocks[index], index * 4)
  return bytes
}
