// Starts of containers: what they read first is recorded for the next node, brought early here, and followed by the rest of the image.
import type { Logger } from 'pino'
import type { FuseChannel } from '../../blockdev/fuse-channel.ts'
import type { Trace } from '../../peer/control.ts'
import type { Hold, Prefetcher } from '../../peer/prefetcher.ts'
import type { Fetcher } from '../../peer/fetcher.ts'
import { TraceRecorder, traceRuns } from '../../peer/trace.ts'
import type { LayerLibrary } from './layer-library.ts'

export interface StartWatchOptions {
  /** Milliseconds of a start that are recorded. */
  readonly traceWindowMs: number
  /** Bring the rest of an image after its start. */
  readonly prefetch: boolean
}

/** Without a new block for this long a start is over. */
const IDLE_MS = 2_000
const hexOf = (diffId: string): string => diffId.slice('sha256:'.length)

export class StartWatch {
  readonly #library: LayerLibrary
  readonly #fetcher: Fetcher
  readonly #prefetcher: Prefetcher
  readonly #channel: FuseChannel
  readonly #logger: Logger
  readonly #options: StartWatchOptions
  readonly #sendTrace: (image: string, trace: Trace) => Promise<void>
  readonly #onWhole: (image: string) => void
  readonly #traces = new Map<string, Trace>()
  readonly #holds = new Map<string, Hold>()
  readonly #recorders = new Map<string, { recorder: TraceRecorder; resources: ReadonlySet<string>; idle: NodeJS.Timeout; over: () => void }>()

  constructor(
    components: { library: LayerLibrary; fetcher: Fetcher; prefetcher: Prefetcher; channel: FuseChannel; logger: Logger; sendTrace: (image: string, trace: Trace) => Promise<void>; onWhole: (image: string) => void },
    options: StartWatchOptions,
  ) {
    this.#library = components.library
    this.#fetcher = components.fetcher
    this.#prefetcher = components.prefetcher
    this.#channel = components.channel
    this.#logger = components.logger
    this.#sendTrace = components.sendTrace
    this.#onWhole = components.onWhole
    this.#options = options
  }

  /** The image will soon be started: what earlier starts read comes now, while containerd still works. */
  expect(imageId: string, diffIds: readonly string[], trace: Trace | undefined): void {
    const resources = this.#resources(diffIds)
    for (const resource of resources) this.#fetcher.open(resource)() // peers are looked up and connected to
    if (trace === undefined) return
    this.#traces.set(imageId, trace)
    const byId = new Map(resources.map((resource) => [resource.id, resource]))
    const wanted = new Map<string, number[]>()
    for (const { resource, blocks } of traceRuns(trace)) wanted.set(resource, [...(wanted.get(resource) ?? []), ...blocks])
    for (const [id, blocks] of wanted) {
      const resource = byId.get(id)
      if (resource === undefined) continue
      this.#fetcher.ensureInOrder(resource, blocks).catch((error: unknown) => this.#logger.info({ image: imageId, reason: (error as Error).message }, 'the trace could not be brought in time; reads fetch what they need'))
    }
  }

  /** A container's root was mounted, some time ago perhaps. The first one's reads are recorded; then everything else comes. */
  started(imageId: string, diffIds: readonly string[]): void {
    if (this.#holds.has(imageId)) return
    const resources = this.#resources(diffIds)
    if (!resources.every((resource) => resource.whole)) this.#record(imageId, diffIds)
    if (!this.#options.prefetch) {
      this.#traces.delete(imageId)
      this.#onWhole(imageId)
      return
    }
    const hold = this.#prefetcher.hold(resources, { image: imageId, trace: this.#traces.get(imageId) })
    this.#traces.delete(imageId)
    this.#holds.set(imageId, hold)
    hold.on('proved', () => {
      // An image that is evicted later is brought again with its next container.
      this.#holds.delete(imageId)
      this.#onWhole(imageId)
    })
    hold.on('failed', () => this.#holds.delete(imageId))
  }

  /**
   * The layer was removed from this machine: background work for its images stops, what is here stays. Not when a container ends: its image is
   * still pulled, and the next start should find it whole.
   */
  removed(resourceId: string): void {
    for (const [imageId, hold] of this.#holds) {
      if (!hold.resources.some((resource) => resource.id === resourceId)) continue
      hold.release()
      this.#holds.delete(imageId)
      this.#recorders.get(imageId)?.over()
    }
  }

  /** The FUSE channel saw first touches of blocks. */
  touched(resourceId: string, blocks: readonly number[]): void {
    for (const { recorder, resources, idle } of this.#recorders.values()) {
      if (!resources.has(resourceId)) continue
      for (const block of blocks) recorder.read(resourceId, block)
      idle.refresh()
    }
  }

  #record(imageId: string, diffIds: readonly string[]): void {
    if (this.#recorders.has(imageId)) return
    const unwatch = (): void => {
      for (const diffId of diffIds) {
        try {
          this.#channel.watchTouches(hexOf(diffId), false)
        } catch {
          // withdrawn meanwhile
        }
      }
    }
    const recorder = new TraceRecorder({ seconds: this.#options.traceWindowMs / 1000 }, (trace) => {
      this.#sendTrace(imageId, trace).catch((error: unknown) => this.#logger.info({ image: imageId, reason: (error as Error).message }, 'the trace of a start could not be sent'))
    })
    // A start that reads nothing new any more is over: the next node may be starting already and wants the trace.
    const over = (): void => {
      clearTimeout(idle)
      clearTimeout(latest)
      recorder.finish()
      this.#recorders.delete(imageId)
      unwatch()
    }
    const idle = setTimeout(over, IDLE_MS).unref()
    const latest = setTimeout(over, this.#options.traceWindowMs).unref()
    this.#recorders.set(imageId, { recorder, resources: new Set(this.#resources(diffIds).map((resource) => resource.id)), idle, over })
    for (const diffId of diffIds) this.#channel.watchTouches(hexOf(diffId), true)
  }

  #resources(diffIds: readonly string[]) {
    return diffIds.flatMap((diffId) => this.#library.get(diffId)?.resource ?? [])
  }
}
