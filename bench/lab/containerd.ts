// A private real containerd: its own root, state, socket and configuration in one directory, and every trace of it gone after stop().
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { LabHost } from './network.ts'
import { unmountBelow } from './mounts.ts'
import { LabProcess, run, type RunResult } from './process.ts'

export interface LabContainerdOptions {
  /** Holds everything; the caller deletes it. Short, because sockets are in it (at most 107 characters each). */
  readonly directory: string
  /** Runs containerd and its clients in this host's network. */
  readonly host?: LabHost
  /** A proxy plugin; ask for it by its name with `--snapshotter`. Without one there is still containerd's own `overlayfs`. */
  readonly snapshotter?: { readonly name: string; readonly socket: string }
}

type RunOptions = NonNullable<Parameters<typeof run>[1]>

export class LabContainerd {
  readonly address: string
  readonly root: string
  readonly state: string
  readonly #options: LabContainerdOptions
  #process: LabProcess

  private constructor(options: LabContainerdOptions) {
    this.#options = options
    this.address = join(options.directory, 'c.sock')
    this.root = join(options.directory, 'root')
    this.state = join(options.directory, 'state')
    this.#process = this.#launch()
  }

  static async start(options: LabContainerdOptions): Promise<LabContainerd> {
    mkdirSync(options.directory, { recursive: true })
    const containerd = new LabContainerd(options)
    await containerd.#ready()
    return containerd
  }

  get process(): LabProcess {
    return this.#process
  }

  /** `ctr <argv…>`, talking to this containerd. */
  ctr(argv: readonly string[], options: RunOptions = {}): Promise<RunResult> {
    return this.#run(['ctr', '--address', this.address, ...argv], options)
  }

  /** `ctr-remote <argv…>` (Debian's stargz-snapshotter): its `images rpull` names image and layers to the snapshotter. */
  ctrRemote(argv: readonly string[], options: RunOptions = {}): Promise<RunResult> {
    return this.#run(['ctr-remote', '--address', this.address, ...argv], options)
  }

  /** Ends the daemon (with SIGKILL if `kill`) and starts it again; running containers live on. */
  async restart(options: { kill?: boolean } = {}): Promise<void> {
    if (options.kill === true) this.#process.child.kill('SIGKILL')
    await this.#process.stop()
    this.#process = this.#launch()
    await this.#ready()
  }

  /** Kills and removes all containers, ends the daemon and what it left running, unmounts what it left mounted. */
  async stop(): Promise<void> {
    if (this.#process.running) {
      const namespaces = await this.#lines(['namespaces', 'ls', '-q'])
      for (const namespace of namespaces) await this.#removeContainers(namespace)
    }
    await this.#process.stop()
    for (const pid of this.#shims()) {
      try {
        process.kill(pid, 'SIGKILL')
      } catch {
        // Already gone.
      }
    }
    await unmountBelow(this.#options.directory)
  }

  async #removeContainers(namespace: string): Promise<void> {
    for (const task of await this.#lines(['--namespace', namespace, 'tasks', 'ls', '-q'])) {
      await this.ctr(['--namespace', namespace, 'tasks', 'rm', '--force', task], { mayFail: true, timeoutMs: 20_000 })
    }
    for (const container of await this.#lines(['--namespace', namespace, 'containers', 'ls', '-q'])) {
      await this.ctr(['--namespace', namespace, 'containers', 'rm', container], { mayFail: true, timeoutMs: 20_000 })
    }
  }

  async #lines(argv: readonly string[]): Promise<string[]> {
    const { stdout } = await this.ctr(argv, { mayFail: true, timeoutMs: 20_000 })
    return stdout.split('\n').map((line) => line.trim()).filter(Boolean)
  }

  #run(argv: readonly string[], options: RunOptions): Promise<RunResult> {
    return this.#options.host?.run(argv, options) ?? run(argv, options)
  }

  #launch(): LabProcess {
    const { directory, host } = this.#options
    const config = join(directory, 'config.toml')
    writeFileSync(config, this.#config())
    const argv = ['containerd', '--config', config]
    const logFile = join(directory, 'containerd.log')
    return host?.launch('containerd', argv, { logFile }) ?? new LabProcess('containerd', argv, { logFile })
  }

  #config(): string {
    const { directory, snapshotter } = this.#options
    const text = JSON.stringify
    const proxy = snapshotter === undefined ? '' : `
[proxy_plugins.${snapshotter.name}]
  type = "snapshot"
  address = ${text(snapshotter.socket)}
`
    return `version = 2
root = ${text(this.root)}
state = ${text(this.state)}
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = ${text(this.address)}
[plugins."io.containerd.internal.v1.opt"]
  path = ${text(join(directory, 'opt'))}
${proxy}`
  }

  async #ready(): Promise<void> {
    await this.#process.until('it answered', async () => (await this.ctr(['version'], { mayFail: true, timeoutMs: 10_000 })).code === 0)
  }

  /** Shims outlive the daemon on purpose; ours are known by the address of their containerd. */
  #shims(): number[] {
    return readdirSync('/proc').filter((name) => /^\d+$/.test(name)).map(Number).filter((pid) => {
      const words = commandLine(pid)
      return words[0]?.includes('containerd-shim') === true && words[words.indexOf('-address') + 1] === this.address
    })
  }
}

function commandLine(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0')
  } catch {
    return []
  }
}
