// Real nodes and a real supernode: an image goes from the registry through the supernode to every node, about once, and on without it.
import { join } from 'node:path'
import { afterEach, describe, expect, test } from '@jest/globals'
import { Registry } from 'prom-client'
import { decodeLayerIndex } from '../../image/index-format.ts'
import { BlockStore } from '../../peer/block-store.ts'
import { Peer } from '../../peer/peer.ts'
import type { Resource } from '../../peer/resource.ts'
import type { Supernode } from '../../supernode/supernode.ts'
import { haveRegistry, startRegistry } from '../oci/registry-fixture.ts'
import { Cleanup, push, silent, startSupernode, tarOf, temporaryDirectory, until } from './lab.ts'

const withRegistry = haveRegistry ? describe : describe.skip
const cleanup = new Cleanup()
afterEach(() => cleanup.run())

async function startNode(supernode: Supernode): Promise<Peer> {
  const directory = await temporaryDirectory(cleanup)
  const store = await BlockStore.open({ directory: join(directory, 'store'), capBytes: 2 ** 30, logger: silent })
  cleanup.add(() => store.close())
  const peer = await Peer.start({ store, logger: silent, metrics: new Registry() }, { listen: ['/ip4/127.0.0.1/tcp/0'], identityFile: join(directory, 'identity'), supernodes: supernode.addrs })
  cleanup.add(() => peer.stop())
  return peer
}

/** What a node does with an image: resolve, wait for the indexes, fetch them, and hold the layers' resources. */
async function open(peer: Peer, reference: string): Promise<Resource[]> {
  const image = await peer.supernodes.call('image.resolve', { reference })
  return await Promise.all(image.layers.map(async layer => {
    const { index } = await peer.supernodes.call('layer.index', { reference, manifestDigest: image.manifestDigest, layerDigest: layer.digest })
    const { blocks } = decodeLayerIndex(await peer.fetcher.object(index))
    return await peer.store.add(`layer:${index}`, blocks, { diffId: layer.diffId })
  }))
}
const fetchAll = async (peer: Peer, resources: readonly Resource[]): Promise<void> => {
  await Promise.all(resources.map(resource => peer.fetcher.ensure(resource, [{ from: 0, to: resource.table.count }], { priority: 'background' })))
}

withRegistry('nodes of a supernode (need docker-registry)', () => {
  test('get an image whole and proved, trade its blocks, and get on without the supernode', async () => {
    const registry = await startRegistry()
    cleanup.add(() => registry.stop())
    const { reference } = await push(registry.host, 'app:1', [await tarOf({ a: 6_000_000, b: 2_000_000 }), await tarOf({ c: 1_000_000 }, 5)])
    const supernode = await startSupernode(cleanup)
    const nodes = [await startNode(supernode), await startNode(supernode)]
    const held = await Promise.all(nodes.map(node => open(node, reference)))
    await Promise.all(nodes.map((node, at) => fetchAll(node, held[at])))
    for (const resource of held.flat()) {
      await resource.prove()
      expect(resource.proved).toBe(true)
    }
    await until(() => held[0].every(({ id }) => nodes.every(({ id: peer }) => supernode.parts.scheduler.holdsWhole(peer, id))))

    // A third node knows the image when the supernode goes: its blocks come from the others.
    const third = await startNode(supernode)
    const resources = await open(third, reference)
    const offers = await third.supernodes.call('parents', { resource: resources[0].id, count: 4 })
    expect(offers.parents.filter(parent => parent.whole).map(parent => parent.peerId).sort()).toEqual(nodes.map(node => node.id).sort())
    const releases = resources.map(resource => third.fetcher.open(resource))
    cleanup.add(() => releases.forEach(release => release()))
    await until(() => third.pool.connected().filter(peer => !peer.supernode).length === 2)
    await supernode.stop()
    await fetchAll(third, resources)
    for (const resource of resources) await resource.prove()
    const packed = resources.reduce((sum, resource) => sum + resource.storedBytes, 0)
    expect(third.fetcher.imageStats(resources.map(({ id }) => id))).toMatchObject({ peer: packed, supernode: 0 })
  })

  test('who know a resource but were not granted it get nothing; what was evicted is made again for those who were', async () => {
    const registry = await startRegistry()
    cleanup.add(() => registry.stop())
    const { reference } = await push(registry.host, 'app:1', [await tarOf({ a: 500_000 })])
    const supernode = await startSupernode(cleanup)
    const [friend, stranger] = [await startNode(supernode), await startNode(supernode)]
    const [resource] = await open(friend, reference)
    const digest = resource.id.slice('layer:'.length)
    await until(() => stranger.supernodes.inOrder('x').length === 1)
    await expect(stranger.fetcher.object(digest)).rejects.toThrow(/no valid grant/)

    await supernode.parts.store.remove(resource.id)
    await fetchAll(friend, [resource])
    expect(resource.whole).toBe(true)
    expect(supernode.parts.store.get(resource.id)?.whole).toBe(true)
  })
})
