// Bench "proxy": an ordinary pull by containerd on six nodes at once over 200 Mbit/s links, through the registry proxy against straight.
import { mkdirSync, writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { join } from 'node:path'
import { formatDuration } from '../command-line/units.ts'
import { makeBulkImage } from './lab/bulk-image.ts'
import { LabContainerd } from './lab/containerd.ts'
import { Datacenter } from './lab/datacenter.ts'
import type { LabHost } from './lab/network.ts'
import type { BenchContext, BenchResult } from './run.ts'

const MBIT = 200
const CROWD = ['n1', 'n2', 'n3', 'n4', 'n5', 'n6']
const PROXY = '127.0.0.1:4001'
/** The one node's pull is measured so often, each time with everything new, and the median counts: a few percent are asked for. */
const ROUNDS = 3

export async function benchProxy(context: BenchContext): Promise<BenchResult> {
  const singles = Array.from({ length: ROUNDS }, (_, round) => `alone${round}`)
  const straightMs: number[] = []
  const throughMs: number[] = []
  for (const name of singles) {
    // The swarm must be empty each time: a supernode that has seen the image would be faster than the registry.
    const single = await Lab.start(context, [name])
    try {
      straightMs.push((await single.straight([name]))[0])
      throughMs.push((await single.through([name]))[0])
      context.say(`one node: straight ${formatDuration(straightMs.at(-1)!)}, by proxy ${formatDuration(throughMs.at(-1)!)}`)
    } finally {
      await single.stop()
    }
  }
  const lab = await Lab.start(context, CROWD)
  try {
    const straight = Math.max(...await lab.straight(CROWD))
    context.say(`six nodes straight: ${formatDuration(straight)}`)
    const times = await lab.through(CROWD)
    context.say(`six nodes by proxy: ${times.map((time) => formatDuration(time)).join(', ')}`)
    const through = Math.max(...times)
    const proxy = { timeRatio: through / straight, registryCopies: lab.copiesThrough, singleNodeRatio: median(throughMs) / median(straightMs) }
    return {
      json: { proxy },
      lines: [
        `proxy: six nodes pull a 200 MB image: ${formatDuration(through)} by proxy, ${formatDuration(straight)} straight: ratio ${proxy.timeRatio.toFixed(3)} (goal 0.3 at most)`,
        `proxy: meanwhile this machine's processors, which stand in for those of eight machines, were idle for ${(lab.idleThrough * 100).toFixed(0)} % of the time`,
        `proxy: ${proxy.registryCopies.toFixed(3)} copies left the registry (goal 1.0)`,
        `proxy: one node, empty swarm: ${formatDuration(median(throughMs))} by proxy, ${formatDuration(median(straightMs))} straight: ratio ${proxy.singleNodeRatio.toFixed(3)} (goal 1.05 at most; median of ${ROUNDS})`,
      ],
    }
  } finally {
    await lab.stop()
  }
}

const median = (values: readonly number[]): number => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]

/** Milliseconds since the machine started, over all processors. */
function processorTimes(): { idle: number; all: number } {
  const sum = { idle: 0, all: 0 }
  for (const { times } of cpus()) {
    sum.idle += times.idle
    sum.all += times.user + times.nice + times.sys + times.idle + times.irq
  }
  return sum
}

class Lab {
  readonly #context: BenchContext
  readonly #datacenter: Datacenter
  readonly #containerds: LabContainerd[] = []
  /** Copies of the image that left the registry while it was pulled by proxy. */
  copiesThrough = 0
  /** The part of the processors' time meanwhile in which they had nothing to do. */
  idleThrough = 0

  private constructor(context: BenchContext, datacenter: Datacenter) {
    this.#context = context
    this.#datacenter = datacenter
  }

  static async start(context: BenchContext, nodes: readonly string[]): Promise<Lab> {
    return new Lab(context, await Datacenter.start({ ...context, mbit: MBIT, nodes, make: makeBulkImage }))
  }

  /** Milliseconds of each node's pull from the registry itself, all at once. */
  async straight(names: readonly string[]): Promise<number[]> {
    const containerds = await this.#containerdsOf(names, 'straight')
    return await this.#pull(containerds, ['--plain-http'])
  }

  /** The same through the proxy of each node's daemon, with containerd's own mirror configuration. */
  async through(names: readonly string[]): Promise<number[]> {
    const { registry, directory, network } = this.#datacenter
    const copies = (): number => this.#datacenter.registryCopies([...network.hosts.values()])
    for (const name of names) await this.#datacenter.startNode(name, { containerd: false, flags: ['--proxy-listen', PROXY] })
    const containerds = await this.#containerdsOf(names, 'through')
    const hosts = join(directory, 'certs.d')
    mkdirSync(join(hosts, registry.address), { recursive: true })
    writeFileSync(join(hosts, registry.address, 'hosts.toml'), `server = "http://${registry.address}"\n\n[host."http://${PROXY}"]\n  capabilities = ["pull", "resolve"]\n`)
    const before = { copies: copies(), processors: processorTimes() }
    const times = await this.#pull(containerds, ['--hosts-dir', hosts])
    this.copiesThrough = copies() - before.copies
    const after = processorTimes()
    this.idleThrough = (after.idle - before.processors.idle) / (after.all - before.processors.all)
    return times
  }

  async #containerdsOf(names: readonly string[], kind: string): Promise<LabContainerd[]> {
    const started = await Promise.all(names.map((name) => LabContainerd.start({ directory: join(this.#datacenter.directory, `${kind}-${name}`), host: this.#host(name) })))
    this.#containerds.push(...started)
    return started
  }

  #host(name: string): LabHost {
    return this.#datacenter.network.host(name)
  }

  async #pull(containerds: readonly LabContainerd[], flags: readonly string[]): Promise<number[]> {
    const { signal } = this.#context
    // With --debug ctr draws no progress. Drawing, ten times a second and for nobody, costs six of them a second of the two cores that stand in for six machines'.
    // Both ways pull with it.
    return await Promise.all(containerds.map(async (containerd) => (await containerd.ctr(['--debug', 'images', 'pull', ...flags, this.#datacenter.reference], { signal, timeoutMs: 900_000 })).elapsedMs))
  }

  async stop(): Promise<void> {
    for (const containerd of this.#containerds) await containerd.stop()
    await this.#datacenter.stop()
  }
}
