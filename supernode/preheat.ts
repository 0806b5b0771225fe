// Preheat: bring images and files ahead of time, hold them, and push them to nodes; jobs are kept over restarts.
import { randomUUID } from 'node:crypto'
import type { Logger } from 'pino'
import { Gauge } from 'prom-client'
import type { Registry as Metrics } from 'prom-client'
import { SkimmerError } from '../oci/errors.ts'
import { parsePlatform } from '../oci/platform.ts'
import { parseReference } from '../oci/reference.ts'
import type { BlockStore } from '../peer/block-store.ts'
import type { ControlEvent } from '../peer/control.ts'
import { pause } from '../peer/pause.ts'
import { DEFAULT_MAX_JOBS, DEFAULT_PARALLEL_JOBS, DEFAULT_PUSH_MS } from './defaults.ts'
import type { ComposedImages } from './composed-images.ts'
import type { FileOrigin, FileRequest } from './file-origin.ts'
import type { Granter } from './granter.ts'
import type { ImageCatalog, ResolvedImage } from './image-catalog.ts'
import { layerResource } from './layer-origin.ts'
import type { LayerOrigin } from './layer-origin.ts'
import { bringFile, filePreheat, keptRequest } from './preheat-file.ts'
import { preheatJobSchema } from './preheat-job.ts'
import type { PreheatJob, PreheatRequest } from './preheat-job.ts'
import type { Scheduler } from './scheduler.ts'
import type { SharedState, StateSpace } from './shared-state.ts'
import { WorkSlots } from './work-slots.ts'

export interface PreheatComponents {
  catalog: ImageCatalog
  origin: LayerOrigin
  files: FileOrigin
  granter: Granter
  composed: ComposedImages
  scheduler: Scheduler
  store: BlockStore
  state: SharedState
  /** Tells nodes; answers which of them listened. */
  push: (event: ControlEvent, peers?: ReadonlySet<string>) => string[]
  logger: Logger
  metrics?: Metrics
}

export interface PreheatOptions {
  parallelJobs?: number
  maxJobs?: number
  /** How long pushed nodes may take to hold everything, milliseconds. */
  pushMs?: number
  /** How often their progress is looked at, milliseconds. */
  pollMs?: number
}

const UNFINISHED = new Set(['WAITING', 'RUNNING'])

export class Preheat {
  readonly #components: PreheatComponents
  readonly #options: Required<PreheatOptions>
  readonly #records: StateSpace<PreheatJob>
  /** Oldest first. */
  readonly #jobs = new Map<string, PreheatJob>()
  readonly #running = new Map<string, AbortController>()
  /** What is needed for a job and not kept. */
  readonly #credentials = new Map<string, PreheatRequest['credentials']>()
  readonly #fileRequests = new Map<string, FileRequest>()
  readonly #slots: WorkSlots
  readonly #ends = new Set<Promise<void>>()
  #closed = false

  private constructor(components: PreheatComponents, options: PreheatOptions) {
    this.#components = components
    this.#options = { parallelJobs: DEFAULT_PARALLEL_JOBS, maxJobs: DEFAULT_MAX_JOBS, pushMs: DEFAULT_PUSH_MS, pollMs: 500, ...options }
    this.#records = components.state.space('preheats', preheatJobSchema)
    this.#slots = new WorkSlots(this.#options.parallelJobs)
    if (components.metrics !== undefined) {
      const jobs = this.#jobs
      void new Gauge({ name: 'skimmer_supernode_preheat_jobs', help: 'Preheat jobs by state', labelNames: ['state'], registers: [components.metrics], collect() {
        this.reset()
        for (const { state } of jobs.values()) this.inc({ state })
      } })
    }
  }

  /** Jobs that a stop interrupted begin again, with the supernode's own credentials. */
  static async open(components: PreheatComponents, options: PreheatOptions = {}): Promise<Preheat> {
    const preheat = new Preheat(components, options)
    const known: PreheatJob[] = []
    for await (const [, job] of preheat.#records.entries()) known.push(job)
    for (const job of known.sort((a, b) => a.createdAt - b.createdAt)) {
      preheat.#jobs.set(job.id, job)
      if (UNFINISHED.has(job.state)) preheat.#begin(job)
    }
    return preheat
  }

  /** INVALID_ARGUMENT for a bad reference, URL, header or platform, LIMIT_EXCEEDED when too many jobs wait. */
  async add(request: PreheatRequest): Promise<PreheatJob> {
    const { type, scope, nodes, hold, platform, credentials } = request
    const file = type === 'file' ? filePreheat(request) : undefined
    if (file === undefined) parseReference(request.url)
    if (platform !== undefined) parsePlatform(platform)
    await this.#makeRoom()
    const job: PreheatJob = { type, url: request.url, platform, scope, nodes, hold, ...file?.shown, id: randomUUID(), state: 'WAITING', createdAt: Date.now(), progress: { bytes: 0, total: 0, layers: 0, layersDone: 0, nodes: 0, nodesDone: 0 }, resources: [] }
    this.#jobs.set(job.id, job)
    if (file !== undefined) this.#fileRequests.set(job.id, file.request)
    else if (credentials !== undefined) this.#credentials.set(job.id, credentials)
    await this.#records.put(job.id, job)
    const accepted = structuredClone(job)
    this.#begin(job)
    return accepted
  }

  get(id: string): PreheatJob | undefined {
    return this.#jobs.get(id)
  }

  /** Newest first. */
  list(): PreheatJob[] {
    return [...this.#jobs.values()].toReversed()
  }

  /** Ends it if it runs, lets go of what it holds, forgets it. False when there is no such job. */
  async remove(id: string): Promise<boolean> {
    const job = this.#jobs.get(id)
    if (job === undefined) return false
    this.#jobs.delete(id)
    this.#forgetSecrets(id)
    this.#running.get(id)?.abort(new SkimmerError('ABORTED', 'the preheat job was deleted'))
    for (const resource of job.resources) this.#components.store.get(resource)?.unpin(`preheat:${id}`)
    await this.#records.delete(id)
    return true
  }

  async close(): Promise<void> {
    this.#closed = true
    for (const controller of this.#running.values()) controller.abort(new SkimmerError('ABORTED', 'the supernode is stopping'))
    await Promise.allSettled(this.#ends)
  }

  #begin(job: PreheatJob): void {
    const controller = new AbortController()
    this.#running.set(job.id, controller)
    const end = this.#slots.run(() => this.#run(job, controller.signal)).finally(() => {
      this.#running.delete(job.id)
      this.#ends.delete(end)
    })
    this.#ends.add(end)
  }

  async #run(job: PreheatJob, signal: AbortSignal): Promise<void> {
    if (signal.aborted) return
    job.state = 'RUNNING'
    job.startedAt = Date.now()
    try {
      await this.#save(job)
      await (job.type === 'file' ? this.#preheatFile(job, signal) : this.#preheatImage(job, signal))
      job.state = 'SUCCESS'
    } catch (error) {
      // A job that a stop interrupts stays RUNNING in the state: the next start takes it up.
      if (this.#closed) return
      job.state = 'FAILED'
      job.error = error instanceof SkimmerError ? { code: error.code, message: error.message } : { code: 'INTERNAL', message: 'the supernode failed; its log says why' }
      this.#components.logger.warn({ job: job.id, url: job.url, err: error }, 'preheat failed')
    }
    job.finishedAt = Date.now()
    this.#forgetSecrets(job.id)
    await this.#save(job).catch((error: unknown) => this.#components.logger.error({ job: job.id, err: error }, 'a preheat job could not be saved'))
  }

  async #preheatImage(job: PreheatJob, signal: AbortSignal): Promise<void> {
    const { catalog, origin, store } = this.#components
    const resolved = await catalog.resolve({ reference: job.url, platform: job.platform, credentials: this.#credentials.get(job.id) })
    signal.throwIfAborted()
    const { image, access, reference } = resolved
    const layers = [...new Map(image.layers.map(layer => [layer.digest, layer])).values()]
    job.manifestDigest = image.manifestDigest
    job.progress = { ...job.progress, total: layers.reduce((sum, layer) => sum + layer.size, 0), layers: layers.length, layersDone: 0 }
    const read = new Map<string, number>()
    const resources = await Promise.all(layers.toSorted((a, b) => b.size - a.size).map(async layer => {
      const advance = (bytes: number): void => {
        read.set(layer.digest, Math.min(bytes, layer.size))
        job.progress.bytes = [...read.values()].reduce((sum, value) => sum + value, 0)
      }
      const { index } = await origin.ensureIndexed({ reference, layer, access }, { signal, onProgress: ({ bytes }) => { advance(bytes) } })
      advance(layer.size)
      job.progress.layersDone++
      if (job.hold && this.#jobs.has(job.id)) store.get(layerResource(index))?.pin(`preheat:${job.id}`, { lasting: true })
      return layerResource(index)
    }))
    job.resources = resources
    const indexOf = new Map(layers.toSorted((a, b) => b.size - a.size).map((layer, at) => [layer.digest, resources[at].slice('layer:'.length)]))
    // Not vital: without it every node composes for itself.
    await this.#components.composed.ensure(image.chainId, image.layers.map(({ digest }) => indexOf.get(digest)!)).catch((error: unknown) => {
      this.#components.logger.info({ job: job.id, url: job.url, reason: (error as Error).message }, 'the image could not be composed ahead')
    })
    if (!this.#jobs.has(job.id)) for (const resource of resources) store.get(resource)?.unpin(`preheat:${job.id}`)
    signal.throwIfAborted()
    if (job.scope !== 'supernode') await this.#held(job, await this.#pushImage(job, resolved), reference.repository, resources, signal)
  }

  async #preheatFile(job: PreheatJob, signal: AbortSignal): Promise<void> {
    const { files, store } = this.#components
    let told: string[] = []
    const { resources, release } = await bringFile(files, this.#fileRequests.get(job.id) ?? keptRequest(job), signal, {
      // Nodes begin while it comes here: they know it by its resource, and were told that they may.
      work: async work => { if (job.scope !== 'supernode') told = await this.#pushFile(job, work.record.resource) },
      progress: (bytes, total) => { Object.assign(job.progress, { bytes, total }) },
    })
    try {
      job.resources = resources
      if (job.hold && this.#jobs.has(job.id)) for (const resource of resources) store.get(resource)?.pin(`preheat:${job.id}`, { lasting: true })
    } finally {
      release()
    }
    if (job.scope !== 'supernode') await this.#held(job, told, job.url, resources, signal)
  }

  async #pushFile(job: PreheatJob, resource: string): Promise<string[]> {
    const { granter, push } = this.#components
    const wanted = this.#wantedNodes(job)
    // Told first that they may: nodes answer with file.open at once.
    for (const peer of wanted) await granter.grant(peer, [resource])
    return push({ type: 'hold-file', resource, name: job.url }, new Set(wanted))
  }

  async #pushImage(job: PreheatJob, { image }: ResolvedImage): Promise<string[]> {
    const { catalog, push } = this.#components
    const wanted = this.#wantedNodes(job)
    // Told first that they may: nodes answer with image.resolve at once.
    for (const peer of wanted) await catalog.access.seenByPeer(image, peer)
    return push({ type: 'hold', reference: job.url, platform: image.platform, manifestDigest: image.manifestDigest }, new Set(wanted))
  }

  #wantedNodes(job: PreheatJob): string[] {
    return job.nodes ?? [...this.#components.scheduler.peers()].map(({ id }) => id)
  }

  /** Waits until the nodes that were told say that they hold it. */
  async #held(job: PreheatJob, told: readonly string[], name: string, resources: readonly string[], signal: AbortSignal): Promise<void> {
    const { scheduler } = this.#components
    const holds = (node: string): boolean => resources.every(resource => scheduler.holdsWhole(node, resource))
    job.progress.nodes = told.length
    const deaf = job.nodes?.filter(node => !told.includes(node)) ?? []
    const deadline = Date.now() + this.#options.pushMs
    for (;;) {
      const waiting = told.filter(node => scheduler.alive(node) && !holds(node))
      job.progress.nodesDone = told.filter(holds).length
      if (waiting.length === 0) break
      if (Date.now() > deadline) throw new SkimmerError('TIMEOUT', `${name}: ${waiting.length} nodes did not hold it in time: ${waiting.slice(0, 5).join(', ')}`)
      await pause(this.#options.pollMs, signal)
      signal.throwIfAborted()
    }
    const lost = [...deaf, ...told.filter(node => !holds(node))]
    if (lost.length > 0) throw new SkimmerError('UNAVAILABLE', `${lost.length} nodes do not hold it: they do not listen to this supernode or went away: ${lost.slice(0, 5).join(', ')}`)
  }

  #forgetSecrets(id: string): void {
    this.#credentials.delete(id)
    this.#fileRequests.delete(id)
  }

  async #save(job: PreheatJob): Promise<void> {
    if (this.#jobs.get(job.id) === job) await this.#records.put(job.id, job)
  }

  async #makeRoom(): Promise<void> {
    if (this.#jobs.size < this.#options.maxJobs) return
    // What failed or holds nothing goes first; a finished job that holds images only when there is no other.
    const finished = [...this.#jobs.values()].filter(job => !UNFINISHED.has(job.state))
    const oldest = finished.find(job => job.state === 'FAILED' || !job.hold) ?? finished[0]
    if (oldest === undefined) throw new SkimmerError('LIMIT_EXCEEDED', `${this.#jobs.size} preheat jobs are waiting or running; try again when some have ended`)
    await this.remove(oldest.id)
  }
}
