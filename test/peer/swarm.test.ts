// Peers that share a layer: everyone gets it whole, the supernode sends it about once, and failures are survived.
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { Lab, makeContent, put, until } from './lab.ts'

describe('a swarm of peers', () => {
  let lab: Lab
  beforeEach(() => { lab = new Lab() })
  afterEach(() => lab.stop())

  test('four nodes that want a layer at once get it whole, and trade it among themselves', async () => {
    const content = makeContent(400)
    const supernode = await lab.supernode({ exchange: { uploadBytesPerSecond: 6_000_000 } })
    await put(supernode.node, content)
    const nodes = await Promise.all([1, 2, 3, 4].map(name => lab.node(`node${name}`, { supernodes: [supernode.address] })))
    await Promise.all(nodes.map(async node => {
      const resource = await node.store.add(content.id, content.table, { diffId: content.diffId })
      await until('the supernode is up', () => node.peer.supernodes.inOrder('x').length === 1)
      await node.peer.fetcher.ensure(resource, [{ from: 0, to: 400 }], { priority: 'background' })
      expect(resource.whole).toBe(true)
      await resource.prove()
      expect((await resource.readRaw(0, content.bytes.length)).equals(content.bytes)).toBe(true)
    }))
    const sums = { peer: 0, supernode: 0 }
    for (const node of nodes) {
      const { bytes } = node.peer.fetcher.stats(content.id)
      sums.peer += bytes.peer
      sums.supernode += bytes.supernode
    }
    expect(sums.peer + sums.supernode).toBe(4 * content.bytes.length)
    expect(sums.supernode).toBeLessThan(2 * content.bytes.length)
  })
})
