// A body on its way to a client that may be slow, or gone: one piece in memory, and an end to waiting.
import type { ServerResponse } from 'node:http'
import { SkimmerError } from '../oci/errors.ts'
import { giveBack } from '../peer/lent-buffers.ts'

/** A block is handed to the socket in pieces, so that a slow client that still takes some is told from one that is gone. */
const PIECE_BYTES = 256 * 1024

export interface BodyOptions {
  /** Bytes that the head promised. */
  readonly length: number
  readonly idleMs: number
  readonly onBytes: (bytes: number) => void
}

/**
 * Writes the head by `begin` once there is a first byte, then the rest, and ends the answer; resolves when the client has it. ABORTED when the client went or takes nothing
 * for `idleMs`; the body's own errors as they are. After an error the caller ends the connection: what was sent must not look whole.
 */
export async function sendBody(response: ServerResponse, body: AsyncIterable<Buffer>, begin: () => void, options: BodyOptions): Promise<void> {
  const { length, idleMs, onBytes } = options
  let sent = 0
  for await (const chunk of body) {
    if (!response.headersSent) begin()
    for (let at = 0; at < chunk.length; at += PIECE_BYTES) {
      if (response.destroyed) throw gone()
      const piece = chunk.subarray(at, at + PIECE_BYTES)
      sent += piece.length
      if (sent > length) throw new SkimmerError('INVALID_DATA', `a body of ${length} bytes goes on beyond its end`)
      // When its last piece has left, the whole chunk may hold the next block.
      const last = at + PIECE_BYTES >= chunk.length
      const full = !response.write(piece, last ? (error) => { if (!error) giveBack(chunk) } : undefined)
      onBytes(piece.length)
      // A client that has all it was promised may close at once: that is no failure, so the end is not waited for here.
      if (full && sent < length && (await event(response, 'drain', idleMs)) === 'close') throw gone()
    }
  }
  if (sent !== length) throw new SkimmerError('INVALID_DATA', `a body of ${length} bytes ended after ${sent}`)
  if (!response.headersSent) begin()
  response.end()
  if (!response.writableFinished) await event(response, 'finish', idleMs)
}

const gone = (): SkimmerError => new SkimmerError('ABORTED', 'the client went away')

/** Which came first: the event, or the end of the connection. ABORTED when neither came in time. */
function event(response: ServerResponse, name: 'drain' | 'finish', idleMs: number): Promise<'close' | 'drain' | 'finish'> {
  if (response.destroyed) return Promise.resolve('close')
  return new Promise((resolve, reject) => {
    const finish = (came?: 'close' | 'drain' | 'finish'): void => {
      clearTimeout(timer)
      response.off(name, onEvent).off('close', onClose)
      if (came !== undefined) resolve(came)
      else reject(new SkimmerError('ABORTED', `the client took nothing for ${Math.round(idleMs / 1000)} s`))
    }
    const timer = setTimeout(() => finish(), idleMs)
    const onEvent = (): void => finish(name)
    const onClose = (): void => finish('close')
    response.once(name, onEvent).once('close', onClose)
  })
}
