// The commands a person types on a node, and every way of mounting: the same tree, plain lines on a pipe, exit codes that mean something.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { existsSync, mkdirSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { type LabNode, skimmerArgv } from '../../bench/lab/cluster.ts'
import { run } from '../../bench/lab/process.ts'
import { tryErofs } from '../../blockdev/capabilities.ts'
import type { ImageAnswer, StatusAnswer } from '../../node/api/answers.ts'
import { daemonPid, eventually, imageMounts, NodeLab, skimmer, untilServing, untilWhole, whyNoNodes } from './node-lab.ts'
import { type SampleImage, variedLayers } from './sample-image.ts'
import { treeDifferences, walkTrees } from './tree-walk.ts'

const suite = whyNoNodes === '' ? describe : describe.skip
/** The supernode's API, asked on its own host. */
const HERE = 'http://127.0.0.1:4981'
const whyNoLoop = whyNoNodes || (await tryErofs('loop', '/tmp'))

suite(`commands${whyNoNodes && ` (skipped: ${whyNoNodes})`}`, () => {
  let lab: NodeLab
  let node: LabNode
  let image: SampleImage & { reference: string }
  let directory: string

  beforeAll(async () => {
    lab = await NodeLab.start({ nodes: ['n1', 'loop', 'fuse', 'fuse-native'] })
    image = await lab.push('varied', variedLayers())
    node = await lab.startNode('n1', { containerd: false })
    directory = join(lab.directory, 'here', 'mounted')
  })
  afterAll(() => lab?.stop())

  test('preheat pulls and indexes, with plain lines on a pipe', async () => {
    const preheat = (url: string, reference: string) => lab.supernode.host.run(skimmerArgv('preheat', '--supernode', url, reference), { mayFail: true })
    const { stdout, stderr, code } = await preheat(HERE, image.reference)
    expect({ stdout, stderr, code }).toMatchObject({ stdout: `${image.reference} is indexed and held\n`, code: 0 })
    expect(stderr).not.toContain('\u001b')
    const missing = await preheat(HERE, `${lab.registry.address}/test/none:latest`)
    expect(missing.code).toBe(3)
    expect(missing.stderr).toMatch(/^skimmer: .*none/)
    // Without a token only the supernode's own host may.
    expect((await preheat(lab.supernode.url, image.reference)).code).toBe(4)
  })

  test('mount makes a directory and mounts the image there; the daemon may die; umount ends it', async () => {
    const mounted = await skimmer(node, 'mount', image.reference, directory)
    expect(mounted).toMatchObject({ code: 0, stdout: `${image.reference} is mounted at ${directory}\n`, stderr: '' })
    expect((await run(['cat', join(directory, 'etc/motd')])).stdout).toBe('hello from the top layer\n')
    expect((await run(['sh', '-c', `echo x > ${directory}/etc/motd`], { mayFail: true })).stderr).toMatch(/read-only/i)
    expect((await skimmer(node, 'mount', image.reference, directory)).code).toBe(1)

    const pid = daemonPid(node)!
    process.kill(pid, 'SIGKILL')
    expect((await run(['cat', join(directory, 'replaced')])).stdout).toBe('new\n')
    await untilServing(node, pid)
    expect(await skimmer(node, 'umount', directory)).toMatchObject({ code: 0, stdout: '', stderr: '' })
    expect(readdirSync(directory)).toEqual([])
    expect(imageMounts(node)).toEqual([])
    expect((await skimmer(node, 'umount', directory)).code).toBe(3)
  })

  test('inspect says what the image is made of and what of it is here; status what the node holds', async () => {
    await skimmer(node, 'mount', image.reference, directory)
    await untilWhole(node, image.reference)
    const inspected = await skimmer(node, 'inspect', image.reference)
    expect(inspected.code).toBe(0)
    expect(inspected.stdout).toContain(`${image.layers.length} layers`)
    expect(inspected.stdout.match(/whole, proved/g)).toHaveLength(image.layers.length)
    const { layers } = JSON.parse((await skimmer(node, 'inspect', '--json', image.reference)).stdout) as ImageAnswer
    expect(layers.map(({ diffId, layerDigest, layerSize }) => ({ diffId, layerDigest, layerSize }))).toEqual(image.layers.map(({ digest, size }, at) => ({ diffId: image.diffIds[at], layerDigest: digest, layerSize: size })))

    const status = await skimmer(node, 'status')
    expect(status.stdout).toMatch(/4 layers, .* whole and proved, 1 in use/)
    expect(status.stdout).not.toContain('\u001b')
    const known = JSON.parse((await skimmer(node, 'status', '--json')).stdout) as StatusAnswer
    expect(known.supernodes).toMatchObject([{ connected: true }])
    expect((await skimmer(node, 'explain')).stdout).toBe('no snapshots\n')
    await skimmer(node, 'umount', directory)
  })

  test('mistakes are told apart by their exit codes', async () => {
    const code = async (...words: string[]): Promise<number> => (await skimmer(node, ...words)).code
    expect(await code('mount', 'NOT A REFERENCE', directory)).toBe(2)
    expect(await code('mount', `${lab.registry.address}/test/none:latest`, directory)).toBe(3)
    expect(await code('inspect', `${lab.registry.address}/test/none:latest`)).toBe(3)
    expect(await code('status', '--socket', '/nowhere/api.sock')).toBe(5)
    expect(await code('mount')).toBe(2)
    expect(await code('no-such-command')).toBe(2)
    const second = await node.host.run(skimmerArgv('node', '--root', join(node.directory, 'data'), '--run', join(node.directory, 'run')), { mayFail: true })
    expect(second).toMatchObject({ code: 1 })
    expect(second.stderr).toMatch(/a supervisor runs already/)
  })

  for (const mode of ['loop', 'fuse', 'fuse-native'] as const) {
    const why = mode === 'loop' ? whyNoLoop : ''
    const testHere = why === '' ? test : test.skip
    testHere(`--fuse-mode ${mode} serves the same tree${why && ` (skipped: ${why})`}`, async () => {
      const other = await lab.startNode(mode, { containerd: false, flags: ['--fuse-mode', mode] })
      const there = join(lab.directory, 'there')
      mkdirSync(there, { recursive: true })
      for (const [on, at] of [[node, directory], [other, there]] as const) {
        const { code, stderr } = await skimmer(on, 'mount', image.reference, at)
        expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
      }
      try {
        const [expected, actual] = await walkTrees([directory, there])
        // The fuse-native package has times in milliseconds, and inode numbers by path.
        if (mode === 'fuse-native') for (const facts of Object.values(expected)) facts.mtime = `${BigInt(facts.mtime) / 1_000_000n}000000`
        const differences = treeDifferences(actual, expected, Date.now()).filter((line) => mode !== 'fuse-native' || !line.includes('share an inode'))
        expect(differences.slice(0, 20)).toEqual([])
      } finally {
        for (const [on, at] of [[node, directory], [other, there]] as const) await skimmer(on, 'umount', at)
      }
      await other.process.stop(30_000)
      expect(existsSync(join(other.directory, 'run/api.sock'))).toBe(false)
      await eventually(() => expect(imageMounts(other)).toEqual([]))
    })
  }
})
