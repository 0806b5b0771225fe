// A whole datacenter for the demo and the benches: network, registry with an image in it, supernode, lazy nodes and an ordinary one.
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { ImageAnswer, TrafficAnswer } from '../../node/api/answers.ts'
import { formatDuration } from '../../command-line/units.ts'
import { SkimmerError } from '../../oci/errors.ts'
import { LabNode, LabSupernode } from './cluster.ts'
import { LabContainerd } from './containerd.ts'
import { makeDemoImage, type Say } from './image.ts'
import { unmountBelow } from './mounts.ts'
import { type LabHost, LabNetwork } from './network.ts'
import { run } from './process.ts'
import { LabRegistry } from './registry.ts'

export interface DatacenterPlan {
  /** Rate of every host's link, each way; the registry's and the supernode's too. */
  readonly mbit: number
  /** Names of lazy nodes; they are started by startNode. */
  readonly nodes: readonly string[]
  /** A host with a containerd of its own and no Skimmer. */
  readonly ordinary?: boolean
  /** An image reference outside of the lab, copied in; without it the image the lab makes. */
  readonly image?: string
  /** Makes the lab's image, an OCI layout with the tag `latest`; default: the demo's. */
  readonly make?: (cache: string, say: Say, signal?: AbortSignal) => Promise<string>
  /** Where the made image and the registry's storage are kept between runs. */
  readonly cache: string
  readonly say: Say
  readonly signal: AbortSignal
}

/** A container that still runs so long after its first output is a server. */
const SETTLE_MS = 5_000
const WHOLE_TIMEOUT_MS = 600_000

export class Datacenter {
  readonly directory: string
  readonly plan: DatacenterPlan
  readonly network: LabNetwork
  readonly registry: LabRegistry
  readonly supernode: LabSupernode
  /** The image's reference inside the lab. */
  readonly reference: string
  readonly layerDigests: ReadonlySet<string>
  /** Bytes of the image's layers in the registry. */
  readonly registryBytes: number
  readonly #containerds: LabContainerd[] = []
  #containers = 0

  private constructor(parts: Pick<Datacenter, 'directory' | 'plan' | 'network' | 'registry' | 'supernode' | 'reference' | 'layerDigests' | 'registryBytes'>) {
    this.directory = parts.directory
    this.plan = parts.plan
    this.network = parts.network
    this.registry = parts.registry
    this.supernode = parts.supernode
    this.reference = parts.reference
    this.layerDigests = parts.layerDigests
    this.registryBytes = parts.registryBytes
  }

  static async start(plan: DatacenterPlan): Promise<Datacenter> {
    const { say, signal, image } = plan
    mkdirSync(plan.cache, { recursive: true })
    const made = image === undefined ? await (plan.make ?? makeDemoImage)(plan.cache, say, signal) : undefined
    const directory = mkdtempSync(join(tmpdir(), 'skimmer-lab-'))
    let network: LabNetwork | undefined
    try {
      const hosts = ['registry', 'supernode', ...plan.nodes, ...(plan.ordinary ? ['ordinary'] : [])]
      say(`network: ${hosts.length} hosts, ${plan.mbit} Mbit/s each`)
      network = await LabNetwork.create(hosts.map((name) => ({ name, mbit: plan.mbit })), { directory })
      const registry = await LabRegistry.start(network.host('registry'), { storage: join(plan.cache, 'registry'), directory: join(directory, 'registry') })
      const reference = `${registry.address}/demo/${image !== undefined ? 'image' : plan.make === undefined ? 'python' : 'made'}:latest`
      // An image of the user's own comes from outside, which the lab's hosts cannot reach: by way of a layout on disk.
      const layout = made ?? join(directory, 'copied')
      if (image !== undefined) {
        say(`image: copying ${image}`)
        await run(['skopeo', 'copy', '--quiet', `docker://${image}`, `oci:${layout}:latest`], { timeoutMs: 1_800_000, signal })
      }
      say('registry: pushing the image')
      await registry.host.run(['skopeo', 'copy', '--quiet', '--dest-tls-verify=false', `oci:${layout}:latest`, `docker://${reference}`], { timeoutMs: 600_000, signal })
      const { stdout } = await registry.host.run(['skopeo', 'inspect', '--raw', '--tls-verify=false', `docker://${reference}`], { signal })
      const { layers } = JSON.parse(stdout) as { layers: { digest: string; size: number }[] }
      const supernode = await LabSupernode.start(network.host('supernode'), { directory: join(directory, 'supernode'), plainHttp: [registry.address] })
      return new Datacenter({
        directory, plan, network, registry, supernode, reference,
        layerDigests: new Set(layers.map((layer) => layer.digest)),
        registryBytes: layers.reduce((sum, layer) => sum + layer.size, 0),
      })
    } catch (error) {
      await network?.destroy()
      rmSync(directory, { recursive: true, force: true })
      throw error
    }
  }

  /** Starts a lazy node, with a containerd unless it only fetches. */
  async startNode(name: string, options: { containerd?: boolean; flags?: string[] } = {}): Promise<LabNode> {
    this.plan.signal.throwIfAborted()
    const node = await LabNode.start(this.network.host(name), { directory: join(this.directory, name), supernodes: [this.supernode.address], plainHttp: [this.registry.address], ...options })
    if (node.containerd) this.#containerds.push(node.containerd)
    return node
  }

  async startOrdinary(): Promise<LabContainerd> {
    this.plan.signal.throwIfAborted()
    const containerd = await LabContainerd.start({ directory: join(this.directory, 'ordinary'), host: this.network.host('ordinary') })
    this.#containerds.push(containerd)
    return containerd
  }

  /** Has the supernode pull and index the image, as `skimmer preheat` does. */
  async preheat(): Promise<void> {
    await this.supernode.preheat(this.reference, this.plan.signal)
  }

  /** Milliseconds from the start of an ordinary pull to the container's first output. */
  async pullAndRun(containerd: LabContainerd, command: readonly string[]): Promise<number> {
    const started = performance.now()
    await containerd.ctr(['images', 'pull', '--plain-http', this.reference], { signal: this.plan.signal, timeoutMs: 900_000 })
    return await this.#firstOutput(containerd, started, command, [])
  }

  /** The same, lazily. */
  async lazyPullAndRun(node: LabNode, command: readonly string[]): Promise<number> {
    const started = performance.now()
    await node.containerd!.ctrRemote(['images', 'rpull', '--plain-http', '--snapshotter', 'skimmer', this.reference], { signal: this.plan.signal, timeoutMs: 900_000 })
    return await this.#firstOutput(node.containerd!, started, command, ['--snapshotter', 'skimmer'])
  }

  async #firstOutput(containerd: LabContainerd, started: number, command: readonly string[], flags: readonly string[]): Promise<number> {
    const before = performance.now() - started
    const { signal } = this.plan
    const container = `lab-${process.pid}-${++this.#containers}`
    let settle: NodeJS.Timeout | undefined
    // A server runs on after its first words: it is ended then, and on an interrupt, which process 1 of a container does not hear of by itself.
    const end = (): void => void containerd.ctr(['tasks', 'kill', '--signal', 'SIGKILL', container], { mayFail: true, timeoutMs: 20_000 })
    signal.addEventListener('abort', end, { once: true })
    const result = await containerd
      .ctr(['run', '--rm', ...flags, this.reference, container, ...command], { signal, mayFail: true, onOutput: () => void (settle ??= setTimeout(end, SETTLE_MS)) })
      .finally(() => {
        clearTimeout(settle)
        signal.removeEventListener('abort', end)
      })
    if (result.firstOutputMs < 0 && result.code !== 0) throw new SkimmerError('UNAVAILABLE', `the container ended with code ${result.code}: ${result.stderr.slice(-1000)}`)
    // A command that prints nothing has its end for its first output.
    return before + (result.firstOutputMs < 0 ? result.elapsedMs : result.firstOutputMs)
  }

  /** Waits until the node holds the whole image and, unless told otherwise, has proved every layer. */
  async untilWhole(node: LabNode, options: { proved?: boolean } = {}): Promise<ImageAnswer> {
    const deadline = Date.now() + WHOLE_TIMEOUT_MS
    for (let told = Date.now(); ; ) {
      this.plan.signal.throwIfAborted()
      const image = await node.api<ImageAnswer>(`/v1/image?reference=${encodeURIComponent(this.reference)}`)
      const done = image.layers.filter((layer) => layer.whole && (options.proved === false || layer.proved))
      if (image.layers.length > 0 && done.length === image.layers.length) return image
      if (Date.now() > deadline) throw new SkimmerError('TIMEOUT', `${node.name} did not hold the whole image after ${formatDuration(WHOLE_TIMEOUT_MS)}:\n${node.process.tail()}`)
      if (Date.now() - told > 5_000) {
        told = Date.now()
        this.plan.say(`${node.name}: ${image.layers.filter((layer) => layer.whole).length} of ${image.layers.length} layers whole, ${image.layers.filter((layer) => layer.proved).length} proved`)
      }
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
  }

  /** Bytes by source that a node fetched, until a time (milliseconds since 1970) if one is given. */
  async traffic(node: LabNode, before?: number): Promise<TrafficAnswer['sources']> {
    return (await node.api<TrafficAnswer>(`/v1/traffic${before === undefined ? '' : `?before=${Math.ceil(before)}`}`)).sources
  }

  /** Bytes of the image's layers that left the registry toward these hosts, in copies of the image. */
  registryCopies(hosts: readonly LabHost[]): number {
    const addresses = new Set(hosts.map((host) => host.address))
    const left = [...this.registry.served(this.layerDigests).byClient].filter(([client]) => addresses.has(client)).reduce((sum, [, bytes]) => sum + bytes, 0)
    return left / this.registryBytes
  }

  async stop(options: { keep?: boolean } = {}): Promise<void> {
    this.plan.say('taking everything down')
    const failures: unknown[] = []
    // One step that fails must not leave the others undone.
    for (const step of [...this.#containerds.map((containerd) => () => containerd.stop()), () => this.network.destroy(), () => unmountBelow(this.directory)]) {
      await step().catch((error: unknown) => failures.push(error))
    }
    if (options.keep) this.plan.say(`logs and state: ${this.directory}`)
    else rmSync(this.directory, { recursive: true, force: true })
    if (failures.length > 0) throw failures[0]
  }
}
