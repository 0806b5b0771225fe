// A client of containerd's own Snapshots service, which hands its calls on to our snapshotter: for clients that ctr cannot play.
import { type Client, credentials, Metadata, type ServiceError, status } from '@grpc/grpc-js'
import { loadSnapshotsService } from '../../snapshotter/snapshots-rpc.ts'

type Unary = (request: object, metadata: Metadata, options: object, callback: (error: ServiceError | null) => void) => void

export class ContainerdSnapshots {
  readonly #client: Client & Record<'Prepare', Unary>
  readonly #metadata = new Metadata()

  /** `lease` keeps what is made from garbage collection. */
  constructor(address: string, namespace: string, lease: string) {
    const Service = loadSnapshotsService()
    this.#client = new Service(`unix:${address}`, credentials.createInsecure()) as unknown as Client & Record<'Prepare', Unary>
    this.#metadata.set('containerd-namespace', namespace)
    this.#metadata.set('containerd-lease', lease)
  }

  /** What a pulling client does before it downloads a layer, with no word of the image; ALREADY_EXISTS says that it need not. */
  prepareLayer(chainId: string, parent: string): Promise<string> {
    const request = { snapshotter: 'skimmer', key: `extract-1 ${chainId}`, parent, labels: { 'containerd.io/snapshot.ref': chainId } }
    return new Promise((resolve) => this.#client.Prepare(request, this.#metadata, { deadline: Date.now() + 30_000 }, (error) => resolve(status[error?.code ?? status.OK])))
  }

  close(): void {
    this.#client.close()
  }
}
