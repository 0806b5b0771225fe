// LazyImages over a registry and this machine's own disk: layers are really indexed, composed and mounted as EROFS; only their blocks are all here already.
import { createWriteStream, mkdirSync, readFileSync, rmSync } from 'node:fs'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { createGunzip } from 'node:zlib'
import { createHash } from 'node:crypto'
import { join } from 'node:path'
import { mountReadOnly, unmount } from '../../blockdev/mount.ts'
import { composeImage } from '../../image/composer.ts'
import { writeErofs } from '../../image/erofs-writer.ts'
import { indexLayer } from '../../image/indexer.ts'
import type { LayerIndex } from '../../image/layer-index.ts'
import { SkimmerError } from '../../oci/errors.ts'
import type { ClaimedLayer, LayerClaim, LazyImages } from '../../snapshotter/lazy-images.ts'

const TIMEOUT_MS = 20_000

export class LocalLazyImages implements LazyImages {
  readonly claims: LayerClaim[] = []
  readonly forgotten: string[] = []
  /** What the next claims answer instead, by layer digest. */
  readonly failing = new Map<string, () => Promise<ClaimedLayer>>()
  /** Mounted trees by top layer, and who uses them. */
  readonly users = new Map<string, Set<string>>()
  readonly #directory: string
  readonly #registry: string
  readonly #indexes: Map<string, LayerIndex>

  /** `registry` is host:port, plain HTTP. `known` carries indexes over a restart. */
  constructor(options: { directory: string; registry: string; known?: LocalLazyImages }) {
    this.#directory = options.directory
    this.#registry = options.registry
    this.#indexes = options.known === undefined ? new Map() : options.known.#indexes
    mkdirSync(options.directory, { recursive: true })
  }

  async claim(layer: LayerClaim, signal: AbortSignal): Promise<ClaimedLayer> {
    this.claims.push(layer)
    const { reference, layerDigest } = layer
    const failure = layerDigest === undefined ? undefined : this.failing.get(layerDigest)
    if (failure !== undefined) return failure()
    if (reference === undefined || layerDigest === undefined) throw new SkimmerError('UNSUPPORTED', 'the labels name no layer')
    const repository = reference.slice(reference.indexOf('/') + 1, reference.lastIndexOf(':'))
    const response = await fetch(`http://${this.#registry}/v2/${repository}/blobs/${layerDigest}`, { signal })
    if (response.status !== 200) throw new SkimmerError('NOT_FOUND', `the registry answered ${response.status}`)
    const blob = Buffer.from(await response.arrayBuffer())
    const indexed = await indexLayer(Readable.from([blob]), { layerDigest, layerSize: blob.length, compression: 'detect', sink: { blocks: () => {} } })
    await pipeline(Readable.from([blob]), createGunzip(), createWriteStream(this.#stream(indexed.diffId)))
    this.#indexes.set(indexed.diffId, indexed.decode())
    return { diffId: indexed.diffId, size: blob.length, inodes: indexed.fileCount }
  }

  async mount(diffIds: string[], user: string): Promise<string> {
    const id = imageId(diffIds)
    const mountPoint = join(this.#directory, id)
    const users = this.users.get(id)
    if (users !== undefined) {
      users.add(user)
      return mountPoint
    }
    this.users.set(id, new Set([user]))
    mkdirSync(mountPoint, { recursive: true })
    const metadata = `${mountPoint}.erofs`
    writeErofs(composeImage(diffIds.map(diffId => this.#indexes.get(diffId)!)), { path: metadata })
    await mountReadOnly('erofs', metadata, mountPoint, diffIds.map(diffId => ['device', this.#stream(diffId)] as const), TIMEOUT_MS)
    return mountPoint
  }

  async unmount(diffIds: string[], user: string): Promise<void> {
    const id = imageId(diffIds)
    const users = this.users.get(id)
    if (users?.delete(user) !== true || users.size > 0) return
    this.users.delete(id)
    await this.#takeDown(id)
  }

  async forget(diffId: string): Promise<void> {
    this.forgotten.push(diffId)
    this.#indexes.delete(diffId)
    rmSync(this.#stream(diffId), { force: true })
  }

  async close(): Promise<void> {
    for (const id of this.users.keys()) await this.#takeDown(id)
    this.users.clear()
  }

  /** Mount points of ours that the kernel has. */
  mounted(): string[] {
    return readFileSync('/proc/self/mounts', 'utf8').split('\n').map(line => line.split(' ')[1] ?? '').filter(path => path.startsWith(`${this.#directory}/`))
  }

  async #takeDown(id: string): Promise<void> {
    await unmount(join(this.#directory, id), { lazy: true, timeoutMs: TIMEOUT_MS })
  }

  #stream(diffId: string): string {
    return join(this.#directory, `${diffId.slice('sha256:'.length)}.tar`)
  }
}

const imageId = (diffIds: readonly string[]): string => createHash('sha256').update(diffIds.join()).digest('hex').slice(0, 16)
