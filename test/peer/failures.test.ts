// What a reader sees when peers lie, stall, die, refuse, or when nobody is left: another source, or a clear error in time.
import { createHash, randomBytes } from 'node:crypto'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { buildBlockTable, CODEC_RAW } from '../../image/block-table.ts'
import { EXCHANGE_PROTOCOL, FRAME_HAVE, HAVE_WHOLE, frame, haveBody } from '../../peer/exchange-wire.ts'
import { createHost } from '../../peer/host.ts'
import type { Resource } from '../../peer/resource.ts'
import { Lab, makeContent, put, until } from './lab.ts'
import type { Content, Node, TestSupernode } from './lab.ts'

describe('when something fails', () => {
  let lab: Lab
  beforeEach(() => { lab = new Lab() })
  afterEach(() => lab.stop())

  const joined = async (supernode: TestSupernode, name: string, options: Parameters<Lab['node']>[1] = {}, at: Parameters<Lab['node']>[2] = {}): Promise<Node> => {
    const node = await lab.node(name, { supernodes: [supernode.address], ...options }, at)
    await until('the supernode greets the node', () => supernode.admitted.has(node.peer.id) && node.peer.supernodes.inOrder('').length === 1)
    return node
  }
  /** A node that wants the content, granted and connected to `peers`, without the supernode having it. */
  const wanting = async (supernode: TestSupernode, content: Content, peers: Node[], options: Parameters<Lab['node']>[1] = {}, at: Parameters<Lab['node']>[2] = {}): Promise<{ node: Node; resource: Resource }> => {
    const node = await joined(supernode, 'reader', options, at)
    node.peer.grants.take(supernode.grant(node.peer.id, [content.id]))
    const resource = await node.store.add(content.id, content.table, { diffId: content.diffId })
    node.peer.fetcher.open(resource)
    await until('the peers say what they have', () => peers.every(peer => node.peer.pool.get(peer.peer.id)?.holdings(content.id)?.whole === true))
    return { node, resource }
  }

  test('a peer that sends wrong blocks is banned, and the blocks come from another', async () => {
    const content = makeContent(20)
    const fakes = content.blocks.map(block => randomBytes(block.length))
    const fake: Content = { ...content, blocks: fakes, table: buildBlockTable(fakes.map(block => ({ rawLength: block.length, packedLength: block.length, codec: CODEC_RAW, hash: createHash('sha256').update(block).digest() }))) }
    const supernode = await lab.supernode()
    const liar = await joined(supernode, 'liar')
    await put(liar, fake)
    await until('the liar is announced', () => supernode.holders.get(content.id)?.get(liar.peer.id)?.whole === true)
    await put(supernode.node, content)
    const { node, resource } = await wanting(supernode, content, [liar])
    await node.peer.fetcher.ensure(resource, [{ from: 0, to: 20 }], { priority: 'demand' })
    expect((await resource.readRaw(0, content.bytes.length)).equals(content.bytes)).toBe(true)
    expect(node.peer.pool.isBanned(liar.peer.id)).toBe(true)
    expect(node.peer.fetcher.stats(content.id).bytes.supernode).toBe(content.bytes.length)
    expect(await node.peer.pool.connect(liar.peer.id)).toBeUndefined()
  })

  test('a peer that has everything and sends nothing does not hold a reader up', async () => {
    const content = makeContent(8)
    const supernode = await lab.supernode()
    await put(supernode.node, content)
    const stalled = await createHost({ listen: ['/ip4/127.0.0.1/tcp/0'] })
    lab.onStop(async () => { await stalled.stop() })
    await stalled.handle(EXCHANGE_PROTOCOL, stream => {
      stream.addEventListener('message', () => { stream.send(frame(FRAME_HAVE, 0, haveBody(content.id, HAVE_WHOLE))) })
    })
    const node = await joined(supernode, 'reader', { fetch: { demandTimeout: 20_000, stallTimeout: 300 } })
    node.peer.grants.take(supernode.grant(node.peer.id, [content.id]))
    const resource = await node.store.add(content.id, content.table)
    supernode.decoys.set(stalled.peerId.toString(), stalled.getMultiaddrs().map(String))
    node.peer.fetcher.open(resource)
    await until('the stalled peer says that it has all', () => node.peer.pool.get(stalled.peerId.toString())?.holdings(content.id)?.whole === true)
    await node.peer.fetcher.ensure(resource, [{ from: 2, to: 5 }], { priority: 'demand' })
    await node.peer.fetcher.ensure(resource, [{ from: 0, to: 8 }], { priority: 'background' })
    expect(resource.whole).toBe(true)
  })

  test('a peer killed in the middle is replaced by another', async () => {
    const content = makeContent(300)
    const supernode = await lab.supernode()
    const [first, second] = [await joined(supernode, 'first', { exchange: { uploadBytesPerSecond: 4_000_000 } }), await joined(supernode, 'second')]
    await put(first, content)
    await until('announced', () => supernode.holders.get(content.id)?.get(first.peer.id)?.whole === true)
    const { node, resource } = await wanting(supernode, content, [first])
    const whole = node.peer.fetcher.ensure(resource, [{ from: 0, to: 300 }], { priority: 'background' })
    await until('some blocks came', () => resource.storedBlocks > 20)
    await put(second, content)
    await first.stop()
    await whole
    expect(resource.whole).toBe(true)
    expect(node.peer.fetcher.stats(content.id).peers[second.peer.id]).toBeGreaterThan(0)
  })

  test('without any supernode peers go on serving each other, also after a restart', async () => {
    const content = makeContent(60)
    const supernode = await lab.supernode()
    const seed = await joined(supernode, 'seed')
    await put(seed, content)
    await until('announced', () => supernode.holders.get(content.id)?.get(seed.peer.id)?.whole === true)
    const { node, resource } = await wanting(supernode, content, [seed])
    await node.peer.fetcher.ensure(resource, [{ from: 0, to: 10 }], { priority: 'demand' })
    const { address } = supernode
    await supernode.stop()
    await until('the supernode is gone', () => node.peer.supernodes.inOrder('').length === 0)
    await node.peer.fetcher.ensure(resource, [{ from: 10, to: 30 }], { priority: 'demand' })
    await node.stop()
    const again = await lab.node('reader', { supernodes: [address] }, { directory: node.directory })
    const kept = again.store.get(content.id)!
    await again.peer.fetcher.ensure(kept, [{ from: 0, to: 60 }], { priority: 'background' })
    expect((await kept.readRaw(0, content.bytes.length)).equals(content.bytes)).toBe(true)
  })

  test('when nobody has a block the wait ends in time, and the error says what was tried', async () => {
    const content = makeContent(3)
    const node = await lab.node('alone', { fetch: { demandTimeout: 200, backgroundTimeout: 200 } })
    const resource = await node.store.add(content.id, content.table)
    await expect(node.peer.fetcher.ensure(resource, [{ from: 1, to: 2 }], { priority: 'demand' })).rejects.toMatchObject({ code: 'UNAVAILABLE', message: expect.stringContaining('no peer, supernode or registry could be asked') })
    await expect(node.peer.fetcher.ensure(resource, [{ from: 0, to: 3 }], { priority: 'background' })).rejects.toMatchObject({ code: 'UNAVAILABLE' })
  })

  test('when no peer and no supernode is left, the origin brings the blocks', async () => {
    const content = makeContent(12)
    let node: Node | undefined
    const asked: number[] = []
    node = await lab.node('alone', { fetch: {
      originAfter: 50,
      origin: async (id, blocks) => {
        asked.push(...blocks)
        for (const block of blocks) await node!.store.get(id)!.putBlock(block, content.blocks[block])
      },
    } })
    const resource = await node.store.add(content.id, content.table)
    await node.peer.fetcher.ensure(resource, [{ from: 3, to: 5 }], { priority: 'demand' })
    expect(asked).toEqual([3, 4])
    await node.peer.fetcher.ensure(resource, [{ from: 0, to: 12 }], { priority: 'background' })
    expect(resource.whole).toBe(true)
    expect(node.peer.fetcher.stats(content.id).bytes.registry).toBe(content.bytes.length)
  })

  test('a caller that gives up is told so at once, and the others still get their blocks', async () => {
    const content = makeContent(50)
    const supernode = await lab.supernode({ exchange: { uploadBytesPerSecond: 1_500_000 } })
    await put(supernode.node, content)
    const { node, resource } = await wanting(supernode, content, [])
    const abort = new AbortController()
    const impatient = node.peer.fetcher.ensure(resource, [{ from: 0, to: 50 }], { priority: 'background', signal: abort.signal })
    const patient = node.peer.fetcher.ensure(resource, [{ from: 40, to: 50 }], { priority: 'background' })
    abort.abort()
    await expect(impatient).rejects.toMatchObject({ code: 'ABORTED' })
    await patient
    expect(resource.state.subarray(40).every(state => state >= 2)).toBe(true)
  })

  test('a peer without a grant, with an expired one or with somebody else\'s gets nothing', async () => {
    const content = makeContent(4)
    const supernode = await lab.supernode()
    const seed = await joined(supernode, 'seed')
    await put(seed, content)
    // This one is not known to the supernode: it cannot have its grant renewed.
    const stranger = await lab.node('stranger', { fetch: { demandTimeout: 700 } })
    const resource = await stranger.store.add(content.id, content.table)
    stranger.peer.pool.learn(seed.peer.id, seed.peer.addresses)
    const tokens = [undefined, supernode.grant(stranger.peer.id, [content.id], Date.now() - 1), supernode.grant(seed.peer.id, [content.id]), `${supernode.grant(stranger.peer.id, [content.id]).split('.')[0]}.${'A'.repeat(86)}`]
    for (const token of tokens) {
      if (token !== undefined) stranger.peer.grants.book.add(token)
      const link = await stranger.peer.pool.connect(seed.peer.id)
      const refused = new Promise(resolve => { link!.request(content.id, content.table, [0], 'demand', { block: () => resolve('a block'), end: (_, __, error) => resolve(error?.code) }) })
      expect(await refused).toBe('FORBIDDEN')
      link!.close()
      await until('it is closed', () => !link!.connected)
      stranger.peer.grants.book.forget(content.id)
    }
    stranger.peer.grants.take(supernode.grant(stranger.peer.id, [content.id]))
    await stranger.peer.pool.connect(seed.peer.id)
    await stranger.peer.fetcher.ensure(resource, [{ from: 0, to: 4 }], { priority: 'background' })
    expect(resource.whole).toBe(true)
  })

  test('with a full disk a reader still gets its blocks; background work stops and says why', async () => {
    const content = makeContent(40)
    const supernode = await lab.supernode()
    await put(supernode.node, content)
    const { node, resource } = await wanting(supernode, content, [], {}, { capBytes: 100_000, heldBytes: 1_000_000 })
    resource.pin('a running container')
    await expect(node.peer.fetcher.ensure(resource, [{ from: 0, to: 40 }], { priority: 'background' })).rejects.toMatchObject({ code: 'NO_SPACE' })
    const unsaved = await node.peer.fetcher.ensure(resource, [{ from: 30, to: 38 }], { priority: 'demand' })
    expect(unsaved).toBeDefined()
    for (let block = 30; block < 38; block++) {
      if (resource.state[block] >= 2) continue
      expect(unsaved!.get(block)!.equals(content.blocks[block])).toBe(true)
    }
  })

  test('what a reader waits for overtakes background work', async () => {
    const content = makeContent(400)
    const supernode = await lab.supernode({ exchange: { uploadBytesPerSecond: 4_000_000 } })
    await put(supernode.node, content)
    const { node, resource } = await wanting(supernode, content, [])
    let whole = false
    const background = node.peer.fetcher.ensure(resource, [{ from: 0, to: 400 }], { priority: 'background' }).then(() => { whole = true; return undefined })
    await until('background work is under way', () => resource.storedBlocks > 10)
    const wanted = [...resource.state.keys()].filter(block => resource.state[block] === 0)
    const block = wanted[Math.floor(wanted.length / 2)]
    await node.peer.fetcher.ensure(resource, [{ from: block, to: block + 1 }], { priority: 'demand' })
    expect(whole).toBe(false)
    expect(resource.storedBlocks).toBeLessThan(300)
    await background
  })

  test('many readers of one block cause one transfer of it', async () => {
    const content = makeContent(5)
    const supernode = await lab.supernode()
    await put(supernode.node, content)
    const { node, resource } = await wanting(supernode, content, [])
    await Promise.all(Array.from({ length: 30 }, () => node.peer.fetcher.ensure(resource, [{ from: 1, to: 3 }], { priority: 'demand' })))
    expect(node.peer.fetcher.stats(content.id).blocks.supernode).toBe(2)
  })

  test('a block that another layer here holds is not fetched', async () => {
    const content = makeContent(10)
    const sibling: Content = { ...content, id: `layer:sha256:${randomBytes(32).toString('hex')}` }
    const node = await lab.node('alone', { fetch: { demandTimeout: 500 } })
    await put(node, content)
    const resource = await node.store.add(sibling.id, sibling.table)
    await node.peer.fetcher.ensure(resource, [{ from: 0, to: 10 }], { priority: 'demand' })
    expect(node.peer.fetcher.stats(sibling.id).bytes).toEqual({ local: content.bytes.length, peer: 0, supernode: 0, registry: 0, source: 0 })
  })
})
