// The snapshotter: containerd's Snapshots service over ordinary directories and lazily mounted images.
import { mkdir } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import type { Logger } from 'pino'
import { Counter, Gauge, Histogram } from 'prom-client'
import type { Registry } from 'prom-client'
import { status } from '@grpc/grpc-js'
import { SkimmerError } from '../oci/errors.ts'
import { DEFAULT_STOP_GRACE_MS } from './grpc-server.ts'
import type { Listening } from './grpc-server.ts'
import { KeyedLock } from './keyed-lock.ts'
import { LazyClaims } from './lazy-claim.ts'
import type { LazyClaimOptions } from './lazy-claim.ts'
import type { LazyImages } from './lazy-images.ts'
import { LazyMounts, userName } from './lazy-mounts.ts'
import type { LazyUser } from './lazy-mounts.ts'
import { MAX_OPTIONS_BYTES, checkMountablePath, detectOverlayFeatures, mountsOf, optionsBytes } from './mounts.ts'
import type { Mount, OverlayFeatures } from './mounts.ts'
import { SnapshotDirectories } from './snapshot-directories.ts'
import type { Owner } from './snapshot-directories.ts'
import { alreadyExists, failedPrecondition } from './snapshot-errors.ts'
import type { SnapshotRecord } from './snapshot-record.ts'
import { SnapshotterServer } from './snapshotter-server.ts'
import { SnapshotStore } from './snapshot-store.ts'
import type { SnapshotDatabase } from './snapshot-store.ts'
import { snapshotHandlers } from './snapshots-rpc.ts'
import type { SnapshotCalls } from './snapshots-rpc.ts'

export interface SnapshotterComponents {
  /** A (sub)level that is the snapshotter's alone. */
  readonly db: SnapshotDatabase
  /** Without it every layer is unpacked the ordinary way. */
  readonly lazy?: LazyImages
  readonly logger: Logger
  readonly metrics: Registry
}

export interface SnapshotterOptions extends LazyClaimOptions {
  /** Directory of the snapshots' own files: a local filesystem that overlayfs accepts as upper directory. */
  readonly root: string
  readonly mountTimeoutMs?: number
}

/** Whether a snapshot is served lazily, and why. */
export interface SnapshotExplanation {
  readonly name: string
  readonly kind: SnapshotRecord['kind']
  readonly parent: string
  /** The layer itself, or for containers everything below, is served lazily. */
  readonly lazy: boolean
  readonly why: string
  /** Layers below and including this one that are served lazily, bottom first. */
  readonly diffIds: readonly string[]
}

export class Snapshotter implements SnapshotCalls {
  readonly #store: SnapshotStore
  readonly #directories: SnapshotDirectories
  readonly #mounts: LazyMounts | undefined
  readonly #claims: LazyClaims
  readonly #logger: Logger
  readonly #root: string
  readonly #keys = new KeyedLock()
  readonly #features: OverlayFeatures = detectOverlayFeatures()
  readonly #calls: Counter<'method' | 'code'>
  readonly #seconds: Histogram<'method'>
  readonly #stopped = new AbortController()
  #server: SnapshotterServer | undefined
  #restoring: Promise<void> = Promise.resolve()

  constructor(components: SnapshotterComponents, options: SnapshotterOptions) {
    const { db, lazy, metrics } = components
    const logger = components.logger.child({ room: 'snapshotter' })
    checkMountablePath(options.root)
    this.#logger = logger
    this.#root = options.root
    this.#store = new SnapshotStore({ db })
    this.#directories = new SnapshotDirectories({ logger }, options)
    this.#mounts = lazy === undefined ? undefined : new LazyMounts({ lazy, logger }, options)
    const registers = [metrics]
    const counter = new Counter({ name: 'skimmer_snapshotter_claims_total', help: 'Image layers that containerd was about to download, by what became of them', labelNames: ['result'], registers })
    this.#claims = new LazyClaims({ store: this.#store, lazy, logger, counter }, options)
    this.#calls = new Counter({ name: 'skimmer_snapshotter_calls_total', help: 'Calls of the Snapshots service by gRPC status', labelNames: ['method', 'code'], registers })
    this.#seconds = new Histogram({ name: 'skimmer_snapshotter_call_duration_seconds', help: 'Time to answer a call of the Snapshots service', labelNames: ['method'], buckets: [0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300], registers })
    const store = this.#store
    metrics.registerMetric(new Gauge({
      name: 'skimmer_snapshotter_snapshots_total', help: 'Snapshots by kind, and whether they are lazily served layers', labelNames: ['kind', 'lazy'], registers: [],
      collect() {
        this.reset()
        for (const { kind, lazy: layer } of store.list()) this.inc({ kind, lazy: String(layer !== undefined) })
      },
    }))
  }

  /** Opens the store, then listens, or answers who waits at a server that listens already. Lazy mounts come back in the background: the node must have published its layers before. */
  async start(where: Listening | SnapshotterServer, beforeServing?: () => Promise<void>): Promise<void> {
    await mkdir(this.#root, { recursive: true, mode: 0o700 })
    await this.#store.open()
    await this.#directories.open()
    await this.#directories.sweep(new Set(this.#store.list().map(each => each.id)))
    void this.#directories.emptyTrash()
    // Not later: a call that is being answered has its mount before its record.
    await beforeServing?.()
    this.#restoring = this.#mounts?.restore(this.#uncommitted(), this.#stopped.signal) ?? Promise.resolve()
    this.#server = where instanceof SnapshotterServer ? where : await SnapshotterServer.listen({ logger: this.#logger }, where)
    this.#server.serve(snapshotHandlers(this, (method, code, seconds, error) => this.#observe(method, code, seconds, error)))
  }

  /** Ends calls gracefully. Mounts stay: containers go on. */
  async stop(): Promise<void> {
    this.#stopped.abort()
    await this.#server?.stop()
    // A mount that hangs must not hold the next daemon up.
    await Promise.race([this.#restoring, delay(DEFAULT_STOP_GRACE_MS, undefined, { ref: false })])
    await this.#directories.close()
  }

  /** Layers that some snapshot needs. The node may give up all others. */
  namedDiffIds(): Set<string> {
    return new Set(this.#store.list().flatMap(each => each.lazy?.diffId ?? []))
  }

  /** The users that hold lazy mounts, by the names `LazyImages.mount` was given: any other is left from a crash. */
  lazyUsers(): Set<string> {
    return new Set(this.#uncommitted().map(userName))
  }

  explain(): SnapshotExplanation[] {
    return this.#store.list().map(record => {
      const below = this.#store.ancestors(record.parent)
      const diffIds = [record, ...below].flatMap(each => each.lazy?.diffId ?? []).toReversed()
      const { name, kind, parent } = record
      if (record.lazy !== undefined || below.length === 0) return { name, kind, parent, lazy: record.lazy !== undefined, why: record.why, diffIds }
      const unlazy = below.find(each => each.lazy === undefined)
      return { name, kind, parent, lazy: kind !== 'committed' && unlazy === undefined, why: kind === 'committed' ? record.why : (unlazy ?? below[0]).why, diffIds }
    })
  }

  prepare(kind: 'view' | 'active', request: { key: string; parent: string; labels: Record<string, string> }, signal: AbortSignal): Promise<readonly Mount[]> {
    const { key, parent, labels } = request
    return this.#keys.run(key, async () => {
      this.#store.checkNew(key, parent)
      let why = 'a view is mounted as its parent is'
      if (kind === 'active') {
        const outcome = await this.#claims.attempt({ parent, labels }, signal)
        if (outcome.claimed !== undefined) throw alreadyExists(`target snapshot ${outcome.claimed} already exists`)
        why = outcome.why
      }
      const snapshot = { id: this.#store.nextId(), kind, name: key, parent, labels, why }
      const ancestors = this.#store.ancestors(parent)
      const user = this.#lazyUser(snapshot)
      try {
        const lazyMount = await this.#acquire(user)
        if (kind === 'active' || parent === '') await this.#directories.create(snapshot.id, { writable: kind === 'active', owner: await this.#ownerOf(ancestors[0], user, lazyMount) })
        const mounts = await this.#mountsOf(snapshot, ancestors, lazyMount)
        await this.#store.create(snapshot)
        return mounts
      } catch (error) {
        if (user !== undefined) await this.#mounts?.release(user)
        await this.#discard(snapshot)
        throw error
      }
    })
  }

  mounts(key: string): Promise<readonly Mount[]> {
    return this.#keys.run(key, async () => {
      const record = this.#store.get(key)
      if (record.kind === 'committed') throw failedPrecondition(`snapshot ${key} is committed: only active snapshots and views can be mounted`)
      return this.#mountsOf({ ...record, kind: record.kind }, this.#store.ancestors(record.parent), await this.#acquire(this.#lazyUser(record)))
    })
  }

  commit(name: string, key: string, labels: Record<string, string>, signal: AbortSignal): Promise<void> {
    return this.#keys.run(key, async () => {
      this.#store.checkCommit(name, key)
      const before = this.#store.get(key)
      const usage = await this.#directories.usage(before.id, signal)
      await this.#store.commit(name, key, labels, usage)
      // A committed snapshot is only a lower directory: those built on it hold the image themselves.
      const user = this.#lazyUser(before)
      if (user !== undefined) void this.#mounts?.release(user)
    })
  }

  remove(key: string): Promise<void> {
    return this.#keys.run(key, async () => {
      const before = this.#store.get(key)
      const user = before.kind === 'committed' ? undefined : this.#lazyUser(before)
      const removed = await this.#store.remove(key)
      await this.#discard(removed)
      if (user !== undefined) void this.#mounts?.release(user)
      if (removed.lazy !== undefined) this.#claims.released(removed.lazy.diffId)
    })
  }

  stat(key: string): SnapshotRecord {
    return this.#store.get(key)
  }

  update(name: string, labels: Record<string, string>, paths: readonly string[]): Promise<SnapshotRecord> {
    return this.#store.update(name, labels, paths)
  }

  list(): SnapshotRecord[] {
    return this.#store.list()
  }

  async usage(key: string, signal: AbortSignal): Promise<{ size: number; inodes: number }> {
    const record = this.#store.get(key)
    if (record.usage !== undefined) return record.usage
    return record.kind === 'active' ? this.#directories.usage(record.id, signal) : { size: 0, inodes: 0 }
  }

  /** Frees what removed snapshots left: directories, and mounts that were busy. containerd calls it after garbage collection. */
  async cleanup(): Promise<void> {
    // A mount that hangs must not hold containerd's garbage collection up.
    void this.#mounts?.retryReleases()
    await this.#directories.emptyTrash()
  }

  #uncommitted(): LazyUser[] {
    return this.#store.list().filter(each => each.kind !== 'committed').flatMap(each => this.#lazyUser(each) ?? [])
  }

  /** The use of a lazy tree that a snapshot holds, if any layer below it is lazy. */
  #lazyUser(snapshot: Pick<SnapshotRecord, 'id' | 'name' | 'parent'>): LazyUser | undefined {
    const diffIds = this.#store.ancestors(snapshot.parent).flatMap(each => each.lazy?.diffId ?? []).toReversed()
    return diffIds.length === 0 ? undefined : { id: snapshot.id, name: snapshot.name, diffIds }
  }

  async #acquire(user: LazyUser | undefined): Promise<string | undefined> {
    if (user === undefined) return undefined
    if (this.#mounts === undefined) throw new SkimmerError('UNAVAILABLE', `snapshot ${user.name} stands on lazily served layers, but lazy loading is turned off`)
    const mountPoint = await this.#mounts.acquire(user)
    checkMountablePath(mountPoint)
    return mountPoint
  }

  /** containerd gives the new root directory to the owner of the one below it. */
  async #ownerOf(parent: SnapshotRecord | undefined, user: LazyUser | undefined, lazyMount: string | undefined): Promise<Owner | undefined> {
    if (parent === undefined) return undefined
    if (parent.lazy === undefined || user === undefined || lazyMount === undefined) return this.#directories.owner(parent.id)
    return this.#mounts?.rootOwner(user, lazyMount)
  }

  async #mountsOf(snapshot: { id: number; kind: 'view' | 'active' }, ancestors: readonly SnapshotRecord[], lazyMount: string | undefined): Promise<Mount[]> {
    const ordinary = ancestors.filter(each => each.lazy === undefined).map(each => this.#directories.fs(each.id))
    const view = { kind: snapshot.kind, fs: this.#directories.fs(snapshot.id), work: this.#directories.work(snapshot.id) }
    const mounts = mountsOf({ ...view, lower: lazyMount === undefined ? ordinary : [...ordinary, lazyMount] }, this.#features)
    if (lazyMount === undefined || optionsBytes(mounts) <= MAX_OPTIONS_BYTES) return mounts
    // containerd can shorten the list only if all lower directories are below one: reach the lazy tree by a link beside ours.
    const link = await this.#directories.link(snapshot.id, lazyMount)
    return mountsOf({ ...view, lower: [...ordinary, link] }, this.#features)
  }

  /** The metadata says what exists; a directory that cannot be discarded now is swept at the next start. */
  async #discard(snapshot: { id: number; name: string }): Promise<void> {
    await this.#directories.discard(snapshot.id).catch((error: unknown) => this.#logger.warn({ snapshot: snapshot.name, err: error }, 'the directory of a snapshot could not be discarded; the next start does it'))
  }

  #observe(method: string, code: status, seconds: number, error?: unknown): void {
    this.#calls.inc({ method, code: status[code] })
    this.#seconds.observe({ method }, seconds)
    if (code === status.INTERNAL || code === status.UNAVAILABLE || code === status.DEADLINE_EXCEEDED || code === status.RESOURCE_EXHAUSTED) this.#logger.error({ method, code: status[code], err: error }, 'a call of containerd failed')
    else this.#logger.debug({ method, code: status[code], seconds, why: error instanceof Error ? error.message : undefined }, 'call')
  }
}
