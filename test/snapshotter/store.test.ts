// The snapshots' metadata keeps containerd's rules whatever is asked in whatever order, and says the same after a restart.
import { describe, expect, test } from '@jest/globals'
import * as fc from 'fast-check'
import { MemoryLevel } from 'memory-level'
import { statusOf } from '../../snapshotter/snapshot-errors.ts'
import { SnapshotStore } from '../../snapshotter/snapshot-store.ts'
import type { SnapshotDatabase } from '../../snapshotter/snapshot-store.ts'
import { status } from '@grpc/grpc-js'

interface Expected {
  parent: string
  kind: string
  labels: Record<string, string>
}
type Command = { op: 'create'; name: string; parent: string; kind: 'active' | 'view' } | { op: 'commit'; name: string; key: string } | { op: 'remove'; name: string } | { op: 'label'; name: string; value: string } | { op: 'restart' }

const NAMES = ['a', 'b', 'ns/1/c d', 'é😀', 'snapshot/']
const name = fc.constantFrom(...NAMES)
const command: fc.Arbitrary<Command> = fc.oneof(
  fc.record({ op: fc.constant('create' as const), name, parent: fc.constantFrom('', ...NAMES), kind: fc.constantFrom('active' as const, 'view' as const) }),
  fc.record({ op: fc.constant('commit' as const), name, key: name }),
  fc.record({ op: fc.constant('remove' as const), name }),
  fc.record({ op: fc.constant('label' as const), name, value: fc.constantFrom('', 'x', 'y') }),
  fc.record({ op: fc.constant('restart' as const) }),
)

/** What containerd's clients expect: the gRPC status of a command, and the model after it. */
function expectedStatus(model: Map<string, Expected>, command: Command): status {
  switch (command.op) {
    case 'restart':
      return status.OK
    case 'create': {
      if (model.has(command.name)) return status.ALREADY_EXISTS
      const parent = model.get(command.parent)
      if (command.parent !== '' && parent === undefined) return status.NOT_FOUND
      if (parent !== undefined && parent.kind !== 'committed') return status.INVALID_ARGUMENT
      model.set(command.name, { parent: command.parent, kind: command.kind, labels: { made: 'yes' } })
      return status.OK
    }
    case 'commit': {
      if (model.has(command.name)) return status.ALREADY_EXISTS
      const active = model.get(command.key)
      if (active === undefined) return status.NOT_FOUND
      if (active.kind !== 'active') return status.FAILED_PRECONDITION
      model.delete(command.key)
      model.set(command.name, { parent: active.parent, kind: 'committed', labels: {} })
      return status.OK
    }
    case 'remove':
      if (!model.has(command.name)) return status.NOT_FOUND
      if ([...model.values()].some(each => each.parent === command.name)) return status.FAILED_PRECONDITION
      model.delete(command.name)
      return status.OK
    case 'label': {
      const found = model.get(command.name)
      if (found === undefined) return status.NOT_FOUND
      if (command.value === '') delete found.labels['l.m']
      else found.labels['l.m'] = command.value
      return status.OK
    }
  }
}

async function perform(store: SnapshotStore, command: Exclude<Command, { op: 'restart' }>): Promise<void> {
  if (command.op === 'create') await store.create({ id: store.nextId(), kind: command.kind, name: command.name, parent: command.parent, labels: { made: 'yes' }, why: '' })
  if (command.op === 'commit') await store.commit(command.name, command.key, {}, { size: 1, inodes: 1 })
  if (command.op === 'remove') await store.remove(command.name)
  if (command.op === 'label') await store.update(command.name, { 'l.m': command.value, other: 'ignored' }, ['labels.l.m'])
}

async function open(db: SnapshotDatabase): Promise<SnapshotStore> {
  const store = new SnapshotStore({ db })
  await store.open()
  return store
}

const contents = (store: SnapshotStore): [string, Expected][] => store.list().map(({ name: key, parent, kind, labels }): [string, Expected] => [key, { parent, kind, labels: { ...labels } }]).sort(([a], [b]) => (a < b ? -1 : 1))

describe('snapshot metadata', () => {
  test('every sequence of calls gives what containerd\'s own storage would', async () => {
    await fc.assert(fc.asyncProperty(fc.array(command, { maxLength: 40 }), async commands => {
      const db: SnapshotDatabase = new MemoryLevel<string, string>().sublevel('snapshots')
      let store = await open(db)
      const model = new Map<string, Expected>()
      const ids = new Set<number>()
      for (const each of commands) {
        const expected = expectedStatus(model, each)
        if (each.op === 'restart') store = await open(db)
        else {
          const outcome = await perform(store, each).then(() => status.OK, (error: unknown) => statusOf(error).code)
          expect([each, outcome]).toEqual([each, expected])
          if (each.op === 'create' && outcome === status.OK) {
            const { id } = store.get(each.name)
            expect(ids.has(id)).toBe(false)
            ids.add(id)
          }
        }
      }
      expect(contents(store)).toEqual(contents(await open(db)))
      expect(contents(store)).toEqual([...model].sort(([a], [b]) => (a < b ? -1 : 1)))
    }), { numRuns: 150 })
  })

  test('of many who create one snapshot at once, one succeeds', async () => {
    const store = await open(new MemoryLevel<string, string>())
    const all = await Promise.allSettled(Array.from({ length: 20 }, () => store.create({ id: store.nextId(), kind: 'active', name: 'k', parent: '', labels: {}, why: '' })))
    expect(all.filter(each => each.status === 'fulfilled')).toHaveLength(1)
  })

  test('a record that cannot be read stops the start instead of losing a container', async () => {
    const db: SnapshotDatabase = new MemoryLevel<string, string>()
    await db.put('snapshot/x', '{"id":1}')
    await expect(open(db)).rejects.toThrow(/metadata of x cannot be read/)
  })

  test('only labels can be updated', async () => {
    const store = await open(new MemoryLevel<string, string>())
    await store.create({ id: 1, kind: 'active', name: 'k', parent: '', labels: { a: '1', b: '2' }, why: '' })
    await expect(store.update('k', {}, ['parent'])).rejects.toThrow(/cannot be updated/)
    expect((await store.update('k', { c: '3' }, [])).labels).toEqual({ c: '3' })
    expect((await store.update('k', { d: '4' }, ['labels.d', 'labels.c'])).labels).toEqual({ d: '4' })
    expect((await store.update('k', {}, ['labels'])).labels).toEqual({})
  })
})
