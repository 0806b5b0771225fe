// The supernode's HTTP API under /api/v1, its OpenAPI document, metrics, health and the console page.
import { readFileSync } from 'node:fs'
import express from 'express'
import type { Express, NextFunction, Request, Response } from 'express'
import type { Logger } from 'pino'
import type { Registry as Metrics } from 'prom-client'
import { z } from 'zod'
import { packedLength, rawLength } from '../image/block-table.ts'
import { SkimmerError } from '../oci/errors.ts'
import type { ErrorCode } from '../oci/errors.ts'
import type { BlockStore } from '../peer/block-store.ts'
import { describeIssue } from '../peer/control.ts'
import type { ControlServer } from './control-server.ts'
import { guardMutations } from './http-guard.ts'
import { cacheSchema, fileSchema, identitySchema, imageSchema, peerSchema, quarantineSchema, resourceSchema } from './http-schemas.ts'
import type { ImageCatalog } from './image-catalog.ts'
import type { ImageRecord } from './image-record.ts'
import type { LayerOrigin } from './layer-origin.ts'
import { layerResource } from './layer-origin.ts'
import { listFiles } from './list-files.ts'
import { openApiDocument } from './openapi.ts'
import type { Route } from './openapi.ts'
import type { Preheat } from './preheat.ts'
import { preheatJobSchema, preheatRequestSchema } from './preheat-job.ts'
import type { PreheatRequest } from './preheat-job.ts'
import type { QuarantineBook } from './quarantine-book.ts'
import type { Scheduler } from './scheduler.ts'
import type { StreamOrigin } from './stream-origin.ts'

export interface HttpApiComponents {
  identity: () => z.infer<typeof identitySchema>
  ready: () => boolean
  catalog: ImageCatalog
  origin: LayerOrigin
  streams: StreamOrigin
  store: BlockStore
  scheduler: Scheduler
  control: ControlServer
  preheat: Preheat
  quarantine: QuarantineBook
  metrics: Metrics
  logger: Logger
}

const MAX_BODY = '256kb'
/** Lists are cut here, newest or most used first: an answer must stay a few MiB. */
const MAX_LISTED = 2_000

const STATUS: Record<ErrorCode, number> = {
  INVALID_ARGUMENT: 400, INVALID_DATA: 422, DIGEST_MISMATCH: 422, NOT_FOUND: 404, UNAUTHORIZED: 401, FORBIDDEN: 403, UNSUPPORTED: 422,
  UNAVAILABLE: 503, TIMEOUT: 504, LIMIT_EXCEEDED: 429, NO_SPACE: 507, CONFLICT: 409, ABORTED: 499, INTERNAL: 500,
}

export function httpApi(components: HttpApiComponents, options: { token?: string } = {}): Express {
  const { catalog, origin, streams, store, scheduler, control, preheat, quarantine, metrics, logger } = components
  const app = express()
  app.disable('x-powered-by')
  app.disable('etag')
  app.use((_request, response, next) => {
    response.set({ 'x-content-type-options': 'nosniff', 'cache-control': 'no-store', 'referrer-policy': 'no-referrer' })
    next()
  })
  app.use(guardMutations(options.token))
  app.use(express.json({ limit: MAX_BODY, strict: true }))

  const routes: Route[] = [
    { method: 'get', path: '/identity', summary: 'Who this supernode is: what a node needs to join it', answer: identitySchema, run: () => components.identity() },
    { method: 'get', path: '/images', summary: 'Images that were resolved here, the latest used first', answer: z.array(imageSchema), run: () => images() },
    { method: 'get', path: '/resources', summary: 'Resources in the cache', answer: z.array(resourceSchema), run: () => resources() },
    { method: 'delete', path: '/resources/{id}', summary: 'Remove a resource from the cache; CONFLICT while it is pinned', run: async ({ params }) => {
      if (store.get(params.id) === undefined) throw new SkimmerError('NOT_FOUND', `there is no resource ${params.id} here`)
      await store.remove(params.id)
    } },
    { method: 'get', path: '/files', summary: 'Files and blobs that were brought from their sources or are on their way, the latest used first', answer: z.array(fileSchema), run: () => listFiles({ streams, store, scheduler }, MAX_LISTED) },
    { method: 'delete', path: '/files/{id}', summary: 'Forget a file or blob, by the id of its first part, and drop what is here of it; CONFLICT while it is in use', run: async ({ params }) => {
      if (!(await streams.remove(params.id))) missing(`file ${params.id}`)
    } },
    { method: 'get', path: '/cache', summary: 'Space used, and layers being indexed', answer: cacheSchema, run: () => {
      return { usage: store.usage(), resources: store.list().length, indexing: origin.inWork() }
    } },
    { method: 'get', path: '/peers', summary: 'Nodes, the latest heard of first', answer: z.array(peerSchema), run: () => peers() },
    { method: 'get', path: '/preheats', summary: 'Preheat jobs, newest first', answer: z.array(preheatJobSchema), run: () => preheat.list() },
    { method: 'post', path: '/preheats', summary: 'Bring and hold an image or a file ahead of time; push it to nodes when asked', body: preheatRequestSchema, answer: preheatJobSchema, status: 201, run: ({ body }) => preheat.add(body as PreheatRequest) },
    { method: 'get', path: '/preheats/{id}', summary: 'One preheat job', answer: preheatJobSchema, run: ({ params }) => preheat.get(params.id) ?? missing(`preheat job ${params.id}`) },
    { method: 'delete', path: '/preheats/{id}', summary: 'End a preheat job and let go of what it holds', run: async ({ params }) => {
      if (!(await preheat.remove(params.id))) missing(`preheat job ${params.id}`)
    } },
    { method: 'get', path: '/quarantine', summary: 'Resources that failed their proof', answer: z.array(quarantineSchema), run: () => [...quarantine.entries()].map(([resource, reason]) => ({ resource, reason })) },
    { method: 'delete', path: '/quarantine/{id}', summary: 'Let a resource be used again', run: async ({ params }) => {
      if (!(await quarantine.lift(params.id))) missing(`quarantined resource ${params.id}`)
    } },
  ]
  const api = express.Router()
  for (const route of routes) {
    api[route.method](route.path.replaceAll(/\{(\w+)\}/g, ':$1'), async (request: Request, response: Response) => {
      const body = route.body === undefined ? undefined : parseBody(route.body, request.body)
      const answer = await route.run({ params: request.params as Record<string, string>, body })
      if (route.answer === undefined) response.status(204).end()
      else response.status(route.status ?? 200).json(answer)
    })
  }
  const document = openApiDocument(routes)
  api.get('/openapi.json', (_request, response) => { response.json(document) })
  app.use('/api/v1', api)

  app.get('/metrics', async (_request, response) => { response.type(metrics.contentType).send(await metrics.metrics()) })
  app.get('/healthz', (_request, response) => { response.type('text').send('ok\n') })
  app.get('/readyz', (_request, response) => { response.status(components.ready() ? 200 : 503).type('text').send(components.ready() ? 'ready\n' : 'stopping\n') })
  const console = readFileSync(new URL('./console.html', import.meta.url))
  app.get('/', (_request, response) => {
    response.set('content-security-policy', "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'").type('html').send(console)
  })
  app.use((request: Request) => { throw new SkimmerError('NOT_FOUND', `there is no ${request.method} ${request.path.slice(0, 200)}; GET /api/v1/openapi.json tells what there is`) })
  app.use((thrown: unknown, _request: Request, response: Response, next: NextFunction) => {
    if (response.headersSent) return next(thrown)
    const error = asSkimmerError(thrown)
    if (error.code === 'INTERNAL') logger.error({ err: thrown }, 'an HTTP request failed')
    if (error.code === 'UNAUTHORIZED') response.set('www-authenticate', 'Bearer')
    response.status(STATUS[error.code]).json({ code: error.code, message: error.message })
  })

  async function images(): Promise<z.infer<typeof imageSchema>[]> {
    const all: ImageRecord[] = []
    for await (const [, image] of catalog.images()) all.push(image)
    return await Promise.all(all.toSorted((a, b) => b.lastUse - a.lastUse).slice(0, MAX_LISTED).map(async ({ layers, ...image }) => {
      const described = await Promise.all(layers.map(async ({ digest, size, diffId }) => ({ digest, size, diffId, index: (await origin.known({ digest, diffId }).catch(() => undefined))?.index })))
      const { registry, repository, manifestDigest, platform, references, chainId, firstSeen, lastUse } = image
      return { registry, repository, manifestDigest, platform, references, chainId, firstSeen, lastUse, bytes: layers.reduce((sum, layer) => sum + layer.size, 0), indexed: described.every(({ index }) => index !== undefined), layers: described }
    }))
  }

  async function resources(): Promise<z.infer<typeof resourceSchema>[]> {
    const layerOf = new Map<string, string>()
    for await (const [, { index, digest }] of origin.records()) layerOf.set(layerResource(index), digest)
    return store.list().toSorted((a, b) => b.lastUse - a.lastUse).slice(0, MAX_LISTED).map(resource => {
      const holders = scheduler.holders(resource.id)
      return {
        id: resource.id, rawBytes: rawLength(resource.table), packedBytes: packedLength(resource.table), storedBytes: resource.storedBytes, blocks: resource.table.count, whole: resource.whole, proved: resource.proved,
        quarantined: resource.quarantined, pinned: resource.pinned, lastUse: resource.lastUse, layerDigest: layerOf.get(resource.id), diffId: resource.diffId, holders: holders.length, wholeHolders: holders.filter(({ whole }) => whole).length,
      }
    })
  }

  function peers(): z.infer<typeof peerSchema>[] {
    const listening = new Set(control.listeners)
    const now = Date.now()
    return [...scheduler.peers()].toReversed().slice(0, MAX_LISTED).map(peer => ({
      peerId: peer.id, addrs: [...peer.addrs], labels: { ...peer.labels }, version: peer.version, alive: scheduler.alive(peer.id), listening: listening.has(peer.id), banned: peer.bannedUntil > now ? peer.banReason : undefined,
      uploadSlots: peer.uploadSlots, slotsFree: peer.freeSlots(), resources: peer.holdings.size, bytesServed: peer.bytesServed, bytesReceived: peer.bytesReceived, success: peer.success, throughput: peer.throughput, firstSeen: peer.firstSeen, lastSeen: peer.lastSeen,
    }))
  }
  return app
}

function missing(what: string): never {
  throw new SkimmerError('NOT_FOUND', `there is no ${what} here`)
}

function parseBody(schema: z.ZodType, body: unknown): unknown {
  if (body === undefined) throw new SkimmerError('INVALID_ARGUMENT', 'the request needs a JSON body and "Content-Type: application/json"')
  const parsed = schema.safeParse(body)
  if (!parsed.success) throw new SkimmerError('INVALID_ARGUMENT', describeIssue(parsed.error))
  return parsed.data
}

/** Express and its body parser throw errors with a status of their own. */
function asSkimmerError(thrown: unknown): SkimmerError {
  if (thrown instanceof SkimmerError) return thrown
  const { status, type } = (thrown ?? {}) as { status?: number; type?: string }
  if (status === 413) return new SkimmerError('LIMIT_EXCEEDED', `the request body is larger than ${MAX_BODY}`)
  if (status !== undefined && status < 500) return new SkimmerError('INVALID_ARGUMENT', type === 'entity.parse.failed' ? 'the request body is not JSON' : 'the request is malformed')
  return new SkimmerError('INTERNAL', 'the supernode failed; its log says why')
}
