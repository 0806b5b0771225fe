// A gRPC client of the Snapshots service, with promises: what containerd's proxy plugin is in Go.
import { credentials } from '@grpc/grpc-js'
import type { Client, ClientReadableStream, ServiceError } from '@grpc/grpc-js'
import { loadSnapshotsService } from '../../snapshotter/snapshots-rpc.ts'

export interface Info {
  name: string
  parent: string
  kind: string
  labels: Record<string, string>
}
interface Answer {
  mounts: { type: string; source: string; options: string[] }[]
  info: Info
  size: number
  inodes: number
}
type Unary = (request: object, options: object, callback: (error: ServiceError | null, answer: Answer) => void) => { cancel(): void }

export class SnapshotsClient {
  readonly #client: Client & Record<string, Unary>

  constructor(socketPath: string) {
    const Service = loadSnapshotsService()
    this.#client = new Service(`unix:${socketPath}`, credentials.createInsecure(), { 'grpc.max_send_message_length': -1, 'grpc.initial_reconnect_backoff_ms': 50, 'grpc.max_reconnect_backoff_ms': 50 }) as unknown as Client & Record<string, Unary>
  }

  call(method: string, request: object, options: { signal?: AbortSignal; wait?: boolean } = {}): Promise<Answer> {
    return new Promise((resolve, reject) => {
      const callOptions = { deadline: Date.now() + 30_000, waitForReady: options.wait ?? false }
      const call = this.#client[method](request, callOptions, (error, answer) => (error === null ? resolve(answer) : reject(error)))
      options.signal?.addEventListener('abort', () => call.cancel(), { once: true })
    })
  }

  async list(...filters: string[]): Promise<Info[]> {
    const infos: Info[] = []
    const list = this.#client['List'] as unknown as (request: object) => ClientReadableStream<{ info: Info[] }>
    for await (const { info } of list.call(this.#client, { filters }) as AsyncIterable<{ info: Info[] }>) infos.push(...info)
    return infos
  }

  /** The gRPC status code that a call ends with. */
  async code(method: string, request: object): Promise<number> {
    return this.call(method, request).then(() => 0, (error: ServiceError) => error.code)
  }

  close(): void {
    this.#client.close()
  }
}
