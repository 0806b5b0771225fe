// What a node gets from a supernode: images resolved and indexed once, also when the registry is gone; nothing for strangers; clear errors.
import { gzipSync } from 'node:zlib'
import { afterEach, describe, expect, test } from '@jest/globals'
import { chainIds } from '../../oci/chain-id.ts'
import { staticCredentials } from '../../oci/credentials.ts'
import { digestOf } from '../../oci/digest.ts'
import { MEDIA_TYPES } from '../../oci/media-types.ts'
import { parseReference } from '../../oci/reference.ts'
import { RegistryClient } from '../../oci/registry-client.ts'
import { decodeLayerIndex } from '../../image/index-format.ts'
import { GrantVerifier } from '../../peer/grants.ts'
import type { ControlClient } from '../../peer/control-client.ts'
import { haveRegistry, startRegistry } from '../oci/registry-fixture.ts'
import { Cleanup, countingProxy, joinNode, push, startSupernode, tarOf, temporaryDirectory, until } from './lab.ts'

const withRegistry = haveRegistry ? describe : describe.skip
const cleanup = new Cleanup()
afterEach(() => cleanup.run())

async function registry(options: Parameters<typeof startRegistry>[0] = {}) {
  const running = await startRegistry(options)
  cleanup.add(() => running.stop())
  return running
}

async function indexAll(control: ControlClient, reference: string, credentials?: { username: string; secret: string }) {
  const image = await control.call('image.resolve', { reference, credentials })
  const layers = await Promise.all(image.layers.map(layer => control.call('layer.index', { reference, manifestDigest: image.manifestDigest, layerDigest: layer.digest, credentials })))
  return { image, layers }
}

withRegistry('an image (needs docker-registry)', () => {
  test('is indexed once, however many nodes ask at the same time, and every node gets the same index and a grant', async () => {
    const origin = await registry()
    const proxy = await countingProxy(cleanup, origin.port)
    const made = await push(origin.host, 'team/app:1', [await tarOf({ 'etc/os': 2_000, 'usr/big': 3_000_000 }), await tarOf({ 'app/main': 700_000 }, 2)])
    const supernode = await startSupernode(cleanup)
    const nodes = await Promise.all(Array.from({ length: 5 }, () => joinNode(cleanup, supernode)))
    const reference = `${proxy.host}/team/app:1`

    const answers = await Promise.all(nodes.map(({ control }) => indexAll(control, reference)))
    const layerBytes = made.layers.reduce((sum, layer) => sum + layer.size, 0)
    expect(proxy.received()).toBeGreaterThanOrEqual(layerBytes)
    expect(proxy.received()).toBeLessThan(layerBytes * 1.02 + 20_000)
    expect(new Set(answers.map(({ layers }) => layers.map(layer => layer.index).join(' '))).size).toBe(1)

    const { image, layers } = answers[0]
    expect(image.manifestDigest).toBe(made.manifestDigest)
    expect(image.layers.map(layer => [layer.digest, layer.diffId])).toEqual(made.layers.map(layer => [layer.digest, layer.diffId]))
    const { store } = supernode.parts
    for (const [at, layer] of layers.entries()) {
      const resource = store.get(`layer:${layer.index}`)!
      expect(resource.whole).toBe(true)
      expect(digestOf(await resource.readRaw(0, layer.rawLength))).toBe(made.layers[at].diffId)
      const index = decodeLayerIndex((await store.getObject(layer.index))!)
      expect(index).toMatchObject({ diffId: made.layers[at].diffId, layerDigest: made.layers[at].digest })
    }
    const verifier = new GrantVerifier()
    verifier.trust(nodes[1].welcome.grantKey)
    expect(verifier.check(answers[1].layers[0].grant!, nodes[1].peerId).resources).toEqual([`layer:${answers[1].layers[0].index}`])
    expect(() => verifier.check(answers[1].layers[0].grant!, nodes[0].peerId)).toThrow(/another peer/)

    // Asked again: the indexes and the grant come with the image at once.
    const again = await nodes[0].control.call('image.resolve', { reference })
    expect(again.layers.map(layer => layer.index)).toEqual(layers.map(layer => layer.index))
    expect(verifier.check(again.grant, nodes[0].peerId).resources).toHaveLength(2)
  })

  test('still starts when the registry is gone, also after a restart of the supernode, and also by its chainID alone', async () => {
    const origin = await registry()
    const proxy = await countingProxy(cleanup, origin.port)
    const made = await push(origin.host, 'team/app:1', [await tarOf({ a: 300_000 }), await tarOf({ b: 10_000 }, 3)])
    const dataDir = await temporaryDirectory(cleanup)
    const reference = `${proxy.host}/team/app:1`
    const first = await startSupernode(cleanup, { dataDir, tagTtlMs: 0, accessTtlMs: 0 })
    const before = await indexAll((await joinNode(cleanup, first)).control, reference)
    const identity = first.peerId
    await first.stop()
    proxy.kill()

    const second = await startSupernode(cleanup, { dataDir, tagTtlMs: 0, accessTtlMs: 0 })
    expect(second.peerId).toBe(identity)
    const node = await joinNode(cleanup, second)
    const after = await indexAll(node.control, reference)
    expect(after.layers.map(layer => layer.index)).toEqual(before.layers.map(layer => layer.index))
    const chains = chainIds(made.layers.map(layer => layer.diffId))
    const chain = await node.control.call('chain.resolve', { chainId: chains[0] })
    expect(chain.layers).toEqual([{ digest: made.layers[0].digest, size: made.layers[0].size, diffId: made.layers[0].diffId, index: before.layers[0].index }])
    expect((await node.control.call('chain.resolve', { chainId: chains[1] })).layers).toHaveLength(2)
    await expect(node.control.call('chain.resolve', { chainId: digestOf('nothing') })).rejects.toMatchObject({ code: 'NOT_FOUND' })
    await expect(node.control.call('image.resolve', { reference: `${proxy.host}/team/never:1` })).rejects.toMatchObject({ code: 'UNAVAILABLE' })
  }, 120_000)

  test('that is private is given only to those whose credentials the registry accepts', async () => {
    const credentials = { username: 'jo', password: 'secret-word' }
    const origin = await registry({ auth: credentials })
    const source = staticCredentials({ [origin.host]: credentials })
    await push(origin.host, 'private/app:1', [await tarOf({ a: 100_000 })], source)
    const supernode = await startSupernode(cleanup)
    const [insider, outsider] = [await joinNode(cleanup, supernode), await joinNode(cleanup, supernode)]
    const reference = `${origin.host}/private/app:1`
    const handed = { username: 'jo', secret: 'secret-word' }

    const { image } = await indexAll(insider.control, reference, handed)
    await expect(outsider.control.call('image.resolve', { reference })).rejects.toMatchObject({ code: 'UNAUTHORIZED' })
    await expect(outsider.control.call('image.resolve', { reference, credentials: { username: 'jo', secret: 'wrong' } })).rejects.toMatchObject({ code: 'UNAUTHORIZED' })
    await expect(outsider.control.call('image.resolve', { reference, manifestDigest: image.manifestDigest })).rejects.toMatchObject({ code: 'UNAUTHORIZED' })
    const [chain] = chainIds([image.layers[0].diffId])
    await expect(outsider.control.call('chain.resolve', { chainId: chain })).rejects.toMatchObject({ code: 'NOT_FOUND' })
    const { layers: [{ index }] } = await insider.control.call('chain.resolve', { chainId: chain })
    await expect(outsider.control.call('grant.renew', { resources: [`layer:${index}`] })).rejects.toMatchObject({ code: 'FORBIDDEN' })
    expect((await insider.control.call('grant.renew', { resources: [`layer:${index}`, `layer:${digestOf('other')}`] })).grant).toBeTruthy()
  })

  test('of another registry cannot fish for a private layer by naming its digest', async () => {
    const credentials = { username: 'jo', password: 'secret-word' }
    const guarded = await registry({ auth: credentials })
    const open = await registry()
    const secret = await push(guarded.host, 'private/app:1', [await tarOf({ secret: 100_000 })], staticCredentials({ [guarded.host]: credentials }))
    const supernode = await startSupernode(cleanup)
    const node = await joinNode(cleanup, supernode)
    await indexAll(node.control, `${guarded.host}/private/app:1`, { username: 'jo', secret: 'secret-word' })

    // The same manifest elsewhere, over a registry that does not have the layer but lets the manifest be.
    const copied = await push(open.host, 'copy/app:1', [await tarOf({ secret: 100_000 })])
    expect(copied.layers[0].digest).toBe(secret.layers[0].digest)
    const client = new RegistryClient()
    cleanup.add(() => client.close())
    await fetch(`${open.url}/v2/copy/app/blobs/${secret.layers[0].digest}`, { method: 'DELETE' })
    const thief = await joinNode(cleanup, supernode)
    const image = await thief.control.call('image.resolve', { reference: `${open.host}/copy/app:1` })
    expect(image.layers[0].index).toBeUndefined()
    await expect(thief.control.call('layer.index', { reference: `${open.host}/copy/app:1`, manifestDigest: image.manifestDigest, layerDigest: secret.layers[0].digest })).rejects.toMatchObject({ code: 'NOT_FOUND' })
  })

  test('whose tag moved is seen to have moved', async () => {
    const origin = await registry()
    await push(origin.host, 'app:latest', [await tarOf({ a: 10_000 })])
    const supernode = await startSupernode(cleanup, { tagTtlMs: 0 })
    const { control } = await joinNode(cleanup, supernode)
    const before = await control.call('image.resolve', { reference: `${origin.host}/app` })
    const moved = await push(origin.host, 'app:latest', [await tarOf({ a: 10_000 }, 9)])
    expect((await control.call('image.resolve', { reference: `${origin.host}/app` })).manifestDigest).toBe(moved.manifestDigest)
    expect((await control.call('image.resolve', { reference: `${origin.host}/app`, manifestDigest: before.manifestDigest })).manifestDigest).toBe(before.manifestDigest)
  })

  test('that cannot be indexed says why, stores nothing, and is not downloaded again for the next node', async () => {
    const origin = await registry()
    const proxy = await countingProxy(cleanup, origin.port)
    const client = new RegistryClient()
    cleanup.add(() => client.close())
    const supernode = await startSupernode(cleanup)
    const node = await joinNode(cleanup, supernode)

    async function pushLayer(name: string, bytes: Buffer, diffId: string, mediaType: string = MEDIA_TYPES.ociLayerGzip): Promise<string> {
      const reference = parseReference(`${origin.host}/${name}`)
      const layer = await client.pushBlob(reference, bytes)
      const config = await client.pushBlob(reference, Buffer.from(JSON.stringify({ os: 'linux', architecture: 'amd64', rootfs: { type: 'layers', diff_ids: [diffId] } })))
      const manifest = { schemaVersion: 2, mediaType: MEDIA_TYPES.ociManifest, config: { mediaType: MEDIA_TYPES.ociConfig, ...config }, layers: [{ mediaType, ...layer }] }
      await client.pushManifest(reference, Buffer.from(JSON.stringify(manifest)), MEDIA_TYPES.ociManifest)
      return `${proxy.host}/${name}`
    }
    const tar = await tarOf({ file: 400_000 })
    const zipped = gzipSync(tar)
    const cases: [string, string, string][] = [
      ['INVALID_DATA', await pushLayer('truncated:1', zipped.subarray(0, zipped.length - 5_000), digestOf(tar)), 'truncated gzip'],
      ['INVALID_DATA', await pushLayer('no-tar:1', gzipSync(Buffer.alloc(100_000, 'no tar at all ')), digestOf(Buffer.alloc(100_000, 'no tar at all '))), 'no tar'],
      ['DIGEST_MISMATCH', await pushLayer('wrong-diffid:1', gzipSync(tar, { level: 1 }), digestOf('something else')), 'wrong diffID'],
      ['UNSUPPORTED', await pushLayer('model:1', Buffer.from('weights'), digestOf('weights'), 'application/vnd.example.model'), 'unknown media type'],
    ]
    for (const [code, reference] of cases) {
      await expect(indexAll(node.control, reference)).rejects.toMatchObject({ code })
      const received = proxy.received()
      await expect(indexAll(node.control, reference)).rejects.toMatchObject({ code })
      expect(proxy.received() - received).toBeLessThan(2_000)
    }
    expect(supernode.parts.store.list()).toEqual([])
    expect(supernode.parts.store.usage()).toMatchObject({ packedBytes: 0, rawBytes: 0, objectBytes: 0 })

    // A good image with the same bytes is not spoilt by the bad one.
    const good = await pushLayer('good:1', gzipSync(tar, { level: 1 }), digestOf(tar))
    expect((await indexAll(node.control, good)).layers).toHaveLength(1)
  })

  test('that was evicted is made again when a node asks for it', async () => {
    const origin = await registry()
    await push(origin.host, 'app:1', [await tarOf({ a: 200_000 })])
    const supernode = await startSupernode(cleanup)
    const { control } = await joinNode(cleanup, supernode)
    const { layers: [{ index }] } = await indexAll(control, `${origin.host}/app:1`)
    const { store, origin: layers } = supernode.parts
    await store.remove(`layer:${index}`)
    expect((await control.call('image.resolve', { reference: `${origin.host}/app:1` })).layers[0].index).toBeUndefined()
    const restored = await until(() => store.get(`layer:${index}`))
    expect(restored.whole).toBe(true)
    await until(() => layers.inWork().length === 0)
  })
})

describe('a stranger', () => {
  test('is told to say hello, and needs the join token where one is set', async () => {
    const supernode = await startSupernode(cleanup, { joinToken: 'only-friends' })
    await expect(joinNode(cleanup, supernode)).rejects.toMatchObject({ code: 'FORBIDDEN' })
    await expect(joinNode(cleanup, supernode, { joinToken: 'only-fiends!' })).rejects.toMatchObject({ code: 'FORBIDDEN' })
    const friend = await joinNode(cleanup, supernode, { joinToken: 'only-friends' })
    expect(friend.welcome.peerId).toBe(supernode.peerId)
    await expect(friend.control.call('image.resolve', { reference: 'not a reference' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  })
})
