// Brings the blocks of a download in the background: a window of what is known and not here, paid for before it is asked for.
import { SkimmerError, hasCode } from '../oci/errors.ts'
import type { DownloadContent } from './download-content.ts'
import type { DownloadPart } from './download-part.ts'
import type { Pace } from './pace.ts'
import type { Peer } from './peer.ts'

export interface BringOptions {
  /** Bytes asked for and not here yet, at most: enough for many nodes to trade in, and a bound to how far ahead of a reader blocks come. */
  windowBytes: number
  /** Bytes of one wish, when nothing must be paid. */
  batchBytes: number
}

/** Looks again after this much silence, milliseconds. */
const LOOK_MS = 1_000

/**
 * Resolves when all is here, or when the store is full (`content.full` says so). `onVain`: nobody could bring some blocks, this is why; it
 * throws when nothing else can be done about that.
 */
export async function bringBlocks(components: { peer: Peer; content: DownloadContent; pace: Pace; onVain: (error: SkimmerError) => void }, options: BringOptions, signal: AbortSignal): Promise<void> {
  const { peer, content, pace, onVain } = components
  let underWay = 0
  let failure: Error | undefined

  async function bring(part: DownloadPart, from: number, to: number, bytes: number): Promise<void> {
    try {
      await peer.fetcher.ensure(part.resource, [{ from, to }], { priority: 'background', signal })
    } catch (error) {
      part.forget(from, to)
      if (hasCode(error, 'NO_SPACE')) content.full = true
      else failure = error as Error
    } finally {
      underWay -= bytes
      content.changed()
    }
  }

  /** Blocks that another resource here has cost nothing. */
  function isHere(part: DownloadPart, from: number): boolean {
    return peer.store.findCopies(part.resource, [from]).length > 0
  }

  while (!content.whole && !content.full) {
    if (failure !== undefined) {
      const error = failure
      failure = undefined
      if (!hasCode(error, 'UNAVAILABLE', 'TIMEOUT')) throw error
      onVain(error)
    }
    const next = underWay < options.windowBytes ? nextWanted(content, pace.free ? options.batchBytes : 1) : undefined
    if (next === undefined) {
      await content.change(LOOK_MS, signal)
      continue
    }
    const { part, from, to } = next
    const bytes = part.bytesOf(from, to)
    part.ask(from, to)
    underWay += bytes
    try {
      if (!pace.free && !isHere(part, from)) await pace.pay(bytes, signal)
    } catch (error) {
      part.forget(from, to)
      throw error
    }
    void bring(part, from, to, bytes)
  }
}

function nextWanted(content: DownloadContent, bytes: number): { part: DownloadPart; from: number; to: number } | undefined {
  for (const part of content.parts) {
    if (part.resource.whole) continue
    const next = part.nextWanted(bytes)
    if (next !== undefined) return { part, ...next }
  }
  return undefined
}
