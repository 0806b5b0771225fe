// A gRPC server on a unix socket: either one of its own, or a listening socket inherited from the supervisor so that callers wait through a restart.
import { chmod, mkdir, rm } from 'node:fs/promises'
import { connect, createServer } from 'node:net'
import type { Server as SocketServer, Socket } from 'node:net'
import { dirname } from 'node:path'
import { Server, ServerCredentials } from '@grpc/grpc-js'
import type { ServiceDefinition, UntypedServiceImplementation } from '@grpc/grpc-js'
import type { Logger } from 'pino'
import { SkimmerError } from '../oci/errors.ts'
import type { EarlyGreeter } from './early-greeter.ts'

/** containerd's own bounds on both sides. */
const MAX_MESSAGE_BYTES = 16 * 1024 * 1024
const MAX_CONCURRENT_CALLS = 1024
export const DEFAULT_STOP_GRACE_MS = 5_000

/** A socket path of its own, an inherited socket, or one on which clients were greeted already. */
export type Listening = { readonly socketPath: string } | { readonly fd: number } | { readonly greeter: EarlyGreeter }

export class GrpcServer {
  readonly #logger: Logger
  readonly #server = new Server({ 'grpc.max_receive_message_length': MAX_MESSAGE_BYTES, 'grpc.max_send_message_length': MAX_MESSAGE_BYTES, 'grpc.max_concurrent_streams': MAX_CONCURRENT_CALLS })
  readonly #injector = this.#server.createConnectionInjector(ServerCredentials.createInsecure())
  readonly #connections = new Set<Socket>()
  #listener: SocketServer | undefined

  constructor(components: { logger: Logger }) {
    this.#logger = components.logger
  }

  addService(definition: ServiceDefinition, implementation: UntypedServiceImplementation): void {
    this.#server.addService(definition, implementation)
  }

  /** A socket path is made accessible to root only. @throws CONFLICT when another process answers on it. */
  async listen(where: Listening): Promise<void> {
    if ('socketPath' in where) await claimPath(where.socketPath)
    const accept = (socket: Socket): void => {
      this.#connections.add(socket)
      socket.once('close', () => this.#connections.delete(socket))
      socket.on('error', error => this.#logger.debug({ err: error }, 'a gRPC connection broke'))
      this.#injector.injectConnection(socket)
    }
    const listener = 'greeter' in where ? where.greeter.handOver(accept) : createServer(accept)
    if (!('greeter' in where)) {
      await new Promise<void>((resolve, reject) => {
        listener.once('error', reject)
        listener.listen('fd' in where ? { fd: where.fd } : { path: where.socketPath }, resolve)
      })
    }
    listener.removeAllListeners('error').on('error', error => this.#logger.error({ err: error }, 'accepting gRPC connections failed'))
    if ('socketPath' in where) await chmod(where.socketPath, 0o600)
    this.#listener = listener
  }

  /** Takes no new calls, gives running ones `graceMs`, then closes. An inherited socket stays open in its owner. */
  async stop(graceMs: number = DEFAULT_STOP_GRACE_MS): Promise<void> {
    const listener = this.#listener
    this.#listener = undefined
    const closed = listener === undefined ? Promise.resolve() : new Promise<void>(resolve => listener.close(() => resolve()))
    // Sends GOAWAY: idle connections close at once, busy ones when their calls end or the time is over.
    this.#injector.drain(graceMs)
    await Promise.all([closed, this.#connectionsClosed(graceMs)])
    this.#injector.destroy()
    for (const socket of this.#connections) socket.destroy()
    this.#server.forceShutdown()
  }

  async #connectionsClosed(graceMs: number): Promise<void> {
    const timer = setTimeout(() => {
      for (const socket of this.#connections) socket.destroy()
    }, graceMs)
    await Promise.all([...this.#connections].map(socket => new Promise(resolve => socket.once('close', resolve))))
    clearTimeout(timer)
  }
}

/** Removes the socket file of a dead process; refuses to take a living one's. */
async function claimPath(socketPath: string): Promise<void> {
  await mkdir(dirname(socketPath), { recursive: true })
  const answers = await new Promise<boolean>(resolve => {
    const probe = connect(socketPath)
    probe.once('connect', () => resolve(true)).once('error', () => resolve(false))
    probe.once('connect', () => probe.destroy())
  })
  if (answers) throw new SkimmerError('CONFLICT', `${socketPath} is served by another process; stop it or choose another socket`)
  await rm(socketPath, { force: true })
}
