// A small datacenter in network namespaces: hosts behind links of a set rate, joined by one bridge, cut off from everything else.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { unmountBelow } from './mounts.ts'
import { LabProcess, run, type LaunchOptions, type RunResult } from './process.ts'

const STATE_DIRECTORY = '/run/skimmer-lab'

export interface HostPlan {
  readonly name: string
  /** Rate of the host's link, each way; unlimited when left out. */
  readonly mbit?: number
}

/** One host: a network namespace. Mounts, files and pids are the machine's own. */
export class LabHost {
  readonly name: string
  readonly address: string
  readonly namespace: string
  readonly #hub: string
  readonly #port: string
  readonly processes: LabProcess[] = []

  constructor(name: string, address: string, namespace: string, hub: string, port: string) {
    this.name = name
    this.address = address
    this.namespace = namespace
    this.#hub = hub
    this.#port = port
  }

  /** nsenter enters the network alone; `ip netns exec` would also hide this host's mounts from its other processes. */
  argv(argv: readonly string[]): string[] {
    return ['nsenter', `--net=/run/netns/${this.namespace}`, ...argv]
  }

  launch(name: string, argv: readonly string[], options: LaunchOptions): LabProcess {
    const started = new LabProcess(`${name} on ${this.name}`, this.argv(argv), options)
    this.processes.push(started)
    return started
  }

  run(argv: readonly string[], options: Parameters<typeof run>[1] = {}): Promise<RunResult> {
    return run(this.argv(argv), options)
  }

  /** Bytes on the host's link since the lab was made, as the switch counts them (frames, headers included). */
  async linkBytes(): Promise<{ sent: number; received: number }> {
    const { stdout } = await run(['nsenter', `--net=/run/netns/${this.#hub}`, 'ip', '-j', '-s', 'link', 'show', 'dev', this.#port])
    const [link] = JSON.parse(stdout) as [{ stats64: { rx: { bytes: number }; tx: { bytes: number } } }]
    return { sent: link.stats64.rx.bytes, received: link.stats64.tx.bytes }
  }

  async setRate(mbit: number): Promise<void> {
    await shape(['nsenter', `--net=/run/netns/${this.namespace}`], 'eth0', mbit)
    await shape(['nsenter', `--net=/run/netns/${this.#hub}`], this.#port, mbit)
  }
}

/** A token bucket on one end of a link. The burst must hold what the timer tick lets through, and one 64 KiB segment. */
async function shape(enter: readonly string[], device: string, mbit: number): Promise<void> {
  const burst = Math.max(128 * 1024, Math.round((mbit * 1e6) / 8 / 250))
  await run([...enter, 'tc', 'qdisc', 'replace', 'dev', device, 'root', 'tbf', 'rate', `${mbit}mbit`, 'burst', String(burst), 'latency', '50ms'])
}

export class LabNetwork {
  readonly id: string
  readonly hosts = new Map<string, LabHost>()
  readonly #hub: string

  private constructor(id: string) {
    this.id = id
    this.#hub = `sk${id}-hub`
  }

  /**
   * Makes the namespaces, the bridge and the links. What an earlier, killed run left behind is swept first: its processes, its namespaces,
   * and with `directory` (the lab's own, directly in the system's temporary directory) what is mounted and stored there.
   */
  static async create(plans: readonly HostPlan[], options: { directory?: string } = {}): Promise<LabNetwork> {
    await sweepDeadLabs()
    const network = new LabNetwork(process.pid.toString(36) + Math.floor(Math.random() * 1296).toString(36))
    mkdirSync(STATE_DIRECTORY, { recursive: true })
    writeFileSync(join(STATE_DIRECTORY, network.id), JSON.stringify({ pid: process.pid, start: startTime(process.pid), directory: options.directory }))
    try {
      await run(['ip', 'netns', 'add', network.#hub])
      await run(['ip', '-n', network.#hub, 'link', 'add', 'br0', 'type', 'bridge'])
      await run(['ip', '-n', network.#hub, 'link', 'set', 'br0', 'up'])
      let number = 1
      for (const plan of plans) await network.#addHost(plan, ++number)
    } catch (error) {
      await network.destroy()
      throw error
    }
    return network
  }

  async #addHost(plan: HostPlan, number: number): Promise<void> {
    const namespace = `sk${this.id}-${plan.name}`
    const port = `p${number}`
    const address = `10.77.0.${number}`
    await run(['ip', 'netns', 'add', namespace])
    const host = new LabHost(plan.name, address, namespace, this.#hub, port)
    this.hosts.set(plan.name, host)
    await run(['ip', '-n', this.#hub, 'link', 'add', port, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', namespace])
    await run(['ip', '-n', this.#hub, 'link', 'set', port, 'master', 'br0', 'up'])
    await run(['ip', '-n', namespace, 'link', 'set', 'lo', 'up'])
    await run(['ip', '-n', namespace, 'addr', 'add', `${address}/24`, 'dev', 'eth0'])
    await run(['ip', '-n', namespace, 'link', 'set', 'eth0', 'up'])
    if (plan.mbit !== undefined) await host.setRate(plan.mbit)
  }

  host(name: string): LabHost {
    const host = this.hosts.get(name)
    if (!host) throw new Error(`the lab has no host ${name}`)
    return host
  }

  /** Ends every process the lab started (last started first) and takes the namespaces down. */
  async destroy(): Promise<void> {
    for (const host of [...this.hosts.values()].toReversed()) {
      for (const child of host.processes.toReversed()) await child.stop().catch(() => {})
    }
    for (const namespace of [...[...this.hosts.values()].map((host) => host.namespace), this.#hub]) {
      await run(['ip', 'netns', 'delete', namespace], { mayFail: true })
    }
    rmSync(join(STATE_DIRECTORY, this.id), { force: true })
  }
}

/** Kernel start time of a process (clock ticks since boot), or '' when it is gone: pids come back, this pair does not. */
function startTime(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/stat`, 'latin1').split(') ').at(-1)?.split(' ')[19] ?? ''
  } catch {
    return ''
  }
}

async function sweepDeadLabs(): Promise<void> {
  if (!existsSync(STATE_DIRECTORY)) return
  for (const id of readdirSync(STATE_DIRECTORY)) {
    let owner: { pid: number; start: string; directory?: string }
    try {
      owner = JSON.parse(readFileSync(join(STATE_DIRECTORY, id), 'utf8'))
    } catch {
      continue
    }
    if (owner.start !== '' && startTime(owner.pid) === owner.start) continue
    const { stdout } = await run(['ip', 'netns', 'list'], { mayFail: true })
    for (const line of stdout.split('\n')) {
      const namespace = line.split(' ')[0]
      if (!namespace.startsWith(`sk${id}-`)) continue
      const { stdout: pids } = await run(['ip', 'netns', 'pids', namespace], { mayFail: true })
      for (const pid of pids.split('\n').filter(Boolean)) {
        try {
          process.kill(Number(pid), 'SIGKILL')
        } catch {
          // already gone
        }
      }
      await run(['ip', 'netns', 'delete', namespace], { mayFail: true })
    }
    const { directory } = owner
    if (directory !== undefined && dirname(directory) === tmpdir()) {
      await unmountBelow(directory)
      rmSync(directory, { recursive: true, force: true })
    }
    rmSync(join(STATE_DIRECTORY, id), { force: true })
  }
}
