// The failure policy, line by line: what a container and its user see when registry, supernode and peers go away, and when they come back.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { type LabNode, LabSupernode } from '../../bench/lab/cluster.ts'
import { LabRegistry } from '../../bench/lab/registry.ts'
import type { TrafficAnswer } from '../../node/api/answers.ts'
import { containerName, eventually, explainOn, hasBlob, lazyPull, NodeLab, OURS, runContainer, skimmer, untilWhole, whyNoNodes } from './node-lab.ts'
import { busyboxEntries, dir, file, layer, noise, type SampleImage } from './sample-image.ts'

const suite = whyNoNodes === '' ? describe : describe.skip

const FILE_BYTES = 2_000_000
const NAMES = ['a', 'b', 'c', 'd', 'e', 'f'].map((name) => `data/${name}`)
const sum = (name: string): string => createHash('sha256').update(noise(name, FILE_BYTES)).digest('hex')

suite(`the failure policy${whyNoNodes && ` (skipped: ${whyNoNodes})`}`, () => {
  let lab: NodeLab
  let image: SampleImage & { reference: string }
  /** Holds the whole image. */
  let whole: LabNode
  /** Has pulled it and fetches nothing that is not read. */
  let lean: LabNode
  /** The same; gives up soon. */
  let hasty: LabNode
  const lasting = new Map<LabNode, string>()

  /** A container that stays, for commands. */
  const startLasting = async (node: LabNode): Promise<void> => {
    const name = containerName('lasting')
    lasting.set(node, name)
    await node.containerd!.ctr(['run', '--detach', ...OURS, image.reference, name, '/bin/sleep', '100000'])
  }
  const hash = async (node: LabNode, name: string): Promise<{ said: string; code: number }> => {
    for (let again = 2; ; again--) {
      const { stdout, stderr, code } = await node.containerd!.ctr(['tasks', 'exec', '--exec-id', containerName('exec'), lasting.get(node)!, '/bin/sha256sum', `/${name}`], { mayFail: true, timeoutMs: 60_000 })
      // ctr 1.6 sometimes loses all output of a command that ends at once: then it says nothing and that all is well, which sha256sum never does.
      if (code !== 0 || stdout + stderr !== '' || again === 0) return { said: stdout + stderr, code }
    }
  }
  const reads = async (node: LabNode, ...names: string[]): Promise<void> => {
    for (const name of names) expect(await hash(node, name)).toEqual({ said: `${sum(name)}  /${name}\n`, code: 0 })
  }
  const sources = async (node: LabNode): Promise<TrafficAnswer['sources']> => (await node.api<TrafficAnswer>('/v1/traffic')).sources

  beforeAll(async () => {
    lab = await NodeLab.start({ nodes: ['whole', 'lean', 'hasty', 'late', 'alone'] })
    image = await lab.push('app', [layer(busyboxEntries()), ...NAMES.map((name) => layer([dir('data'), file(name, noise(name, FILE_BYTES))], 'none'))])
    await lab.supernode.preheat(image.reference)
    whole = await lab.startNode('whole')
    lean = await lab.startNode('lean', { flags: ['--prefetch-enabled', 'false'] })
    hasty = await lab.startNode('hasty', { flags: ['--prefetch-enabled', 'false', '--demand-timeout', '2s'] })
    for (const node of [whole, lean, hasty]) await lazyPull(node, image.reference)
    await startLasting(lean)
    await startLasting(hasty)
    await runContainer(whole, image.reference)
    await untilWhole(whole, image.reference)
    await reads(hasty, 'data/a')
  }, 120_000)
  afterAll(() => lab?.stop())

  test('the registry is gone: what the datacenter has indexed is read on, started anew, and mounted where it never was', async () => {
    lab.registry.process.child.kill('SIGKILL')
    await reads(lean, 'data/a', 'data/b')
    expect(await runContainer(lean, image.reference)).toBe('hello from the lowest layer\n')
    // containerd itself wants manifest and config from the registry for a pull; our own mount does not.
    const late = await lab.startNode('late', { containerd: false })
    const directory = join(late.directory, 'mounted')
    mkdirSync(directory)
    const { stderr, code } = await skimmer(late, 'mount', image.reference, directory)
    expect({ stderr, code }).toEqual({ stderr: '', code: 0 })
    const { stdout } = await late.host.run(['sha256sum', join(directory, 'data/c')])
    expect(stdout.slice(0, 64)).toBe(sum('data/c'))
    expect((await skimmer(late, 'umount', directory)).code).toBe(0)
    await late.process.stop(30_000)
  }, 60_000)

  test('the supernode is gone too: running containers do not notice, peers serve, and who holds the image starts it again', async () => {
    const before = await sources(lean)
    lab.supernode.process.child.kill('SIGKILL')
    await eventually(() => expect(lab.supernode.process.running).toBe(false))
    await reads(lean, 'data/c', 'data/d')
    const after = await sources(lean)
    expect(after.peer - before.peer).toBeGreaterThanOrEqual(2 * FILE_BYTES)
    expect(after.supernode).toBe(before.supernode)
    expect(await runContainer(whole, image.reference)).toBe('hello from the lowest layer\n')
    expect(await runContainer(lean, image.reference)).toBe('hello from the lowest layer\n')
    expect((await explainOn(lean)).readFailures).toEqual([])
  }, 60_000)

  test('everything is gone: what is here is read; what is not fails within the bounded wait, and `skimmer explain` says why', async () => {
    for (const node of [whole, lean]) {
      await node.containerd!.stop()
      await node.process.stop(30_000)
    }
    await reads(hasty, 'data/a')
    const missing = await hash(hasty, 'data/f')
    expect(missing.code).not.toBe(0)
    expect(missing.said).toMatch(/input\/output error/i)
    await reads(hasty, 'data/a')
    const { readFailures } = await explainOn(hasty)
    expect(readFailures.length).toBeGreaterThan(0)
    for (const { waitedMs } of readFailures) expect(waitedMs).toBeLessThan(2_000 + 5_000 + 1_000)
    const { stdout, code } = await skimmer(hasty, 'explain')
    expect(code).toBe(0)
    expect(stdout).toMatch(/a read failed at \S+ after .+: .*(registry|supernode|peer)/i)
    expect(hasty.process.running).toBe(true)
  }, 90_000)

  test('and when they are back, the same container reads on', async () => {
    await LabRegistry.start(lab.registry.host, { storage: join(lab.directory, 'registry/data'), directory: join(lab.directory, 'registry') })
    await LabSupernode.start(lab.supernode.host, { directory: join(lab.directory, 'supernode'), plainHttp: [lab.registry.address] })
    await eventually(() => reads(hasty, 'data/f'), 45_000)
    await reads(hasty, ...NAMES)
  }, 90_000)

  test('without any supernode a node indexes images by itself', async () => {
    const alone = await lab.startNode('alone', { supernode: false })
    await lazyPull(alone, image.reference)
    for (const { digest } of image.layers) expect(await hasBlob(alone, digest)).toBe(false)
    expect(await runContainer(alone, image.reference)).toBe('hello from the lowest layer\n')
    await untilWhole(alone, image.reference)
    expect((await explainOn(alone)).snapshots.every(({ lazy }) => lazy)).toBe(true)
    expect(readFileSync(join(alone.directory, 'node.log'), 'utf8')).not.toContain('"level":50')
  }, 60_000)
})
