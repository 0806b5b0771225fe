// Peers that pass on a file while it is still being downloaded: whoever knows a block's hash can have it as soon as someone has the block.
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { randomBytes } from 'node:crypto'
import { fixedBlockTable, HASH_LENGTH } from '../../image/block-table.ts'
import { sha256 } from '../../peer/block-codec.ts'
import type { Resource } from '../../peer/resource.ts'
import { StreamFill } from '../../peer/stream-fill.ts'
import { Lab, until } from './lab.ts'
import type { Node, TestSupernode } from './lab.ts'

const BLOCK = 64 * 1024
const COUNT = 48
const ID = 'file:0123abcd'

describe('a file that is passed on while it comes', () => {
  let lab: Lab
  let supernode: TestSupernode
  const bytes = randomBytes(COUNT * BLOCK - 100)
  const blockOf = (block: number): Buffer => bytes.subarray(block * BLOCK, (block + 1) * BLOCK)
  const hashes = Buffer.concat(Array.from({ length: COUNT }, (_, block) => sha256(blockOf(block))))
  const add = (node: Node): Promise<Resource> => node.store.add(ID, fixedBlockTable(bytes.length, BLOCK), { open: true })
  const node = async (name: string): Promise<Node> => {
    const started = await lab.node(name, { supernodes: [supernode.address] })
    await until('the supernode is up', () => started.peer.supernodes.inOrder('x').length === 1)
    started.peer.grants.take(supernode.grant(started.peer.id, [ID]))
    return started
  }
  /** What Downloads does with the hashes that the supernode tells: learns them, and asks for their blocks. */
  const followers = async (from: Resource, names: string[]): Promise<{ at: Node; resource: Resource; whole: Promise<unknown> }[]> => {
    const all = await Promise.all(names.map(async name => {
      const at = await node(name)
      return { at, ...await follow(from, at) }
    }))
    for (const { at, resource } of all) at.peer.fetcher.open(resource)
    await until('they know each other', () => all.every(({ at }) => at.peer.pool.connected().filter(peer => !peer.supernode && peer.holdings(ID) !== undefined).length === names.length - 1))
    return all
  }
  const follow = async (from: Resource, at: Node): Promise<{ resource: Resource; whole: Promise<unknown> }> => {
    const resource = await add(at)
    const fetches: Promise<unknown>[] = []
    const learn = (first: number, to: number): void => {
      resource.learn(first, from.table.hashes.subarray(first * HASH_LENGTH, to * HASH_LENGTH))
      fetches.push(at.peer.fetcher.ensure(resource, [{ from: first, to }], { priority: 'background' }))
    }
    if (from.knownUntil(0) > 0) learn(0, from.knownUntil(0))
    const complete = new Promise<void>(resolve => { resource.on('complete', resolve) })
    from.on('learnt', learn)
    return { resource, whole: complete.then(() => Promise.all(fetches)) }
  }
  const right = async (resource: Resource): Promise<boolean> => (await resource.readRaw(0, bytes.length)).equals(bytes)

  beforeEach(async () => {
    lab = new Lab()
    supernode = await lab.supernode({ exchange: { uploadBytesPerSecond: 20_000_000 } })
  })
  afterEach(() => lab.stop())

  test('followers have every block that was read while the source still holds back the rest', async () => {
    const origin = await add(supernode.node)
    const all = await followers(origin, ['one', 'two', 'three'])
    const fill = new StreamFill(origin)
    for (const upTo of [1, 7, 20, 47]) {
      await fill.write(bytes.subarray(fill.position, upTo * BLOCK))
      await until(`everyone has ${upTo} blocks`, () => all.every(({ resource }) => resource.storedBlocks === upTo))
      for (const { resource } of all) expect(resource).toMatchObject({ open: true, whole: false })
    }
    await fill.write(bytes.subarray(fill.position))
    await fill.finish()
    await Promise.all(all.map(({ whole }) => whole))
    let fromSupernode = 0
    for (const { at, resource } of all) {
      expect(resource).toMatchObject({ open: false, whole: true })
      expect(await right(resource)).toBe(true)
      const sums = at.peer.fetcher.stats(ID).bytes
      expect(sums.peer + sums.supernode).toBe(bytes.length)
      fromSupernode += sums.supernode
    }
    expect(fromSupernode).toBeLessThan(2 * bytes.length)
    await until('all are announced as whole', () => all.every(({ at }) => supernode.holders.get(ID)?.get(at.peer.id)?.whole === true))
  })

  test('a stream that comes fast is shared: the supernode sends little more than one copy', async () => {
    const origin = await add(supernode.node)
    const all = await followers(origin, ['one', 'two', 'three'])
    const fill = new StreamFill(origin)
    for (let at = 0; at < bytes.length; at += 10_000) {
      const room = fill.write(bytes.subarray(at, at + 10_000))
      if (room !== undefined) await room
      if (at % 50_000 === 0) await new Promise(resolve => { setTimeout(resolve, 5) })
    }
    await fill.finish()
    await Promise.all(all.map(({ whole }) => whole))
    const sums = all.map(({ at }) => at.peer.fetcher.stats(ID).bytes)
    expect(sums.reduce((sum, { supernode: sent }) => sum + sent, 0)).toBeLessThan(2 * bytes.length)
    for (const { resource } of all) expect(await right(resource)).toBe(true)
  })

  test('a hash may be known here before the block is there: the request waits, a reader\'s as any other', async () => {
    const origin = await add(supernode.node)
    const at = await node('early')
    const resource = await add(at)
    resource.learn(0, hashes)
    const waiting = [at.peer.fetcher.ensure(resource, [{ from: 0, to: 1 }], { priority: 'demand' }), at.peer.fetcher.ensure(resource, [{ from: 5, to: COUNT }], { priority: 'background' })]
    await until('the supernode was asked', () => origin.pins.some(pin => pin.startsWith('serving:')))
    expect(resource.storedBlocks).toBe(0)
    const fill = new StreamFill(origin)
    await fill.write(bytes)
    await fill.finish()
    await Promise.all(waiting)
    expect(resource.storedBlocks).toBe(COUNT - 4)
  })

  test('a node that reads the source itself serves others; what it has is remembered until its hash is known', async () => {
    const source = await node('source')
    const own = await add(source)
    const fill = new StreamFill(own)
    await fill.write(bytes.subarray(0, 30 * BLOCK))
    await until('the supernode knows it as a holder', () => supernode.holders.get(ID)?.has(source.peer.id) === true)
    const at = await node('other')
    const resource = await add(at)
    const release = at.peer.fetcher.open(resource)
    await until('it has said what it has', () => at.peer.pool.get(source.peer.id)?.has(ID, 29) === true)
    await fill.write(bytes.subarray(30 * BLOCK))
    await fill.finish()
    await until('and what came since', () => at.peer.pool.get(source.peer.id)?.has(ID, COUNT - 1) === true)
    expect(resource).toMatchObject({ storedBlocks: 0, open: true })
    await expect(at.peer.fetcher.ensure(resource, [{ from: 0, to: 1 }], { priority: 'demand' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('not known yet') })
    resource.learn(10, hashes.subarray(10 * HASH_LENGTH, 12 * HASH_LENGTH))
    await at.peer.fetcher.ensure(resource, [{ from: 10, to: 12 }], { priority: 'demand' })
    // Nothing beyond what is known is brought along, however the reader walks.
    expect(resource.storedBlocks).toBe(2)
    await at.peer.fetcher.ensureInOrder(resource, [11, 12, 13])
    expect(resource.storedBlocks).toBe(2)
    resource.learn(0, hashes)
    await at.peer.fetcher.ensure(resource, [{ from: 0, to: COUNT }], { priority: 'background' })
    expect(await right(resource)).toBe(true)
    expect(at.peer.fetcher.stats(ID).bytes).toMatchObject({ peer: bytes.length, supernode: 0 })
    release()
  })

  test('quarantined while it comes, it goes to nobody any more', async () => {
    const origin = await add(supernode.node)
    const at = await node('late')
    const { resource } = await follow(origin, at)
    const fill = new StreamFill(origin)
    await fill.write(bytes.subarray(0, 4 * BLOCK))
    await until('the first blocks are here', () => resource.storedBlocks === 4)
    for (const listener of supernode.listeners) listener({ type: 'quarantine', resource: ID, reason: 'it is another file' })
    await until('the node heard', () => resource.quarantined)
    await expect(resource.readPacked(0)).rejects.toMatchObject({ code: 'FORBIDDEN' })
    await supernode.node.store.quarantine(ID, 'it is another file')
    const other = await node('other')
    const wanted = await add(other)
    wanted.learn(0, hashes)
    await expect(other.peer.fetcher.ensure(wanted, [{ from: 0, to: 1 }], { priority: 'demand', signal: AbortSignal.timeout(1_000) })).rejects.toMatchObject({ code: 'ABORTED' })
    expect(wanted.storedBlocks).toBe(0)
  })
})
