// The pieces under files and blobs: whose turn it is, where nothing is fetched from, and callers that are slow.
import { randomBytes } from 'node:crypto'
import { afterEach, describe, expect, test } from '@jest/globals'
import * as fc from 'fast-check'
import { CacheKeeper } from '../../supernode/cache-keeper.ts'
import { BlockStore } from '../../peer/block-store.ts'
import { GrantSigner } from '../../peer/grants.ts'
import { fixedBlockTable } from '../../image/block-table.ts'
import type { FileOrigin } from '../../supernode/file-origin.ts'
import { Granter } from '../../supernode/granter.ts'
import { PrioritySlots } from '../../supernode/priority-slots.ts'
import { EmbeddedState } from '../../supernode/shared-state.ts'
import { sourceAddresses } from '../../supernode/source-addresses.ts'
import { StreamControl } from '../../supernode/stream-control.ts'
import type { StreamOrigin } from '../../supernode/stream-origin.ts'
import { partsOf } from '../../supernode/stream-record.ts'
import type { StreamRecord } from '../../supernode/stream-record.ts'
import { StreamWork } from '../../supernode/stream-work.ts'
import type { BlobOrigin } from '../../supernode/blob-origin.ts'
import { Cleanup, silent, temporaryDirectory, until } from './lab.ts'

const cleanup = new Cleanup()
afterEach(() => cleanup.run())

const recordOf = (length: number): StreamRecord => ({
  kind: 'file', name: 'http://source/a', resource: `file:${'a'.repeat(64)}`, head: { version: '1', length }, validated: true, blockBytes: 64, length, complete: false, madeAt: 0, lastUse: 0,
})

async function storeOf(): Promise<BlockStore> {
  const store = await BlockStore.open({ directory: await temporaryDirectory(cleanup), capBytes: 2 ** 30, logger: silent })
  cleanup.add(() => store.close())
  return store
}

const stateOf = (store: BlockStore): EmbeddedState => new EmbeddedState({ open: name => store.sublevel(`test-${name}`), logger: silent })

describe('turns', () => {
  test('go to the most urgent, among equals to the first, and to one who became urgent while waiting', async () => {
    const slots = new PrioritySlots(1)
    const { signal } = new AbortController()
    const order: string[] = []
    const waits = [['late', 6], ['normal', 3], ['urgent', 0], ['second normal', 3]] as const
    const release = await slots.take({ priority: 6 }, signal)
    const raised = { priority: 6 }
    const all = [slots.take(raised, signal).then(give => { order.push('raised'); give() }), ...waits.map(([name, priority]) => slots.take({ priority }, signal).then(give => { order.push(name); give() }))]
    raised.priority = 1
    expect(slots.waiting).toBe(5)
    release()
    release()
    await Promise.all(all)
    expect(order).toEqual(['urgent', 'raised', 'normal', 'second normal', 'late'])
    expect(slots.free).toBe(1)
  })

  test('are given up by who gives up waiting', async () => {
    const slots = new PrioritySlots(1)
    const release = await slots.take({ priority: 3 }, new AbortController().signal)
    const gone = new AbortController()
    const waiting = slots.take({ priority: 0 }, gone.signal)
    gone.abort()
    await expect(waiting).rejects.toMatchObject({ code: 'ABORTED' })
    release()
    expect([slots.free, slots.waiting]).toEqual([1, 0])
  })
})

describe('addresses', () => {
  const far = sourceAddresses({ loopback: false })
  const near = sourceAddresses({ loopback: true })

  test('of this host, its links and metadata services are no sources unless that is wanted; nowhere never is', () => {
    for (const address of ['127.0.0.1', '127.255.255.255', '169.254.169.254', '100.100.100.200', '::1', 'fe80::1', 'fe80::1%eth0', 'febf::1', 'fd00:ec2::254']) expect([address, far(address), near(address)]).toEqual([address, false, true])
    for (const address of ['0.0.0.0', '0.1.2.3', '224.0.0.1', '255.255.255.255', '::', 'ff02::1', 'localhost', '']) expect([address, far(address), near(address)]).toEqual([address, false, false])
    for (const address of ['10.0.0.1', '192.168.1.1', '172.16.0.1', '100.64.0.1', '8.8.8.8', '128.0.0.1', '2001:db8::1', 'fd12::1', 'fec0::1']) expect([address, far(address)]).toEqual([address, true])
  })
})

describe('parts', () => {
  test('lie one behind the other and make the whole', () => {
    fc.assert(fc.property(fc.nat(5_000), fc.integer({ min: 1, max: 700 }), fc.boolean(), (length, partBytes, known) => {
      const record = { ...recordOf(length), head: { version: '1', ...(known && { length }) } }
      const parts = partsOf(record, partBytes)
      expect(parts).toHaveLength(known ? 1 : Math.ceil(length / partBytes))
      let end = 0
      for (const [index, part] of parts.entries()) {
        expect(part.offset).toBe(end)
        expect(part.resource).toBe(index === 0 ? record.resource : `${record.resource}.${index}`)
        end += part.length
      }
      expect(end).toBe(length)
    }))
  })
})

describe('a caller', () => {
  test('that takes nothing is waited for without anything piling up, and hung up on in the end', async () => {
    const store = await storeOf()
    const record = recordOf(64 * 40_000)
    const work = new StreamWork('key', record)
    const resource = work.hold(await store.add(record.resource, fixedBlockTable(record.head.length!, 64), { open: true }))
    work.add({ resource, offset: 0 })
    const granter = new Granter({ signer: new GrantSigner(randomBytes(32)), state: stateOf(store), logger: silent })
    cleanup.add(() => granter.close())
    const files = { open: async () => work } as unknown as FileOrigin
    const control = new StreamControl({ streams: {} as StreamOrigin, blobs: {} as BlobOrigin, files, granter, admitted: () => true, logger: silent }, { slowCallerMs: 300 })
    const frames: object[] = []
    let take: (() => void) | undefined
    let open = true
    const call = {
      remote: 'peer', address: '', signal: new AbortController().signal, progress: (frame: object) => { frames.push(frame) },
      drained: () => (open ? undefined : new Promise<void>(resolve => { take = resolve })),
    }
    const answer = control.handlers['file.open']({ url: 'http://source/a' }, call)
    answer.catch(() => {})
    await until(() => frames.length === 2)
    open = false
    resource.learn(0, randomBytes(32 * 40_000))
    work.touch()
    // One frame of hashes is out; the others wait in the table, not in memory.
    await until(() => take !== undefined)
    expect(frames).toHaveLength(3)
    expect(resource.pinned).toBe(true)
    await expect(answer).rejects.toMatchObject({ code: 'TIMEOUT' })
    expect(frames).toHaveLength(3)

    open = true
    const quick = control.handlers['file.open']({ url: 'http://source/a' }, { ...call, remote: 'other' })
    work.end()
    expect(await quick).toEqual({ length: 64 * 40_000, parts: 1 })
    expect(frames.slice(3).map(frame => Object.keys(frame)[0])).toEqual(['head', 'part', 'hashes', 'hashes', 'hashes'])
    expect(resource.pinned).toBe(false)
  })

  test('keeps what it follows in the cache, however old', async () => {
    const store = await storeOf()
    const record = recordOf(64)
    const work = new StreamWork('key', record)
    work.add({ resource: work.hold(await store.add(record.resource, fixedBlockTable(64, 64), { open: true })), offset: 0 })
    const keeper = new CacheKeeper({ store, logger: silent, clock: () => Date.now() + 1_000_000 }, { ttlMs: 1_000 })
    work.end()
    const leave = work.follow()
    expect(await keeper.sweep()).toEqual([])
    leave()
    expect(await keeper.sweep()).toEqual([record.resource])
  })
})

describe('grants', () => {
  test('of thousands of resources are few writes, and are known after a restart', async () => {
    const store = await storeOf()
    const signer = new GrantSigner(randomBytes(32))
    let writes = 0
    const counting = (): EmbeddedState => new EmbeddedState({ open: name => {
      const space = store.sublevel<string>(`test-${name}`)
      return { get: key => space.get(key), put: (key, value) => { writes++; return space.put(key, value) }, del: key => space.del(key), iterator: () => space.iterator() }
    }, logger: silent })
    const before = new Granter({ signer, state: counting(), logger: silent })
    const ids = Array.from({ length: 5_000 }, (_, at) => `file:${at}`)
    for (const id of ids) await before.grant('peer', [id])
    await before.close()
    expect(writes).toBeLessThan(30)
    const after = new Granter({ signer, state: counting(), logger: silent })
    // As many as one grant may name: the latest.
    expect(await after.mayRead('peer', ids[4_999])).toBe(true)
    expect(await after.mayRead('peer', ids[904])).toBe(true)
    expect(await after.mayRead('peer', ids[903])).toBe(false)
    expect(await after.mayRead('other', ids[4_999])).toBe(false)
    await after.close()
  })
})
