// The wire side of containerd's Snapshots service: protobuf messages to and from the snapshotter's own calls.
import { fileURLToPath } from 'node:url'
import { loadPackageDefinition } from '@grpc/grpc-js'
import type { ServerUnaryCall, ServerWritableStream, ServiceClientConstructor, UntypedServiceImplementation, sendUnaryData, status } from '@grpc/grpc-js'
import { loadSync } from '@grpc/proto-loader'
import type { Mount } from './mounts.ts'
import { failedPrecondition, invalidArgument, statusOf } from './snapshot-errors.ts'
import { parseFilters } from './snapshot-filter.ts'
import type { SnapshotKind, SnapshotRecord } from './snapshot-record.ts'

/** What the wire side calls. Labels and names come as they were sent. */
export interface SnapshotCalls {
  prepare(kind: 'view' | 'active', request: { key: string; parent: string; labels: Record<string, string> }, signal: AbortSignal): Promise<readonly Mount[]>
  mounts(key: string): Promise<readonly Mount[]>
  commit(name: string, key: string, labels: Record<string, string>, signal: AbortSignal): Promise<void>
  remove(key: string): Promise<void>
  stat(key: string): SnapshotRecord
  update(name: string, labels: Record<string, string>, paths: readonly string[]): Promise<SnapshotRecord>
  list(): SnapshotRecord[]
  usage(key: string, signal: AbortSignal): Promise<{ size: number; inodes: number }>
  cleanup(): Promise<void>
}

interface InfoMessage {
  name: string
  parent: string
  kind: 'VIEW' | 'ACTIVE' | 'COMMITTED'
  createdAt: { seconds: number; nanos: number }
  updatedAt: { seconds: number; nanos: number }
  labels: Readonly<Record<string, string>>
}
interface KeyMessage {
  key: string
}
interface PrepareMessage extends KeyMessage {
  parent: string
  labels: Record<string, string>
}
interface CommitMessage extends KeyMessage {
  name: string
  parent: string
  labels: Record<string, string>
}
interface UpdateMessage {
  info: { name: string; labels: Record<string, string> } | null
  updateMask: { paths: string[] } | null
}

const INFOS_PER_MESSAGE = 100
const WIRE_KIND = { view: 'VIEW', active: 'ACTIVE', committed: 'COMMITTED' } as const satisfies Record<SnapshotKind, InfoMessage['kind']>

const PROTO_ROOT = fileURLToPath(new URL('proto', import.meta.url))

/** The service's definition (`.service`), which is also a client for it. */
export function loadSnapshotsService(): ServiceClientConstructor {
  const definition = loadSync('snapshots.proto', { includeDirs: [PROTO_ROOT], longs: Number, enums: String, defaults: true, objects: true, arrays: true })
  return loadPackageDefinition({ service: definition['containerd.services.snapshots.v1.Snapshots'] })['service'] as ServiceClientConstructor
}

/** How a call ended: for metrics and logs. */
export type CallObserver = (method: string, code: status, seconds: number, error?: unknown) => void

export function snapshotHandlers(calls: SnapshotCalls, observe: CallObserver): UntypedServiceImplementation {
  /** Runs one call and reports how it ended; a failure comes back as its gRPC status. */
  const observed = async <T>(method: string, work: () => Promise<T>): Promise<{ value: T } | { failure: ReturnType<typeof statusOf> }> => {
    const started = performance.now()
    try {
      const value = await work()
      observe(method, 0, (performance.now() - started) / 1000)
      return { value }
    } catch (error) {
      const failure = statusOf(error)
      observe(method, failure.code, (performance.now() - started) / 1000, error)
      return { failure }
    }
  }

  const unary = <Request, Response>(method: string, answer: (request: Request, signal: AbortSignal) => Promise<Response>) => async (call: ServerUnaryCall<Request, Response>, callback: sendUnaryData<Response>): Promise<void> => {
    const abort = new AbortController()
    call.once('cancelled', () => abort.abort())
    const outcome = await observed(method, () => answer(call.request, abort.signal))
    if ('failure' in outcome) callback(outcome.failure)
    else callback(null, outcome.value)
  }

  const list = async (call: ServerWritableStream<{ filters: string[] }, { info: InfoMessage[] }>): Promise<void> => {
    const filter = parseFilters(call.request.filters)
    const infos = calls.list().filter(record => filter(path => fieldOf(record, path))).map(infoOf)
    for (let from = 0; from < infos.length && !call.cancelled; from += INFOS_PER_MESSAGE) {
      const ready = call.write({ info: infos.slice(from, from + INFOS_PER_MESSAGE) })
      if (!ready) await new Promise<void>(resolve => call.once('drain', resolve).once('cancelled', resolve))
    }
  }

  return {
    prepare: unary('Prepare', async (request: PrepareMessage, signal) => ({ mounts: await calls.prepare('active', request, signal) })),
    view: unary('View', async (request: PrepareMessage, signal) => ({ mounts: await calls.prepare('view', request, signal) })),
    mounts: unary('Mounts', async ({ key }: KeyMessage) => ({ mounts: await calls.mounts(key) })),
    commit: unary('Commit', async ({ name, key, labels, parent }: CommitMessage, signal) => {
      // Sent by containerd 2.2 and later; a different parent ("rebase") comes only to snapshotters that advertise it.
      if (parent !== '' && parent !== calls.stat(key).parent) throw failedPrecondition(`snapshot ${key} cannot be committed on another parent than ${calls.stat(key).parent || 'none'}`)
      await calls.commit(name, key, labels, signal)
      return {}
    }),
    remove: unary('Remove', async ({ key }: KeyMessage) => {
      await calls.remove(key)
      return {}
    }),
    stat: unary('Stat', async ({ key }: KeyMessage) => ({ info: infoOf(calls.stat(key)) })),
    update: unary('Update', async ({ info, updateMask }: UpdateMessage) => {
      if (info === null) throw invalidArgument('Update was called without the snapshot\'s info')
      return { info: infoOf(await calls.update(info.name, info.labels, updateMask?.paths ?? [])) }
    }),
    usage: unary('Usage', ({ key }: KeyMessage, signal) => calls.usage(key, signal)),
    cleanup: unary('Cleanup', async () => {
      await calls.cleanup()
      return {}
    }),
    list: async (call: ServerWritableStream<{ filters: string[] }, { info: InfoMessage[] }>): Promise<void> => {
      const outcome = await observed('List', () => list(call))
      if ('failure' in outcome) call.emit('error', outcome.failure)
      else call.end()
    },
  }
}

/** The fields that containerd's snapshot filters know. */
export function fieldOf(record: SnapshotRecord, [first, ...rest]: readonly string[]): string | undefined {
  if (first === 'name' || first === 'parent' || first === 'kind') return record[first]
  if (first !== 'labels') return undefined
  const label = rest.join('.')
  return Object.hasOwn(record.labels, label) ? record.labels[label] : undefined
}

const timestamp = (ms: number): { seconds: number; nanos: number } => ({ seconds: Math.floor(ms / 1000), nanos: (ms % 1000) * 1_000_000 })

const infoOf = (record: SnapshotRecord): InfoMessage => ({
  name: record.name,
  parent: record.parent,
  kind: WIRE_KIND[record.kind],
  createdAt: timestamp(record.createdMs),
  updatedAt: timestamp(record.updatedMs),
  labels: record.labels,
})
