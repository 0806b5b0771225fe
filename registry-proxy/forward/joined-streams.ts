// Two connections joined into one: bytes, ends and failures of each go to the other.
import type { Duplex, Readable } from 'node:stream'
import { SkimmerError } from '../../oci/errors.ts'
import type { ForwardOutcome } from './forward-metrics.ts'

/**
 * From `server` to `client`, and back when `both`. One side's end is passed on while the other goes on sending (half-closed
 * connections); an error, or `idleMs` without a byte in either direction, ends both. Resolves when both are closed.
 */
export function joinStreams(server: Readable | Duplex, client: Duplex, options: { idleMs: number; both?: boolean }): Promise<{ outcome: ForwardOutcome; sent: number }> {
  return new Promise((resolve) => {
    let sent = 0
    let outcome: ForwardOutcome = 'ok'
    let open = 2
    let moved = true
    const end = (error: Error, as: ForwardOutcome): void => {
      if (outcome === 'ok') outcome = as
      server.destroy(error)
      client.destroy(error)
    }
    // Looked at twice in the time: a timer a byte would cost more than the byte.
    const idle = setInterval(() => {
      if (moved) moved = false
      else end(new SkimmerError('TIMEOUT', `nothing moved for ${options.idleMs / 1000} s`), 'failed')
    }, options.idleMs / 2)
    const closed = (): void => {
      if (--open > 0) return
      clearInterval(idle)
      resolve({ outcome, sent })
    }
    server.on('data', (chunk: Buffer) => {
      moved = true
      sent += chunk.length
    })
    client.on('data', () => (moved = true))
    client.on('drain', () => (moved = true))
    server.on('error', (error) => end(error, 'failed'))
    client.on('error', (error) => end(error, 'gone'))
    server.once('close', () => {
      // Closed without its end: what the client got must not look whole.
      if (!server.readableEnded) client.destroy()
      closed()
    })
    client.once('close', () => {
      if (options.both !== true || !client.readableEnded) server.destroy()
      closed()
    })
    // One that closed before this began says so no more.
    for (const [one, other] of [[server, client], [client, server]] as const) {
      if (!one.closed) continue
      other.destroy()
      closed()
    }
    server.pipe(client)
    if (options.both === true) client.pipe(server as Duplex)
    else client.resume()
  })
}
