// The node's one FUSE mount, seen from the daemon: publishes layers, disks and images, runs the threads, brings what reads miss.
import { execFile } from 'node:child_process'
import { EventEmitter } from 'node:events'
import fs from 'node:fs'
import { Worker } from 'node:worker_threads'
import type { Logger } from 'pino'
import type { Registry } from 'prom-client'
import type { ImageTree } from '../image/tree.ts'
import { SkimmerError } from '../oci/errors.ts'
import type { SharedResource } from '../peer/shared-resource.ts'
import { channelMetrics } from './channel-metrics.ts'
import type { ChannelMetrics } from './channel-metrics.ts'
import type { Negotiated } from './fuse-init.ts'
import { busyCell, CONTROL, COUNTS, seenCell } from './fuse-messages.ts'
import type { News, Report, ThreadData } from './fuse-messages.ts'
import { NOTIFY_RESEND, OUT_HEADER } from './fuse-protocol.ts'
import { ParkedReads } from './parked-reads.ts'
import type { MissingBlockSource, ReadFailure } from './parked-reads.ts'
import { MAX_INODES, PublishedTable, ROOMS } from './published.ts'
import type { Published, Room } from './published.ts'
import { drainTouches, newTouchLog } from './touch-log.ts'
import { buildTreeTable } from './tree-table.ts'
import { checkDisk } from './virtual-disk.ts'
import type { DiskSegment } from './virtual-disk.ts'

export interface FuseChannelComponents {
  /** Where missing blocks come from. */
  readonly source: MissingBlockSource
  readonly logger: Logger
  readonly metrics?: Registry
  /** Every read that ends in EIO, with its reason. It is logged anyway. */
  onReadError?(failure: ReadFailure): void
  /** Blocks that reads touched for the first time since `watchTouches`, in order. */
  onTouch?(resourceId: string, blocks: number[]): void
}

export interface FuseChannelOptions {
  /** An open fd of /dev/fuse whose handshake is done (see mountFuse and inheritance). */
  readonly fd: number
  readonly mountPoint: string
  readonly negotiated: Negotiated
  /** Threads that read requests; one more answers what had to wait. Default 2. */
  readonly threads?: number
  /** Milliseconds a read may wait for its blocks before it ends in EIO. Default 60,000. */
  readonly waitMs?: number
  /** Reads that may wait at once. Default 65,536. */
  readonly maxParked?: number
  /** Reads that ask the source at once. Default 512. */
  readonly maxFetching?: number
  /** Bytes of unpacked blocks each thread keeps. Default 32 MiB. */
  readonly cacheBytes?: number
}

const TOUCH_DRAIN_MS = 100
const WAKE_TIMEOUT_MS = 5000

interface Thread { readonly number: number; readonly worker: Worker; readonly done: Promise<void>; running: boolean }

/** Emits 'gone' when the kernel has ended the connection (unmounted or aborted). */
export class FuseChannel extends EventEmitter<{ gone: [] }> {
  readonly mountPoint: string
  readonly options: Required<FuseChannelOptions>
  readonly #components: FuseChannelComponents
  readonly #published = new PublishedTable()
  readonly #control: Int32Array<SharedArrayBuffer>
  readonly #counts: Float64Array<SharedArrayBuffer>
  readonly #touches = newTouchLog()
  readonly #touchedBy: { resourceId: string; wanted: boolean }[] = [{ resourceId: '', wanted: false }]
  readonly #parked: ParkedReads
  readonly #metrics: ChannelMetrics
  #readers: Thread[] = []
  /** Answers what had to wait. */
  #answering: Thread | undefined
  #touchPosition = 0
  #touchTimer: NodeJS.Timeout | undefined
  #restored = false
  #gone = false

  constructor(components: FuseChannelComponents, options: FuseChannelOptions) {
    super()
    this.#components = components
    this.options = { threads: 2, waitMs: 60_000, maxParked: 65_536, maxFetching: 512, cacheBytes: 32 * 1024 * 1024, ...options }
    this.mountPoint = options.mountPoint
    const threads = this.options.threads + 1
    this.#control = new Int32Array(new SharedArrayBuffer((CONTROL.THREADS + threads * 2) * 4))
    this.#counts = new Float64Array(new SharedArrayBuffer(threads * COUNTS * 8))
    this.#metrics = channelMetrics(components.metrics, this.#counts, () => this.#parked.size)
    this.#parked = new ParkedReads({
      source: components.source,
      logger: components.logger,
      answer: (request, error) => this.#answerer.postMessage({ kind: 'answer', request, error } satisfies News),
      onFailure: (failure) => this.#failed(failure),
      onWaited: (milliseconds) => this.#metrics.waited(milliseconds),
    }, this.options)
  }

  get #answerer(): Worker {
    return (this.#answering ??= this.#startThread(this.options.threads, 'answerer')).worker
  }

  get #threads(): Thread[] {
    return this.#answering === undefined ? this.#readers : [...this.#readers, this.#answering]
  }

  /** Paths of what is published, below the mount point; for other rooms and for mounts. */
  layerPath(name: string): string { return `${this.mountPoint}/layers/${name}` }
  diskPath(imageId: string): string { return `${this.mountPoint}/disks/${imageId}` }
  imagePath(imageId: string): string { return `${this.mountPoint}/images/${imageId}` }

  /** Requests that wait for blocks or for restored(). */
  get waiting(): number {
    return this.#parked.size
  }

  /** False once the kernel has ended the connection. */
  get connected(): boolean {
    return !this.#gone
  }

  /**
   * Asks the kernel for what a daemon before us left unanswered, and starts one thread: the others, 15 MB each, come with what is published first.
   * Requests for nodes unknown so far wait for restored().
   */
  async start(): Promise<void> {
    if (this.#readers.length > 0) throw new SkimmerError('CONFLICT', 'the FUSE channel runs already')
    // Asked for before our own threads hold anything: otherwise the kernel would send their waiting requests a second time.
    this.#askAgain()
    const { worker } = this.#startReader()
    if (this.#published.byKey.size > 0) this.#startOthers()
    await new Promise<void>((resolve, reject) => {
      worker.once('online', resolve)
      worker.once('error', reject)
    })
  }

  /** /layers/<name>; the name is the diffID's hex. Publishing the same name again replaces it. */
  publishLayer(name: string, resource: SharedResource): void {
    const slot = this.#touchedBy.push({ resourceId: resource.id, wanted: false }) - 1
    this.#publish({ room: 'layers', name, resource, slot, touched: undefined })
  }

  /** /disks/<imageId>: the metadata file, then layers at their addresses. Their layers must be published too. INVALID_ARGUMENT when segments overlap. */
  publishDisk(imageId: string, disk: { metadataPath: string; segments: readonly DiskSegment[]; length: number }): void {
    const metadataFd = fs.openSync(disk.metadataPath, 'r')
    try {
      const checked = checkDisk({ metadataFd, metadataLength: fs.fstatSync(metadataFd).size, segments: disk.segments, length: disk.length })
      const before = this.#published.get('disks', imageId)
      this.#publish({ room: 'disks', name: imageId, disk: checked })
      if (before?.room === 'disks') void this.#whenSeen().then(() => fs.closeSync(before.disk.metadataFd))
    } catch (error) {
      fs.closeSync(metadataFd)
      throw error
    }
  }

  /** /images/<imageId>/…: the merged tree as a file system. Its layers must be published under their diffID's hex. */
  publishTree(imageId: string, tree: ImageTree): void {
    if (tree.inodes.length > MAX_INODES) throw new SkimmerError('LIMIT_EXCEEDED', `image ${imageId} has ${tree.inodes.length} inodes; the FUSE file system serves up to ${MAX_INODES}`)
    this.#publish({ room: 'images', name: imageId, tree: buildTreeTable(tree, (diffId) => diffId.replace(/^sha256:/, '')) })
  }

  /** Resolves when no thread uses it any more: then its files may be closed. `path` is `layers/<name>`, `disks/<id>` or `images/<id>`. */
  async withdraw(path: string): Promise<void> {
    const [room, name] = path.replace(/^\//, '').split('/')
    if (!isRoom(room) || name === undefined) throw new SkimmerError('INVALID_ARGUMENT', `${path}: withdraw layers/<name>, disks/<imageId> or images/<imageId>`)
    const published = this.#published.get(room, name)
    if (published === undefined) return
    this.#published.remove(room, name)
    this.#tell((version) => ({ kind: 'withdraw', room, name, version }))
    if (published.room === 'layers') this.#touchedBy[published.slot].wanted = false
    await this.#whenSeen()
    if (published.room === 'disks') fs.closeSync(published.disk.metadataFd)
  }

  /** Names published in one directory. */
  list(room: Room): string[] {
    return [...this.#published.names[room].keys()]
  }

  /** All that was published before a restart is back: what is still unknown does not exist. */
  restored(): void {
    if (this.#restored) return
    this.#restored = true
    this.#tell((version) => ({ kind: 'restored', version }))
    this.#parked.restored()
  }

  /** Report first touches of this published layer's blocks to onTouch from now on, or stop it. What the kernel has cached is not read again. */
  watchTouches(name: string, on: boolean): void {
    const layer = this.#published.layer(name)
    if (layer === undefined) throw new SkimmerError('NOT_FOUND', `layer ${name} is not published`)
    this.#touchedBy[layer.slot].wanted = false
    const slot = this.#touchedBy.push({ resourceId: layer.resource.id, wanted: on }) - 1
    this.#publish({ ...layer, slot, touched: on ? new Uint8Array(new SharedArrayBuffer(layer.resource.table.count)) : undefined })
    if (on) this.#touchTimer ??= setInterval(() => this.#drainTouches(), TOUCH_DRAIN_MS).unref()
  }

  /**
   * `handOver`: leave waiting requests to the next daemon, which the kernel sends them again. Otherwise they end in EIO. Returns how many
   * threads still sit in read(2): they end with the process only when it is killed (`process.exit` would wait for them), so a daemon
   * that hands over ends itself by SIGKILL. After an unmount none remain.
   */
  async stop(options: { handOver?: boolean } = {}): Promise<{ stuck: number }> {
    clearInterval(this.#touchTimer)
    this.#touchTimer = undefined
    this.#parked.stop(options.handOver === true && this.options.negotiated.resend)
    Atomics.store(this.#control, CONTROL.STOP, 1)
    const readers = this.#readers
    const deadline = Date.now() + WAKE_TIMEOUT_MS
    // A thread notices after its next request, so make one: statfs always asks. In a child, because it might wait.
    while (!this.#gone && readers.some((thread) => thread.running) && Date.now() < deadline) await this.#wake(readers)
    if (this.#gone) await Promise.all(readers.map((thread) => thread.done))
    this.#answering?.worker.postMessage({ kind: 'stop' } satisfies News)
    await this.#answering?.done
    const stuck = readers.filter((thread) => thread.running).length
    if (stuck === 0) for (const published of this.#published.byKey.values()) if (published.room === 'disks') fs.closeSync(published.disk.metadataFd)
    return { stuck }
  }

  #wake(readers: Thread[]): Promise<unknown> {
    const child = new Promise((resolve) => {
      execFile('stat', ['-f', this.mountPoint], { timeout: WAKE_TIMEOUT_MS, killSignal: 'SIGKILL' }, resolve)
    })
    const ended = Promise.race(readers.filter((thread) => thread.running).map((thread) => thread.done))
    // Whichever comes first; a child that hangs is left to its timeout.
    return Promise.race([child.then(() => Promise.race([ended, new Promise((resolve) => setTimeout(resolve, 20))])), ended])
  }

  /** The threads that idle nodes can do without. */
  #startOthers(): void {
    if (this.#readers.length === 0 || Atomics.load(this.#control, CONTROL.STOP) !== 0) return
    while (this.#readers.length < this.options.threads) this.#startReader()
    void this.#answerer
  }

  #startReader(): Thread {
    const reader = this.#startThread(this.#readers.length, 'reader')
    this.#readers.push(reader)
    return reader
  }

  #startThread(thread: number, role: ThreadData['role']): Thread {
    const file = import.meta.url.endsWith('.ts') ? './fuse-thread.ts' : './fuse-thread.js'
    const workerData: ThreadData = {
      fd: this.options.fd, thread, role, control: this.#control, counts: this.#counts, touches: this.#touches, cacheBytes: this.options.cacheBytes,
    }
    const worker = new Worker(new URL(file, import.meta.url), { workerData, name: `fuse-${role}-${thread}` })
    const version = Atomics.load(this.#control, CONTROL.VERSION)
    for (const published of this.#published.byKey.values()) worker.postMessage({ kind: 'publish', published, version } satisfies News)
    if (this.#restored) worker.postMessage({ kind: 'restored', version } satisfies News)
    // Its SEEN cell differs from VERSION until it has taken these in.
    Atomics.store(this.#control, seenCell(thread), version - 1)
    worker.on('message', (report: Report) => this.#hear(report))
    worker.on('error', (error) => this.#components.logger.fatal({ err: error }, 'a FUSE thread died'))
    const started: Thread = { number: thread, worker, running: true, done: new Promise((resolve) => worker.once('exit', () => { started.running = false; resolve() })) }
    return started
  }

  #hear(report: Report): void {
    switch (report.kind) {
      case 'park': return this.#parked.park(report)
      case 'answered': return this.#parked.answered(report.unique, report.failure)
      case 'interrupt': return this.#parked.interrupt(report.unique)
      case 'trouble': return this.#components.logger.error({ mountPoint: this.mountPoint }, report.message)
      case 'gone':
        if (this.#gone) return
        this.#gone = true
        this.emit('gone')
    }
  }

  #failed(failure: ReadFailure): void {
    this.#metrics.failed()
    this.#components.logger.error({ ...failure }, 'a read ended in EIO')
    this.#components.onReadError?.(failure)
  }

  #publish(published: Published): void {
    this.#startOthers()
    this.#published.put(published)
    this.#tell((version) => ({ kind: 'publish', published, version }))
  }

  /** News first, then the count: a thread that sees the new count finds the news in its port. */
  #tell(news: (version: number) => News): void {
    const version = Atomics.load(this.#control, CONTROL.VERSION) + 1
    for (const { worker } of this.#threads) worker.postMessage(news(version))
    Atomics.store(this.#control, CONTROL.VERSION, version)
  }

  /** Every thread has seen the last news or is idle, and an idle one looks before it works. */
  async #whenSeen(): Promise<void> {
    const version = Atomics.load(this.#control, CONTROL.VERSION)
    const behind = (thread: Thread): boolean => {
      if (!thread.running || Atomics.load(this.#control, seenCell(thread.number)) >= version) return false
      return thread === this.#answering || Atomics.load(this.#control, busyCell(thread.number)) !== 0
    }
    while (this.#threads.some(behind)) await new Promise((resolve) => setTimeout(resolve, 1))
  }

  #askAgain(): void {
    if (!this.options.negotiated.resend) return
    const notify = Buffer.alloc(OUT_HEADER)
    notify.writeUInt32LE(OUT_HEADER, 0)
    notify.writeInt32LE(NOTIFY_RESEND, 4)
    try {
      fs.writeSync(this.options.fd, notify)
    } catch (error) {
      this.#components.logger.warn({ err: error }, 'the kernel does not send unanswered FUSE requests again: reads from before a restart stay hanging')
    }
  }

  #drainTouches(): void {
    const blocks = new Map<string, number[]>()
    this.#touchPosition = drainTouches(this.#touches, this.#touchPosition, (slot, block) => {
      const touched = this.#touchedBy[slot]
      if (!touched.wanted) return
      const list = blocks.get(touched.resourceId)
      if (list === undefined) blocks.set(touched.resourceId, [block])
      else list.push(block)
    })
    for (const [resourceId, list] of blocks) this.#components.onTouch?.(resourceId, list)
  }
}

const isRoom = (text: string): text is Room => (ROOMS as readonly string[]).includes(text)
