// The gRPC server of the Snapshots service, which may listen before its snapshotter is ready: callers are greeted at once and their calls wait.
//
// containerd's client gives a server that restarts one second (growing to three) to greet it; then its calls fail. Opening a node's store and
// joining its peers can take longer than that; even loading the code can (see early-greeter.ts).
import type { UntypedServiceImplementation } from '@grpc/grpc-js'
import type { Logger } from 'pino'
import { GrpcServer, type Listening } from './grpc-server.ts'
import { loadSnapshotsService } from './snapshots-rpc.ts'

/** What grpc-js hands to every kind of handler; a stream has no callback. */
type Handler = (call: { readonly cancelled: boolean }, callback?: unknown) => void

export class SnapshotterServer {
  readonly #grpc: GrpcServer
  readonly #handlers = Promise.withResolvers<UntypedServiceImplementation>()

  private constructor(grpc: GrpcServer) {
    this.#grpc = grpc
  }

  /** Listens; calls wait for `serve`. @throws CONFLICT when another process answers on the socket path. */
  static async listen(components: { logger: Logger }, where: Listening): Promise<SnapshotterServer> {
    const grpc = new GrpcServer(components)
    const server = new SnapshotterServer(grpc)
    const { service } = loadSnapshotsService()
    const waiting = Object.entries(service).map(([name, { originalName }]) => [originalName ?? name, server.#waiting(originalName ?? name)])
    grpc.addService(service, Object.fromEntries(waiting) as UntypedServiceImplementation)
    await grpc.listen(where)
    return server
  }

  /** Answers the calls that wait, and all to come. */
  serve(handlers: UntypedServiceImplementation): void {
    this.#handlers.resolve(handlers)
  }

  /** Takes no new calls, gives running ones `graceMs`, then closes. An inherited socket stays open in its owner. */
  stop(graceMs?: number): Promise<void> {
    return this.#grpc.stop(graceMs)
  }

  #waiting(name: string): Handler {
    return (call, callback) => void this.#handlers.promise.then((handlers) => {
      // A caller that went away while it waited wants nothing any more.
      if (!call.cancelled) (handlers[name] as Handler)(call, callback)
    })
  }
}
