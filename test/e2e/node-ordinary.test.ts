// Images that cannot be served lazily: containerd unpacks them through the same snapshotter, and `skimmer explain` says why.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import type { LabNode } from '../../bench/lab/cluster.ts'
import { chainIds } from '../../oci/chain-id.ts'
import { collectGarbage, eventually, explainOn, hasBlob, imageMounts, lazyPull, NodeLab, runContainer, skimmer, whyNoNodes } from './node-lab.ts'
import { busyboxEntries, dir, file, layer, longWindowLayer, noise } from './sample-image.ts'

const suite = whyNoNodes === '' ? describe : describe.skip

suite(`an image that cannot be indexed${whyNoNodes && ` (skipped: ${whyNoNodes})`}`, () => {
  let lab: NodeLab
  let node: LabNode

  beforeAll(async () => {
    lab = await NodeLab.start({ nodes: ['n1'] })
    node = await lab.startNode('n1')
  })
  afterAll(() => lab?.stop())

  test('is unpacked by containerd, all of it; its containers run, and `skimmer explain` says why', async () => {
    const odd = await lab.push('odd', [layer(busyboxEntries()), longWindowLayer([dir('odd'), file('odd/file', noise('odd', 300_000))]), layer([file('etc/motd', 'hello from above the odd layer\n')])])
    await lazyPull(node, odd.reference)
    for (const { digest } of odd.layers) expect(await hasBlob(node, digest)).toBe(true)
    expect(await runContainer(node, odd.reference)).toBe('hello from above the odd layer\n')
    expect(await runContainer(node, odd.reference, '/bin/sh', '-c', 'ls /odd; wc -c < /odd/file')).toBe('file\n300000\n')
    expect(imageMounts(node)).toEqual([])

    const { stdout, code } = await skimmer(node, 'explain')
    expect(code).toBe(0)
    const lines = stdout.trim().split('\n')
    expect(lines.filter((line) => line.startsWith('ordinary  committed'))).toHaveLength(3)
    expect(stdout).toMatch(/zstd: a frame of the layer wants a window of 268435456 bytes/)

    await node.containerd!.ctr(['images', 'rm', '--sync', odd.reference])
    await collectGarbage(node)
    await eventually(async () => expect((await explainOn(node)).snapshots).toEqual([]))
  })

  test('and that containerd cannot unpack either is refused with containerd\'s own words; nothing is left of it', async () => {
    const impossible = await lab.push('impossible', [layer(busyboxEntries()), layer([file('n'.repeat(300), 'x')])])
    await expect(lazyPull(node, impossible.reference)).rejects.toThrow('file name too long')
    await collectGarbage(node)
    await eventually(async () => expect((await explainOn(node)).snapshots.filter(({ name }) => name.endsWith(chainIds(impossible.diffIds).at(-1)!))).toEqual([]))
    expect((await skimmer(node, 'mount', impossible.reference, `${node.directory}/nowhere`)).code).toBe(6)
  })

  test('does not keep others from being lazy', async () => {
    const plain = await lab.push('plain', [layer(busyboxEntries()), layer([file('etc/motd', 'lazy again\n')])])
    await lazyPull(node, plain.reference)
    expect(await runContainer(node, plain.reference)).toBe('lazy again\n')
    const top = (await explainOn(node)).snapshots.find(({ name }) => name.endsWith(chainIds(plain.diffIds).at(-1)!))
    expect(top).toMatchObject({ lazy: true })
  })
})
