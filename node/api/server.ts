// The node's API on its unix socket: for the CLI, for scripts and for Prometheus. Whoever may open the socket (root) may use it.
import { chmodSync, rmSync } from 'node:fs'
import { createServer, type Server } from 'node:http'
import express, { type Express, type Request, type Response } from 'express'
import type { Logger } from 'pino'
import type { Registry } from 'prom-client'
import { z } from 'zod'
import type { FuseChannel } from '../../blockdev/fuse-channel.ts'
import type { ImageMounts } from '../../blockdev/image-mounts.ts'
import type { ReadFailure } from '../../blockdev/parked-reads.ts'
import { packedLength, rawLength } from '../../image/block-table.ts'
import { answerErrors } from '../../dfget/api-errors.ts'
import type { DownloadApi } from '../../dfget/download-api.ts'
import { SkimmerError } from '../../oci/errors.ts'
import type { Snapshotter } from '../../snapshotter/service.ts'
import type { NodeCore } from '../core.ts'
import type { HeldImages } from '../lazy/held-images.ts'
import type { ImageDisks } from '../lazy/image-disks.ts'
import { imageIdOf } from '../lazy/image-metadata.ts'
import type { NodeImages } from '../lazy/node-images.ts'
import { VERSION } from '../../command-line/version.ts'
import type { ExplainAnswer, ImageAnswer, LayerAnswer, MountAnswer, StatusAnswer, TrafficAnswer } from './answers.ts'

export interface NodeApiComponents {
  readonly core: NodeCore
  readonly channel: FuseChannel
  readonly mounts: ImageMounts
  readonly disks: ImageDisks
  readonly images: NodeImages
  readonly held: HeldImages
  readonly files: DownloadApi
  readonly snapshotter: Snapshotter
  readonly failures: readonly (ReadFailure & { at: number })[]
  readonly logger: Logger
  readonly metrics: Registry
}

const referenceBody = z.strictObject({ reference: z.string().min(1).max(4096) })
const mountBody = referenceBody.extend({ target: z.string().startsWith('/').max(4096) })
/** Users of mounts made by `skimmer mount` are named by where they are. */
const mountUser = (target: string): string => `mount:${target}`
export const isMountUser = (user: string): boolean => user.startsWith('mount:')

export class NodeApi {
  readonly #components: NodeApiComponents
  readonly #metricsListen: { readonly host: string; readonly port: number } | undefined
  readonly #startedAt = Date.now()
  readonly #servers: Server[] = []
  readonly #targets = new Map<string, string[]>()

  constructor(components: NodeApiComponents, options: { metricsListen?: { readonly host: string; readonly port: number } } = {}) {
    this.#components = components
    this.#metricsListen = options.metricsListen
  }

  async start(where: { path: string } | { fd: number }): Promise<void> {
    const app = this.#routes()
    const server = createServer({ requestTimeout: 15_000 }, app)
    if ('path' in where) rmSync(where.path, { force: true })
    await listen(server, where)
    if ('path' in where) chmodSync(where.path, 0o600)
    this.#servers.push(server)
    if (this.#metricsListen !== undefined) {
      const metricsOnly = createServer((_, response) => void this.#writeMetrics(response as Response))
      await listen(metricsOnly, this.#metricsListen)
      this.#servers.push(metricsOnly)
    }
  }

  async stop(): Promise<void> {
    for (const server of this.#servers.splice(0)) {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    }
  }

  #routes(): Express {
    const app = express()
    app.disable('x-powered-by')
    app.use(this.#components.files.router())
    app.use(express.json({ limit: '64kb', strict: true }))
    app.get('/v1/ready', (_, response) => void response.json({ ready: true }))
    app.get('/v1/status', (_, response) => void response.json(this.#status()))
    app.get('/v1/traffic', (request, response) => void response.json(this.#traffic(request.query.before)))
    app.get('/v1/explain', (_, response) => void response.json(this.#explain()))
    app.get('/v1/image', async (request, response) => void response.json(await this.#image(String(request.query.reference ?? ''))))
    app.post('/v1/images', async (request, response) => {
      await this.#components.held.hold(parse(referenceBody, request.body).reference)
      response.status(202).json({})
    })
    app.post('/v1/mounts', async (request, response) => void response.status(201).json(await this.#mount(parse(mountBody, request.body), () => response.destroyed)))
    app.delete('/v1/mounts', async (request, response) => {
      await this.#unmount(String(request.query.target ?? ''))
      response.status(200).json({})
    })
    app.get('/metrics', (_, response) => this.#writeMetrics(response))
    app.use((request: Request) => {
      throw new SkimmerError('NOT_FOUND', `${request.method} ${request.path}: the node's API has no such call`)
    })
    app.use(answerErrors(this.#components.logger))
    return app
  }

  #status(): StatusAnswer {
    const { core, mounts, disks, files } = this.#components
    const up = core.peer.supernodes.inOrder('')
    const usage = core.store.usage()
    return {
      peerId: core.peer.id,
      version: VERSION,
      uptimeMs: Date.now() - this.#startedAt,
      mode: mounts.mode,
      supernodes: up.map(({ address }) => ({ address, connected: true })),
      peers: core.peer.pool.connected().filter((peer) => !peer.supernode).length,
      cache: { packedBytes: usage.packedBytes, rawBytes: usage.rawBytes, capBytes: usage.capBytes },
      images: disks.published().map(({ imageId, layers }) => {
        const known = layers.flatMap(({ diffId }) => core.library.get(diffId)?.resource ?? [])
        return {
          imageId,
          layers: layers.length,
          storedBytes: known.reduce((sum, resource) => sum + resource.storedBytes, 0),
          packedBytes: known.reduce((sum, resource) => sum + packedLength(resource.table), 0),
          proved: known.length === layers.length && known.every((resource) => resource.proved),
          users: mounts.users(imageId).length,
        }
      }),
      files: files.list(),
    }
  }

  #traffic(before: unknown): TrafficAnswer {
    const { core } = this.#components
    const until = before === undefined ? Date.now() : Number(before)
    if (!Number.isFinite(until)) throw new SkimmerError('INVALID_ARGUMENT', 'before: milliseconds since 1970 are needed')
    return { sources: core.peer.fetcher.accounting.total(until) }
  }

  #explain(): ExplainAnswer {
    const { snapshotter, failures } = this.#components
    return { snapshots: snapshotter.explain(), readFailures: failures.map(({ at, waitedMs, reason }) => ({ at, waitedMs, reason })) }
  }

  async #image(reference: string): Promise<ImageAnswer> {
    const { core, images } = this.#components
    const { reference: checked } = parse(referenceBody, { reference })
    const diffIds = await images.resolve({ reference: checked })
    const layers: LayerAnswer[] = []
    for (const diffId of diffIds) {
      const known = core.library.get(diffId)
      if (known === undefined) continue
      const { record, resource } = known
      layers.push({
        diffId,
        layerDigest: record.layerDigest,
        layerSize: record.layerSize,
        rawBytes: rawLength(resource.table),
        packedBytes: packedLength(resource.table),
        storedBytes: resource.storedBytes,
        blocks: resource.table.count,
        storedBlocks: resource.storedBlocks,
        files: await core.library.files(diffId),
        whole: resource.whole,
        proved: resource.proved,
        quarantined: resource.quarantined,
        wholeAt: core.library.wholeAt(diffId),
      })
    }
    return { reference: checked, imageId: imageIdOf(diffIds), layers }
  }

  /** `left` says whether the caller has gone meanwhile: then nobody will bind the mount anywhere, and nobody would end it. */
  async #mount({ reference, target }: { reference: string; target: string }, left: () => boolean): Promise<MountAnswer> {
    const { images, mounts } = this.#components
    const user = mountUser(target)
    if (this.#targets.has(target) || mounts.inUse().some((id) => mounts.users(id).includes(user))) {
      throw new SkimmerError('CONFLICT', `an image is mounted at ${target} already: skimmer umount ${target}`)
    }
    this.#targets.set(target, [])
    try {
      const diffIds = await images.resolve({ reference })
      const mountPoint = await images.mount(diffIds, user)
      if (left()) {
        await images.unmount(diffIds, user)
        throw new SkimmerError('ABORTED', `nobody waits for ${reference} at ${target} any more`)
      }
      this.#targets.set(target, diffIds)
      return { reference, imageId: imageIdOf(diffIds), mountPoint }
    } catch (error) {
      this.#targets.delete(target)
      throw error
    }
  }

  async #unmount(target: string): Promise<void> {
    const { images, mounts, disks } = this.#components
    // After a restart the table is empty, but the mounts know their users.
    const imageId = mounts.inUse().find((id) => mounts.users(id).includes(mountUser(target)))
    const diffIds = this.#targets.get(target) ?? disks.published().find((disk) => disk.imageId === imageId)?.layers.map((layer) => layer.diffId)
    if (diffIds === undefined) throw new SkimmerError('NOT_FOUND', `no image is mounted at ${target} by this node`)
    this.#targets.delete(target)
    await images.unmount(diffIds, mountUser(target))
  }

  async #writeMetrics(response: Response): Promise<void> {
    const { metrics } = this.#components
    response.setHeader('content-type', metrics.contentType)
    response.end(await metrics.metrics())
  }
}

function parse<T>(schema: z.ZodType<T>, value: unknown): T {
  const parsed = schema.safeParse(value)
  if (!parsed.success) throw new SkimmerError('INVALID_ARGUMENT', parsed.error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`).join('; '))
  return parsed.data
}

function listen(server: Server, where: { path: string } | { fd: number } | { host: string; port: number }): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject)
    server.listen(where, () => {
      server.off('error', reject)
      resolve()
    })
  })
}
