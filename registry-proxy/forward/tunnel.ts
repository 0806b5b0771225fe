// CONNECT: bytes passed on unread, both ways.
import { connect, type Socket } from 'node:net'
import { SkimmerError } from '../../oci/errors.ts'
import { unreachable } from './forward-answers.ts'
import type { ForwardOutcome } from './forward-metrics.ts'
import type { ForwardLimits } from './forward-options.ts'
import { joinStreams } from './joined-streams.ts'

export const ESTABLISHED = 'HTTP/1.1 200 Connection Established\r\n\r\n'

/** What the client sends first, taken and put back. ABORTED: it sent nothing in time, or went. */
export async function firstBytes(client: Socket, head: Buffer, timeoutMs: number): Promise<Buffer> {
  if (head.length > 0) return head
  return await new Promise((resolve, reject) => {
    const finish = (bytes: Buffer | null): void => {
      clearTimeout(timer)
      client.off('readable', readable).off('close', closed).off('end', closed)
      if (bytes === null) reject(new SkimmerError('ABORTED', 'the client sent nothing'))
      else resolve(bytes)
    }
    const closed = (): void => finish(null)
    const readable = (): void => {
      const bytes = client.read() as Buffer | null
      if (bytes !== null) finish(bytes)
    }
    const timer = setTimeout(closed, timeoutMs)
    client.on('readable', readable).once('close', closed).once('end', closed)
  })
}

/** Resolves when the tunnel is closed again. UNAVAILABLE, TIMEOUT: it never opened, and nothing was answered yet; `established`: the client was told already. */
export async function openTunnel(client: Socket, head: Buffer, { host, port, established }: { host: string; port: number; established?: boolean }, limits: ForwardLimits): Promise<{ outcome: ForwardOutcome; sent: number }> {
  const server = await new Promise<Socket>((resolve, reject) => {
    const socket = connect({ host: host.replace(/^\[(.*)\]$/, '$1'), port, allowHalfOpen: true })
    const timer = setTimeout(() => socket.destroy(new SkimmerError('TIMEOUT', `${host}:${port} did not connect within ${limits.connectMs / 1000} s`)), limits.connectMs)
    const gone = (): void => void socket.destroy(new SkimmerError('ABORTED', 'the client went away'))
    client.once('close', gone)
    socket.once('error', (error) => reject(unreachable(`${host}:${port}`, error)))
    socket.once('connect', () => resolve(socket))
    for (const event of ['connect', 'close']) {
      socket.once(event, () => {
        clearTimeout(timer)
        client.off('close', gone)
      })
    }
  })
  for (const socket of [client, server]) socket.setNoDelay(true).setKeepAlive(true, 60_000)
  if (established !== true) client.write(ESTABLISHED)
  if (head.length > 0) server.write(head)
  return await joinStreams(server, client, { idleMs: limits.tunnelIdleMs, both: true })
}
