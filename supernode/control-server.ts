// The supernode's answers to the control protocol: admission, images, layers, chains, who has what, traces, quarantine, events.
import { timingSafeEqual } from 'node:crypto'
import { multiaddr } from '@multiformats/multiaddr'
import { LRUCache } from 'lru-cache'
import type { Logger } from 'pino'
import { Counter, Gauge, Histogram } from 'prom-client'
import type { Registry as Metrics } from 'prom-client'
import { SkimmerError, hasCode } from '../oci/errors.ts'
import { atDigest } from '../oci/reference.ts'
import type { BlockStore } from '../peer/block-store.ts'
import type { ControlEvent, ControlOperation, ControlRequest, ImageLayer } from '../peer/control.ts'
import type { ControlCall, ControlHandlers } from '../peer/serve-control.ts'
import { bitmapFill } from './bitmap-fill.ts'
import { DEFAULT_HEARTBEAT_MS } from './defaults.ts'
import type { Granter } from './granter.ts'
import type { ImageCatalog, ResolvedImage } from './image-catalog.ts'
import type { ImageRecord } from './image-record.ts'
import { layerResource } from './layer-origin.ts'
import type { IndexedLayer, LayerOrigin } from './layer-origin.ts'
import type { QuarantineBook } from './quarantine-book.ts'
import type { Scheduler } from './scheduler.ts'
import type { ComposedImages } from './composed-images.ts'
import type { TraceBook } from './trace-book.ts'

export interface ControlServerOptions {
  heartbeatMs?: number
  /** Nodes must say this in `hello`; without it every node is admitted. */
  joinToken?: string
}

export interface ControlServerComponents {
  /** This supernode's own peer id. */
  peerId: string
  scheduler: Scheduler
  catalog: ImageCatalog
  origin: LayerOrigin
  store: BlockStore
  granter: Granter
  traces: TraceBook
  composed: ComposedImages
  quarantine: QuarantineBook
  /** Files and blobs: see stream-control.ts. */
  streams: Pick<ControlHandlers, 'file.open' | 'blob.open'>
  /** Round-trip to a peer that has just said hello, milliseconds. */
  measureRtt?: (peer: string) => Promise<number>
  logger: Logger
  metrics?: Metrics
}

/** A peer's round-trip is measured again after this. */
const RTT_MS = 60_000

/** The name under which an image's traces are kept: the chainID of its top layer, in hex. */
export const imageIdOf = (image: ImageRecord): string => image.chainId.slice('sha256:'.length)

export class ControlServer {
  readonly handlers: ControlHandlers
  readonly #components: ControlServerComponents
  readonly #options: ControlServerOptions
  /** Peer -> when its round-trip was measured last. */
  readonly #measured = new LRUCache<string, number>({ max: 65_536 })
  readonly #subscribers = new Map<ControlCall<'events'>, string>()

  constructor(components: ControlServerComponents, options: ControlServerOptions = {}) {
    this.#components = components
    this.#options = options
    this.handlers = this.#counted({
      hello: (request, call) => this.#hello(request, call),
      'image.resolve': (request, call) => this.#resolveImage(request, call),
      'layer.index': (request, call) => this.#indexLayer(request, call),
      'chain.resolve': (request, call) => this.#resolveChain(request, call),
      announce: async (request, call) => this.#announce(request, call),
      parents: async ({ resource, count, exclude }, call) => ({ parents: this.#parents(call.remote, resource, count, exclude) }),
      report: async ({ resource, from }, call) => { components.scheduler.report(call.remote, resource, from); return {} },
      'trace.put': (request, call) => this.#putTrace(request, call),
      'trace.get': async ({ image }, call) => { this.#admitted(call.remote); return { trace: await components.traces.get(image) } },
      'grant.renew': async ({ resources }, call) => { this.#admitted(call.remote); return { grant: await components.granter.renew(call.remote, resources) } },
      quarantine: async ({ resource, reason }, call) => { this.#admitted(call.remote); components.quarantine.claim(resource, reason, call.remote); return {} },
      events: (_, call) => this.#events(call),
      ...components.streams,
    })
    components.quarantine.onConfirmed = (resource, reason) => {
      components.scheduler.forgetResource(resource)
      this.push({ type: 'quarantine', resource, reason })
    }
  }

  /** Tell nodes something: all that listen, or those named. Returns who was told. */
  push(event: ControlEvent, peers?: ReadonlySet<string>): string[] {
    const told = new Set<string>()
    for (const [call, peer] of this.#subscribers) {
      if (peers !== undefined && !peers.has(peer)) continue
      call.progress(event)
      told.add(peer)
    }
    return [...told]
  }

  /** Nodes that listen for events now. */
  get listeners(): string[] {
    return [...new Set(this.#subscribers.values())]
  }

  #admitted(remote: string): void {
    if (!this.#components.scheduler.knows(remote)) throw new SkimmerError('FORBIDDEN', 'say hello to this supernode first')
  }

  async #hello(request: ControlRequest<'hello'>, call: ControlCall<'hello'>) {
    const { joinToken } = this.#options
    if (joinToken !== undefined && !sameSecret(request.joinToken ?? '', joinToken)) {
      throw new SkimmerError('FORBIDDEN', 'this supernode admits only nodes that know its join token: name a file with it by join-token-file on the node')
    }
    this.#components.scheduler.hello({ id: call.remote, addrs: addressesOf(request.addrs, call.remote), labels: request.labels, uploadSlots: request.uploadSlots, version: request.version })
    this.#measureRtt(call.remote)
    return { grantKey: this.#components.granter.publicKey, heartbeatMs: this.#options.heartbeatMs ?? DEFAULT_HEARTBEAT_MS, peerId: this.#components.peerId }
  }

  #measureRtt(peer: string): void {
    const { measureRtt, scheduler, logger } = this.#components
    const now = Date.now()
    if (measureRtt === undefined || now - (this.#measured.get(peer) ?? 0) < RTT_MS) return
    this.#measured.set(peer, now)
    measureRtt(peer).then(rtt => scheduler.measuredRtt(peer, rtt), (error: unknown) => logger.debug({ peer, err: error }, 'a peer could not be pinged'))
  }

  async #resolveImage(request: ControlRequest<'image.resolve'>, call: ControlCall<'image.resolve'>) {
    this.#admitted(call.remote)
    const { catalog, granter, traces, composed: composedImages } = this.#components
    const resolved = await catalog.resolve({ ...request, peer: call.remote })
    const { image } = resolved
    await catalog.access.seenByPeer(image, call.remote)
    const known = await this.startIndexing(resolved)
    const layers: ImageLayer[] = image.layers.map(layer => ({ ...layer, index: known.get(layer.digest)?.index }))
    const indexes = layers.flatMap(({ index }) => index ?? [])
    const composed = indexes.length === layers.length ? await composedImages.find(image.chainId) : undefined
    if (composed === undefined && indexes.length === layers.length) composedImages.ensureSoon(image.chainId, indexes)
    return {
      manifestDigest: image.manifestDigest, layers, composed,
      grant: await granter.grant(call.remote, [...indexes, ...(composed === undefined ? [] : [composed.object])].map(layerResource)),
      trace: await traces.get(imageIdOf(image)),
    }
  }

  /** Layers that are indexed; the others are begun, the largest first: it takes longest. */
  async startIndexing({ image, access, reference }: ResolvedImage): Promise<Map<string, IndexedLayer>> {
    const { origin, logger, quarantine } = this.#components
    const known = new Map<string, IndexedLayer>()
    for (const layer of image.layers.toSorted((a, b) => b.size - a.size)) {
      const repository = `${reference.registry}/${reference.repository}`
      const record = await origin.known(layer).catch(() => undefined)
      if (record !== undefined && record.repositories.includes(repository) && !quarantine.has(layerResource(record.index))) known.set(layer.digest, record)
      // Whoever needs the layer asks for it by layer.index and hears of the failure there.
      else origin.ensureIndexed({ reference, layer, access }).catch((error: unknown) => logger.debug({ layer: layer.digest, err: error }, 'indexing ahead failed'))
    }
    return known
  }

  async #indexLayer(request: ControlRequest<'layer.index'>, call: ControlCall<'layer.index'>) {
    this.#admitted(call.remote)
    const { catalog, origin, granter } = this.#components
    const { image, access, reference } = await catalog.resolve({ ...request, peer: call.remote })
    const layer = image.layers.find(({ digest }) => digest === request.layerDigest)
    if (layer === undefined) throw new SkimmerError('NOT_FOUND', `${request.layerDigest} is no layer of ${request.reference} at ${image.manifestDigest}`)
    await catalog.access.seenByPeer(image, call.remote)
    const record = await origin.ensureIndexed({ reference, layer, access }, { signal: call.signal, onProgress: progress => call.progress({ bytes: Math.min(progress.bytes, progress.total), total: progress.total }) })
    const { index, diffId, rawLength, packedLength } = record
    return { index, diffId, rawLength, packedLength, grant: await granter.grant(call.remote, [layerResource(index)]) }
  }

  async #resolveChain({ chainId }: ControlRequest<'chain.resolve'>, call: ControlCall<'chain.resolve'>) {
    this.#admitted(call.remote)
    const { catalog, origin, granter, traces } = this.#components
    const { image, layers, access } = await catalog.resolveChain(chainId, call.remote)
    const reference = atDigest({ registry: image.registry, repository: image.repository }, image.manifestDigest)
    const indexed = await Promise.all(layers.map(layer => origin.ensureIndexed({ reference, layer, access }, { signal: call.signal })))
    await catalog.access.seenByPeer(image, call.remote)
    return {
      layers: indexed.map(({ digest, size, diffId, index }) => ({ digest, size, diffId, index })),
      grant: await granter.grant(call.remote, indexed.map(({ index }) => layerResource(index))),
      trace: await traces.get(imageIdOf(image)),
    }
  }

  #announce({ have, gone }: ControlRequest<'announce'>, call: ControlCall<'announce'>) {
    const { scheduler, store, quarantine } = this.#components
    this.#admitted(call.remote)
    for (const resource of gone) scheduler.gone(call.remote, resource)
    for (const item of have) {
      if (quarantine.has(item.resource)) continue
      scheduler.announce(call.remote, item.resource, 'whole' in item ? 1 : bitmapFill(Buffer.from(item.blocks, 'base64'), store.get(item.resource)?.table.count))
    }
    return {}
  }

  #parents(remote: string, resource: string, count: number, exclude: readonly string[] | undefined) {
    if (this.#components.quarantine.has(resource)) throw new SkimmerError('FORBIDDEN', `${resource} is quarantined: it does not match its diffID`)
    return this.#components.scheduler.parents(remote, resource, count, exclude).map(({ peerId, addrs, whole, slots }) => ({ peerId, addrs: [...addrs], whole, slots }))
  }

  async #composeAhead(imageId: string): Promise<void> {
    const { catalog, origin, composed } = this.#components
    const chain = await catalog.chain(`sha256:${imageId}`)
    const records = await Promise.all((chain ?? []).map(layer => origin.known(layer).catch(() => undefined)))
    if (records.length > 0 && records.every(record => record !== undefined)) composed.ensureSoon(`sha256:${imageId}`, records.map(record => record!.index))
  }

  async #putTrace({ image, trace }: ControlRequest<'trace.put'>, call: ControlCall<'trace.put'>) {
    this.#admitted(call.remote)
    // Only of what the node was let to read: a trace makes others fetch.
    for (const resource of trace.resources) {
      if (!(await this.#components.granter.mayRead(call.remote, resource))) throw new SkimmerError('FORBIDDEN', `a trace names ${resource}, which this node was not granted`)
    }
    await this.#components.traces.put(image, trace)
    // A start is over, and nobody waits for this machine just now: the next node should find the image composed.
    await this.#composeAhead(image)
    return {}
  }

  async #events(call: ControlCall<'events'>) {
    this.#admitted(call.remote)
    this.#subscribers.set(call, call.remote)
    try {
      for (const [resource, reason] of this.#components.quarantine.entries()) call.progress({ type: 'quarantine', resource, reason })
      if (!call.signal.aborted) await new Promise<void>(resolve => { call.signal.addEventListener('abort', () => { resolve() }, { once: true }) })
      return {}
    } finally {
      this.#subscribers.delete(call)
    }
  }

  #counted(handlers: ControlHandlers): ControlHandlers {
    const { metrics, scheduler } = this.#components
    if (metrics === undefined) return handlers
    const registers = [metrics]
    const calls = new Counter({ name: 'skimmer_supernode_control_calls_total', help: 'Calls of nodes, by operation and result', labelNames: ['operation', 'result'], registers })
    const seconds = new Histogram({ name: 'skimmer_supernode_control_call_seconds', help: 'Time to answer calls of nodes', labelNames: ['operation'], buckets: [0.001, 0.01, 0.1, 1, 10, 100], registers })
    const subscribers = this.#subscribers
    void new Gauge({ name: 'skimmer_supernode_peers', help: 'Peers that this supernode remembers', registers, collect() { this.set(scheduler.peerCount) } })
    void new Gauge({ name: 'skimmer_supernode_event_listeners', help: 'Event streams of nodes', registers, collect() { this.set(subscribers.size) } })
    const wrapped = Object.entries(handlers).map(([operation, handler]) => [operation, async (request: never, call: never) => {
      const stop = operation === 'events' ? undefined : seconds.startTimer({ operation })
      try {
        const answer = await (handler as (request: never, call: never) => Promise<unknown>)(request, call)
        calls.inc({ operation, result: 'success' })
        return answer
      } catch (error) {
        calls.inc({ operation, result: hasCode(error, 'ABORTED') ? 'ABORTED' : error instanceof SkimmerError ? error.code : 'INTERNAL' })
        throw error
      } finally {
        stop?.()
      }
    }] as [ControlOperation, unknown])
    return Object.fromEntries(wrapped) as ControlHandlers
  }
}

/** Addresses that lead to `peer` and nobody else; malformed ones are dropped, so that one odd interface does not cost a node its hello. */
function addressesOf(addrs: readonly string[], peer: string): string[] {
  const good: string[] = []
  for (const text of addrs) {
    try {
      const address = multiaddr(text)
      const named = address.getComponents().findLast(({ name }) => name === 'p2p')?.value
      if (named === undefined) good.push(`${address.toString()}/p2p/${peer}`)
      else if (named === peer) good.push(address.toString())
    } catch {
      continue
    }
  }
  return good
}

/** Compares in constant time for secrets of one length; lengths are no secret. */
export function sameSecret(given: string, wanted: string): boolean {
  const a = Buffer.from(given)
  const b = Buffer.from(wanted)
  return a.length === b.length && timingSafeEqual(a, b)
}
