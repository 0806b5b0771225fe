// Greets HTTP/2 clients before the gRPC server is loaded: loading takes a busy machine longer than containerd waits for a greeting. Node's own modules only.
//
// RFC 9113: a server's connection starts with a SETTINGS frame (here an empty one), which the client acknowledges. The real server starts the
// connection once more with SETTINGS of its own, as a server may at any time; so the acknowledgement of ours is cut out of what it gets to read.
import { createServer } from 'node:net'
import type { Server, Socket } from 'node:net'

const PREFACE = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')
const FRAME_HEADER = 9
const SETTINGS = 4
const ACK = 1
const EMPTY_SETTINGS = Buffer.from([0, 0, 0, SETTINGS, 0, 0, 0, 0, 0])
/** A client acknowledges before it asks for much. */
const MAX_BUFFERED = 1024 * 1024
const SILENCE_MS = 60_000

export class EarlyGreeter {
  readonly #listener: Server
  /** Greeted and acknowledged, in want of a server. */
  readonly #ready = new Set<Socket>()
  #take: ((socket: Socket) => void) | undefined

  private constructor() {
    this.#listener = createServer((socket) => (this.#take === undefined ? this.#greet(socket) : this.#take(socket)))
  }

  /** Listens on an inherited socket, or on one of its own. */
  static async listen(where: { fd: number } | { path: string }): Promise<EarlyGreeter> {
    const greeter = new EarlyGreeter()
    await new Promise<void>((resolve, reject) => greeter.#listener.once('error', reject).listen(where, resolve))
    greeter.#listener.removeAllListeners('error')
    return greeter
  }

  /** The server is there: connections made so far are given to it as soon as they are acknowledged, later ones as they come. */
  handOver(take: (socket: Socket) => void): Server {
    this.#take = take
    for (const socket of this.#ready) this.#give(socket)
    this.#ready.clear()
    return this.#listener
  }

  #greet(socket: Socket): void {
    let read = Buffer.alloc(0)
    const failed = (): void => void socket.destroy()
    const onData = (piece: Buffer): void => {
      read = Buffer.concat([read, piece])
      const at = acknowledgement(read)
      if (at === 'none yet' && read.length <= MAX_BUFFERED) return
      if (typeof at === 'string') return failed()
      socket.pause().off('data', onData).off('error', failed)
      socket.unshift(Buffer.concat([read.subarray(0, at), read.subarray(at + FRAME_HEADER)]))
      this.#ready.add(socket)
      socket.once('close', () => this.#ready.delete(socket)).on('error', failed)
      if (this.#take !== undefined) this.#give(socket)
    }
    socket.on('error', failed).setTimeout(SILENCE_MS, failed).on('data', onData).write(EMPTY_SETTINGS)
  }

  #give(socket: Socket): void {
    this.#ready.delete(socket)
    socket.setTimeout(0).removeAllListeners('timeout')
    this.#take?.(socket)
  }
}

/** Where the acknowledgement of our SETTINGS starts in what a client sent. */
function acknowledgement(read: Buffer): number | 'none yet' | 'no HTTP/2' {
  const known = Math.min(read.length, PREFACE.length)
  if (!read.subarray(0, known).equals(PREFACE.subarray(0, known))) return 'no HTTP/2'
  for (let at = PREFACE.length; at + FRAME_HEADER <= read.length; at += FRAME_HEADER + read.readUIntBE(at, 3)) {
    if (read[at + 3] === SETTINGS && (read[at + 4] & ACK) !== 0) return at
  }
  return 'none yet'
}
