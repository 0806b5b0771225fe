// A body on its way to a client that may be slow, or gone: one piece in memory, and an end to waiting.
import type { ServerResponse } from 'node:http'
import { SkimmerError } from '../oci/errors.ts'

/** A block is handed to the socket in pieces, so that a slow client that still takes some is told from one that is gone. */
const PIECE_BYTES = 256 * 1024

export interface BodyOptions {
  /** Bytes that the head promised. */
  readonly length: number
  readonly idleMs: number
  readonly onBytes: (bytes: number) => void
}

/**
 * Writes the head by `begin` once there is a first byte, then the rest, and ends the answer. ABORTED when the client went or takes nothing
 * for `idleMs`; the body's own errors as they are. After an error the caller ends the connection: what was sent must not look whole.
 */
export async function sendBody(response: ServerResponse, body: AsyncIterable<Buffer>, begin: () => void, options: BodyOptions): Promise<void> {
  let sent = 0
  for await (const chunk of body) {
    if (!response.headersSent) begin()
    for (let at = 0; at < chunk.length; at += PIECE_BYTES) {
      if (response.destroyed) throw new SkimmerError('ABORTED', 'the client went away')
      const piece = chunk.subarray(at, at + PIECE_BYTES)
      sent += piece.length
      if (sent > options.length) throw new SkimmerError('INVALID_DATA', `a body of ${options.length} bytes goes on beyond its end`)
      if (!response.write(piece)) await drained(response, options.idleMs)
      options.onBytes(piece.length)
    }
  }
  if (sent !== options.length) throw new SkimmerError('INVALID_DATA', `a body of ${options.length} bytes ended after ${sent}`)
  if (!response.headersSent) begin()
  response.end()
}

function drained(response: ServerResponse, idleMs: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => finish(new SkimmerError('ABORTED', `the client took nothing for ${Math.round(idleMs / 1000)} s`)), idleMs)
    const finish = (error?: Error): void => {
      clearTimeout(timer)
      response.off('drain', onDrain).off('close', onClose)
      if (error === undefined) resolve()
      else reject(error)
    }
    const onDrain = (): void => finish()
    const onClose = (): void => finish(new SkimmerError('ABORTED', 'the client went away'))
    response.once('drain', onDrain).once('close', onClose)
  })
}
