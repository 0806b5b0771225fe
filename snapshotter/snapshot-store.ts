// The snapshots' metadata: names, kinds, parents, labels. Semantics are those of containerd's snapshots storage; every change is one atomic, synced batch.
import type { AbstractLevel, AbstractBatchOperation } from 'abstract-level'
import { SkimmerError } from '../oci/errors.ts'
import { KeyedLock } from './keyed-lock.ts'
import { alreadyExists, failedPrecondition, invalidArgument, notFound } from './snapshot-errors.ts'
import { parseRecord } from './snapshot-record.ts'
import type { SnapshotKind, SnapshotRecord } from './snapshot-record.ts'

/** A (sub)level of the node's database that is the store's alone. */
export type SnapshotDatabase = AbstractLevel<string | Buffer | Uint8Array, string, string>
type Operation = AbstractBatchOperation<SnapshotDatabase, string, string>

const RECORD = 'snapshot/'
/** `0` follows `/`. */
const RECORDS_END = 'snapshot0'
const LAST_ID = 'last-id'
const ENCODINGS = { keyEncoding: 'utf8', valueEncoding: 'utf8' }
const MAX_NAME_CHARS = 4096
const LABEL_PATH = 'labels.'

export interface NewSnapshot {
  readonly id: number
  readonly kind: SnapshotKind
  readonly name: string
  readonly parent: string
  readonly labels: Readonly<Record<string, string>>
  readonly why: string
  readonly usage?: SnapshotRecord['usage']
  readonly lazy?: SnapshotRecord['lazy']
}

export class SnapshotStore {
  readonly #db: SnapshotDatabase
  readonly #records = new Map<string, SnapshotRecord>()
  /** How many snapshots have this one as their parent. */
  readonly #children = new Map<string, number>()
  readonly #writing = new KeyedLock()
  #lastId = 0

  constructor(components: { db: SnapshotDatabase }) {
    this.#db = components.db
  }

  /** Reads everything there is. @throws INVALID_DATA when a record cannot be understood: dropping it would lose a container's files. */
  async open(): Promise<void> {
    await this.#db.open()
    this.#records.clear()
    this.#children.clear()
    this.#lastId = Number((await this.#db.get(LAST_ID, ENCODINGS)) ?? 0)
    for await (const [key, value] of this.#db.iterator<string, string>({ gte: RECORD, lt: RECORDS_END, ...ENCODINGS })) {
      let record: SnapshotRecord
      try {
        record = parseRecord(value)
      } catch (error) {
        throw new SkimmerError('INVALID_DATA', `snapshot metadata of ${key.slice(RECORD.length)} cannot be read; restore the node's database or remove this entry`, { cause: error })
      }
      this.#records.set(record.name, record)
      this.#count(record.parent, 1)
      this.#lastId = Math.max(this.#lastId, record.id)
    }
  }

  /** A number no snapshot has had. It is safe to use for directories: what a crash leaves behind is swept at the next start. */
  nextId(): number {
    return ++this.#lastId
  }

  find(name: string): SnapshotRecord | undefined {
    return this.#records.get(name)
  }

  /** @throws NOT_FOUND */
  get(name: string): SnapshotRecord {
    const record = this.#records.get(name)
    if (record === undefined) throw notFound(`snapshot ${name} does not exist`)
    return record
  }

  list(): SnapshotRecord[] {
    return [...this.#records.values()]
  }

  /** The committed snapshots below one, nearest first. */
  ancestors(parent: string): SnapshotRecord[] {
    const chain: SnapshotRecord[] = []
    for (let name = parent; name !== ''; name = chain[chain.length - 1].parent) chain.push(this.get(name))
    return chain
  }

  /** @throws INVALID_ARGUMENT, CONFLICT (exists), NOT_FOUND when `create` with these would. */
  checkNew(name: string, parent: string): void {
    checkName(name)
    if (this.#records.has(name)) throw alreadyExists(`snapshot ${name} already exists`)
    if (parent === '') return
    const below = this.#records.get(parent)
    if (below === undefined) throw notFound(`parent snapshot ${parent} does not exist`)
    if (below.kind !== 'committed') throw invalidArgument(`parent ${parent} is not a committed snapshot`)
  }

  create(snapshot: NewSnapshot): Promise<SnapshotRecord> {
    return this.#write(async () => {
      this.checkNew(snapshot.name, snapshot.parent)
      const now = Date.now()
      const record: SnapshotRecord = { ...snapshot, labels: withoutEmpty(snapshot.labels), createdMs: now, updatedMs: now }
      await this.#save({ put: record })
      this.#count(record.parent, 1)
      return record
    })
  }

  /** The active snapshot `key` becomes the committed `name`. Labels are replaced, not inherited. */
  commit(name: string, key: string, labels: Readonly<Record<string, string>>, usage: NonNullable<SnapshotRecord['usage']>): Promise<SnapshotRecord> {
    return this.#write(async () => {
      this.checkCommit(name, key)
      const now = Date.now()
      const record: SnapshotRecord = { ...this.get(key), name, kind: 'committed', labels: withoutEmpty(labels), usage, createdMs: now, updatedMs: now }
      await this.#save({ del: key, put: record })
      return record
    })
  }

  /** @throws INVALID_ARGUMENT, CONFLICT, NOT_FOUND when `commit` with these would. */
  checkCommit(name: string, key: string): void {
    checkName(name)
    if (this.#records.has(name)) throw alreadyExists(`committed snapshot ${name} already exists`)
    const active = this.get(key)
    if (active.kind !== 'active') throw failedPrecondition(`snapshot ${key} is ${active.kind}, not active: it cannot be committed`)
  }

  remove(name: string): Promise<SnapshotRecord> {
    return this.#write(async () => {
      const record = this.get(name)
      if (this.#children.has(name)) throw failedPrecondition(`snapshot ${name} cannot be removed: other snapshots are built on it`)
      await this.#save({ del: name })
      this.#count(record.parent, -1)
      return record
    })
  }

  /** Only labels are mutable. `paths` is a field mask: none, `labels`, or `labels.<name>` as often as wanted. */
  update(name: string, labels: Readonly<Record<string, string>>, paths: readonly string[]): Promise<SnapshotRecord> {
    return this.#write(async () => {
      const before = this.get(name)
      const after = new Map(Object.entries(before.labels))
      for (const path of paths.length === 0 ? ['labels'] : paths) {
        if (path === 'labels') {
          after.clear()
          for (const [label, value] of Object.entries(labels)) after.set(label, value)
        } else if (path.startsWith(LABEL_PATH)) {
          const label = path.slice(LABEL_PATH.length)
          after.set(label, Object.hasOwn(labels, label) ? labels[label] : '')
        } else {
          throw invalidArgument(`field ${path} of snapshot ${name} cannot be updated; only labels can`)
        }
      }
      const record: SnapshotRecord = { ...before, labels: withoutEmpty(Object.fromEntries(after)), updatedMs: Date.now() }
      await this.#save({ put: record })
      return record
    })
  }

  #write<T>(change: () => Promise<T>): Promise<T> {
    return this.#writing.run('', change)
  }

  /** Disk first, then memory: what was answered survives. containerd syncs its own metadata too, so the two agree after a power loss. */
  async #save(change: { put?: SnapshotRecord; del?: string }): Promise<void> {
    const operations: Operation[] = [{ type: 'put', key: LAST_ID, value: String(this.#lastId) }]
    if (change.del !== undefined) operations.push({ type: 'del', key: RECORD + change.del })
    if (change.put !== undefined) operations.push({ type: 'put', key: RECORD + change.put.name, value: JSON.stringify(change.put) })
    const synced = { ...ENCODINGS, sync: true }
    await this.#db.batch<string, string>(operations, synced)
    if (change.del !== undefined) this.#records.delete(change.del)
    if (change.put !== undefined) this.#records.set(change.put.name, change.put)
  }

  #count(parent: string, change: number): void {
    if (parent === '') return
    const count = (this.#children.get(parent) ?? 0) + change
    if (count === 0) this.#children.delete(parent)
    else this.#children.set(parent, count)
  }
}

/** containerd does not keep labels with an empty value: that is how a label is removed. */
const withoutEmpty = (labels: Readonly<Record<string, string>>): Record<string, string> => Object.fromEntries(Object.entries(labels).filter(([, value]) => value !== ''))

function checkName(name: string): void {
  if (name === '') throw invalidArgument('the snapshot has no name')
  if (name.length > MAX_NAME_CHARS) throw invalidArgument(`the snapshot's name has ${name.length} characters; at most ${MAX_NAME_CHARS} are allowed`)
}
