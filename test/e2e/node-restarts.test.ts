// Whatever restarts under a container - the daemon by kill -9 or upgrade, containerd - its reads see a pause and no error.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { createHash } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { LabNode } from '../../bench/lab/cluster.ts'
import { containerName, daemonPid, eventually, explainOn, imageMounts, lazyPull, NodeLab, OURS, runContainer, untilServing, untilWhole, whyNoNodes } from './node-lab.ts'
import { busyboxEntries, dir, file, layer, noise, type SampleImage } from './sample-image.ts'

const suite = whyNoNodes === '' ? describe : describe.skip

const KILLS = 20
const FILE_BYTES = 512 * 1024
/** Slow enough that the reader still waits for blocks at the last kill. */
const SLOW_MBIT = 40
const FAST_MBIT = 2000

const names = (directory: string, count: number): string[] => Array.from({ length: count }, (_, i) => `${directory}/${String(i).padStart(3, '0')}`)
const FIRST = names('first', 100)
const SECOND = names('second', 40)
const sums = (paths: readonly string[]): string => paths.map((path) => `${createHash('sha256').update(noise(path, FILE_BYTES)).digest('hex')}  /${path}\n`).join('')

/** A container that hashes every file of a directory, a line each; its output grows in a file. */
class Reader {
  readonly name = containerName('reader')
  readonly #node: LabNode
  readonly #output: string

  constructor(node: LabNode) {
    this.#node = node
    this.#output = join(node.directory, `${this.name}.out`)
  }

  async start(reference: string, directory: string): Promise<this> {
    await this.#node.containerd!.ctr(['run', '--detach', '--log-uri', `file://${this.#output}`, ...OURS, reference, this.name, '/bin/sh', '-c', `for f in /${directory}/*; do sha256sum $f; done; echo the end`])
    return this
  }

  get output(): string {
    return existsSync(this.#output) ? readFileSync(this.#output, 'utf8') : ''
  }

  get ended(): boolean {
    return this.output.endsWith('the end\n')
  }

  /** Waits until it has read more than it had; false when it ended before. */
  async reads(): Promise<boolean> {
    const before = this.output.length
    await eventually(() => {
      if (this.output.length === before) throw new Error(`the reader stands still after ${before} bytes of output\n${this.#node.process.tail()}`)
    }, 40_000)
    return !this.ended
  }

  async end(): Promise<string> {
    await eventually(() => {
      if (!this.ended) throw new Error(`the reader did not end:\n${this.output.slice(-200)}\n${this.#node.process.tail()}`)
    }, 60_000)
    await this.#node.containerd!.ctr(['tasks', 'rm', '--force', this.name])
    await this.#node.containerd!.ctr(['containers', 'rm', this.name])
    return this.output.slice(0, -'the end\n'.length)
  }
}

suite(`nothing that restarts is noticed${whyNoNodes && ` (skipped: ${whyNoNodes})`}`, () => {
  let lab: NodeLab
  let node: LabNode
  let image: SampleImage & { reference: string }

  beforeAll(async () => {
    lab = await NodeLab.start({ nodes: ['n1'] })
    const data = (paths: string[]) => layer([dir(paths[0].split('/')[0]), ...paths.map((path) => file(path, noise(path, FILE_BYTES)))], 'none')
    image = await lab.push('big', [layer(busyboxEntries()), data(FIRST), data(SECOND)])
    await lab.supernode.preheat(image.reference)
    node = await lab.startNode('n1', { flags: ['--prefetch-enabled', 'false'] })
    await lazyPull(node, image.reference)
    await node.host.setRate(SLOW_MBIT)
  })
  afterAll(() => lab?.stop())

  test(`a container reads the whole image while the daemon is killed ${KILLS} times`, async () => {
    const reader = await new Reader(node).start(image.reference, 'first')
    let kills = 0
    for (let pid = await untilServing(node); kills < KILLS && (await reader.reads()); pid = await untilServing(node, pid)) {
      process.kill(pid, 'SIGKILL')
      kills++
    }
    await node.host.setRate(FAST_MBIT)
    expect(kills).toBe(KILLS)
    expect(await reader.end()).toBe(sums(FIRST))
    expect((await explainOn(node)).readFailures).toEqual([])
  }, 120_000)

  test('upgrades and restarts of containerd while a container reads; snapshots and mounts survive them', async () => {
    await node.host.setRate(SLOW_MBIT)
    const reader = await new Reader(node).start(image.reference, 'second')
    const snapshots = async () => (await explainOn(node)).snapshots.toSorted((a, b) => (a.name < b.name ? -1 : 1))
    const before = await snapshots()
    for (let upgrade = 0; upgrade < 2; upgrade++) {
      expect(await reader.reads()).toBe(true)
      const pid = await untilServing(node)
      process.kill(node.process.child.pid!, 'SIGHUP')
      await untilServing(node, pid)
    }
    expect(await reader.reads()).toBe(true)
    await node.containerd!.restart({ kill: true })
    expect(await reader.reads()).toBe(true)
    await node.containerd!.restart()
    await node.host.setRate(FAST_MBIT)
    expect(await snapshots()).toEqual(before)
    expect(imageMounts(node)).toHaveLength(1)
    expect(await reader.end()).toBe(sums(SECOND))
    expect(await runContainer(node, image.reference, '/bin/cat', '/etc/motd')).toBe('hello from the lowest layer\n')
  }, 90_000)

  test('containerd pulls and removes while the daemon is away for a moment: its calls wait', async () => {
    await node.containerd!.ctr(['images', 'rm', '--sync', image.reference])
    // A call in the air is lost with the daemon, as with any; those made from its death on wait for the next one.
    const kill = async (): Promise<void> => {
      const pid = await untilServing(node)
      process.kill(pid, 'SIGKILL')
      await eventually(() => expect(daemonPid(node)).not.toBe(pid))
    }
    await kill()
    await lazyPull(node, image.reference)
    expect(await runContainer(node, image.reference)).toBe('hello from the lowest layer\n')
    await kill()
    await node.containerd!.ctr(['images', 'rm', '--sync', image.reference])
    await eventually(async () => expect((await explainOn(node)).snapshots).toEqual([]))
    await eventually(() => expect(imageMounts(node)).toEqual([]))
  }, 90_000)

  test('a node that was stopped and started again holds what it held', async () => {
    await lazyPull(node, image.reference)
    await node.containerd!.stop()
    await node.process.stop(40_000)
    const again = await lab.startNode('n1')
    expect(await runContainer(again, image.reference)).toBe('hello from the lowest layer\n')
    await untilWhole(again, image.reference)
  }, 90_000)
})
