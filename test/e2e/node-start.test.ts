// An unmodified image starts lazily, end to end: real registry, supernode, node daemon, containerd and runc.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { createHash } from 'node:crypto'
import type { LabNode } from '../../bench/lab/cluster.ts'
import { run } from '../../bench/lab/process.ts'
import { chainIds } from '../../oci/chain-id.ts'
import { ContainerdSnapshots } from './containerd-snapshots.ts'
import { collectGarbage, containerName, eventually, explainOn, hasBlob, imageMounts, imageOn, lazyPull, NodeLab, OURS, runContainer, untilWhole, whyNoNodes, withView } from './node-lab.ts'
import { busyboxEntries, file, layer, noise, type SampleImage, variedLayers } from './sample-image.ts'
import { treeDifferences, walkTrees } from './tree-walk.ts'

const topOf = (image: SampleImage): string => chainIds(image.diffIds).at(-1)!
const suite = whyNoNodes === '' ? describe : describe.skip

suite(`an image starts lazily${whyNoNodes && ` (skipped: ${whyNoNodes})`}`, () => {
  let lab: NodeLab
  let node: LabNode
  let image: SampleImage & { reference: string }
  const started = Date.now()
  const ctr = async (...argv: string[]): Promise<string> => (await node.containerd!.ctr(argv)).stdout
  const snapshotNames = async (): Promise<string[]> => (await explainOn(node)).snapshots.map(({ name }) => name)

  beforeAll(async () => {
    lab = await NodeLab.start({ nodes: ['n1'] })
    image = await lab.push('varied', variedLayers())
    node = await lab.startNode('n1')
  })
  afterAll(() => lab?.stop())

  test('one that nobody has seen: no layer is downloaded by containerd, and the container says the right thing', async () => {
    await lazyPull(node, image.reference)
    for (const { digest } of image.layers) expect(await hasBlob(node, digest)).toBe(false)
    expect(await runContainer(node, image.reference)).toBe('hello from the top layer\n')
    expect(await runContainer(node, image.reference, '/bin/sh', '-c', 'cat /replaced; ls /hidden; test -e /gone || echo gone; echo mine > /data/mine; cat /data/mine')).toBe('new\nabove\ngone\nmine\n')
    const explained = await explainOn(node)
    expect(explained.snapshots.every(({ lazy }) => lazy)).toBe(true)
    expect(explained.readFailures).toEqual([])
  })

  test('its tree is the one that a full pull unpacks', async () => {
    await ctr('images', 'pull', '--plain-http', '--snapshotter', 'overlayfs', image.reference)
    const differences = await withView(node, 'skimmer', topOf(image), (ours) =>
      withView(node, 'overlayfs', topOf(image), async (ordinary) => {
        const [a, b] = await walkTrees([ours, ordinary])
        expect(Object.keys(a).length).toBeGreaterThan(480)
        return treeDifferences(a, b, started).slice(0, 20)
      }))
    expect(differences).toEqual([])
  })

  test('the rest of it comes in the background, and every layer is proved', async () => {
    await untilWhole(node, image.reference)
    const { layers } = await imageOn(node, image.reference)
    expect(layers.map(({ diffId }) => diffId)).toEqual(image.diffIds)
    expect(layers.map(({ layerDigest }) => layerDigest)).toEqual(image.layers.map(({ digest }) => digest))
  })

  test('two containers of one image share its mount and not their changes', async () => {
    const names = [containerName('one'), containerName('two')]
    for (const name of names) {
      await ctr('run', '--detach', ...OURS, image.reference, name, '/bin/sh', '-c', `echo ${name} > /own; while :; do sleep 1; done`)
    }
    expect(imageMounts(node)).toHaveLength(1)
    for (const name of names) await eventually(async () => expect(await ctr('tasks', 'exec', '--exec-id', `e${Math.random()}`, name, '/bin/cat', '/own')).toBe(`${name}\n`))
    for (const name of names) await ctr('tasks', 'rm', '--force', name)
    for (const name of names) await ctr('containers', 'rm', name)
    await collectGarbage(node)
    await eventually(() => expect(imageMounts(node)).toEqual([]))
  })

  test('an image that shares layers with it brings only its own; beside them one that ctr unpacked itself works too', async () => {
    const sibling = await lab.push('sibling', [...variedLayers().slice(0, 3), layer([file('own', noise('own', 100_000)), file('etc/motd', 'hello from the sibling\n')])])
    expect(sibling.diffIds.slice(0, 3)).toEqual(image.diffIds.slice(0, 3))
    const before = await snapshotNames()
    await lazyPull(node, sibling.reference)
    expect((await snapshotNames()).filter((name) => !before.includes(name))).toEqual([expect.stringMatching(new RegExp(`${topOf(sibling)}$`))])
    expect(await runContainer(node, sibling.reference)).toBe('hello from the sibling\n')
    expect(await runContainer(node, image.reference)).toBe('hello from the top layer\n')
    // This containerd's `ctr images pull` unpacks by itself and says nothing of chains to the snapshotter.
    await ctr('--namespace', 'other', 'images', 'pull', '--plain-http', ...OURS, image.reference)
    expect(await ctr('--namespace', 'other', 'run', '--rm', ...OURS, image.reference, containerName('c'))).toBe('hello from the top layer\n')
    await ctr('--namespace', 'other', 'images', 'rm', '--sync', image.reference)
    await ctr('images', 'rm', '--sync', sibling.reference)
    await eventually(async () => expect((await snapshotNames()).filter((name) => name.endsWith(topOf(sibling)))).toEqual([]))
    expect(await runContainer(node, image.reference)).toBe('hello from the top layer\n')
  })

  test('who names a chain ID alone gets the image lazily if the datacenter knows it, as CRI does in its default configuration', async () => {
    const known = await lab.push('known', [layer([...busyboxEntries(), file('only', 'known by its chain\n')]), layer([file('second', noise('second', 3_000_000))])])
    await lab.supernode.preheat(known.reference)
    const client = new ContainerdSnapshots(node.containerd!.address, 'chain', 'keep')
    try {
      await ctr('--namespace', 'chain', 'leases', 'create', '--id', 'keep')
      const chains = chainIds(known.diffIds)
      for (const [at, chainId] of chains.entries()) expect(await client.prepareLayer(chainId, chains[at - 1] ?? '')).toBe('ALREADY_EXISTS')
      expect((await explainOn(node)).snapshots.filter(({ name }) => chains.some((chainId) => name.endsWith(chainId))).map(({ lazy }) => lazy)).toEqual([true, true])
      expect(await client.prepareLayer(`sha256:${'12'.repeat(32)}`, '')).toBe('OK')
      await ctr('--namespace', 'chain', 'leases', 'rm', '--sync', 'keep')
    } finally {
      client.close()
    }
    // Now that its layers are known here, a pull through the same containerd finds them.
    await lazyPull(node, known.reference)
    expect(await runContainer(node, known.reference, '/bin/cat', '/only')).toBe('known by its chain\n')
    await ctr('images', 'rm', '--sync', known.reference)
  })

  test('changes over a lazy image are committed, and containers start on them', async () => {
    const directory = `${node.directory}/edit`
    const edit = async (key: string, parent: string, script: string): Promise<string> => {
      const { stdout } = await eventually(async () => {
        const mounts = await node.containerd!.ctr(['snapshots', ...OURS, 'prepare', '--target', directory, key, parent])
        await ctr('snapshots', ...OURS, 'label', key, 'containerd.io/gc.root=kept')
        return mounts
      })
      await run(['sh', '-c', `mkdir -p ${directory} && ${stdout}`])
      try {
        return (await run(['sh', '-ec', `cd ${directory}; ${script}`])).stdout
      } finally {
        await run(['umount', directory])
      }
    }
    await edit('edit', topOf(image), 'echo mine > mine; rm etc/motd; echo more >> data/large')
    await ctr('snapshots', ...OURS, 'commit', 'committed', 'edit')
    await ctr('snapshots', ...OURS, 'label', 'committed', 'containerd.io/gc.root=kept')
    const sum = createHash('sha256').update(noise('large', 6_000_000)).digest('hex')
    expect(await edit('again', 'committed', 'cat mine; test ! -e etc/motd; tail -c 5 data/large; head -c 6000000 data/large | sha256sum; echo changed > replaced; cat replaced top')).toBe(`mine\nmore\n${sum}  -\nchanged\ntop\n`)
    for (const key of ['again', 'committed']) await ctr('snapshots', ...OURS, 'rm', key)
    await collectGarbage(node)
    await eventually(() => expect(imageMounts(node)).toEqual([]))
  })

  test('`ctr images rm` and garbage collection take snapshots, mounts and background work away; a later pull works again', async () => {
    const last = containerName('last')
    await ctr('run', '--detach', ...OURS, image.reference, last, '/bin/sleep', '1000')
    await ctr('images', 'rm', '--sync', image.reference)
    // A running container keeps its image.
    expect(await ctr('tasks', 'exec', '--exec-id', 'e', last, '/bin/cat', '/top')).toBe('top\n')
    await ctr('tasks', 'rm', '--force', last)
    await ctr('containers', 'rm', last)
    await collectGarbage(node)
    await eventually(async () => expect(await snapshotNames()).toEqual([]))
    await eventually(() => expect(imageMounts(node)).toEqual([]))
    await lazyPull(node, image.reference)
    expect(await runContainer(node, image.reference)).toBe('hello from the top layer\n')
  })
})
