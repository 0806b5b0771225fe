// A datacenter for tests of whole nodes: registry, supernode and nodes with containerd as real processes, each on a host of its own.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { LabNode, LabSupernode, skimmerArgv } from '../../bench/lab/cluster.ts'
import { LabNetwork } from '../../bench/lab/network.ts'
import { run, type RunResult } from '../../bench/lab/process.ts'
import { LabRegistry } from '../../bench/lab/registry.ts'
import { stateFileIn } from '../../blockdev/supervise.ts'
import { readSupervisorState } from '../../blockdev/supervisor-state.ts'
import type { ExplainAnswer, ImageAnswer } from '../../node/api/answers.ts'
import { callNode } from '../../node/api/client.ts'
import { type SampleImage, type SampleLayer, writeLayout } from './sample-image.ts'

const TOOLS = ['containerd', 'ctr', 'ctr-remote', 'runc', 'docker-registry', 'skopeo', 'ip', 'tc', 'nsenter', 'curl', 'perl', 'python3']

/** Why whole nodes cannot run here; '' when they can. */
export const whyNoNodes = [
  process.getuid?.() === 0 ? '' : 'needs root',
  existsSync('/dev/fuse') ? '' : 'needs /dev/fuse',
  existsSync('/bin/busybox') ? '' : 'needs busybox-static',
  ...TOOLS.map((tool) => (spawnSync('sh', ['-c', `command -v ${tool}`]).status === 0 ? '' : `needs ${tool}`)),
].filter((reason) => reason !== '').join(', ')

export const OURS = ['--snapshotter', 'skimmer'] as const

export interface NodeLabPlan {
  /** Hosts besides the registry's and the supernode's. */
  readonly nodes: readonly string[]
  /** Host name to Mbit/s; others have no limit. */
  readonly mbit?: Readonly<Record<string, number>>
  readonly supernodeFlags?: readonly string[]
}

export class NodeLab {
  readonly directory: string
  readonly network: LabNetwork
  readonly registry: LabRegistry
  readonly supernode: LabSupernode
  readonly nodes: LabNode[] = []
  #images = 0

  private constructor(directory: string, network: LabNetwork, registry: LabRegistry, supernode: LabSupernode) {
    this.directory = directory
    this.network = network
    this.registry = registry
    this.supernode = supernode
  }

  static async start(plan: NodeLabPlan): Promise<NodeLab> {
    const directory = mkdtempSync(join(tmpdir(), 'ske-'))
    let network: LabNetwork | undefined
    try {
      network = await LabNetwork.create(['registry', 'supernode', ...plan.nodes].map((name) => ({ name, mbit: plan.mbit?.[name] })), { directory })
      const registry = await LabRegistry.start(network.host('registry'), { storage: join(directory, 'registry/data'), directory: join(directory, 'registry') })
      const supernode = await LabSupernode.start(network.host('supernode'), { directory: join(directory, 'supernode'), plainHttp: [registry.address], flags: [...(plan.supernodeFlags ?? [])] })
      return new NodeLab(directory, network, registry, supernode)
    } catch (error) {
      await network?.destroy()
      rmSync(directory, { recursive: true, force: true })
      throw error
    }
  }

  async startNode(name: string, options: { supernode?: boolean; containerd?: boolean; flags?: string[] } = {}): Promise<LabNode> {
    const node = await LabNode.start(this.network.host(name), {
      directory: join(this.directory, name), supernodes: options.supernode === false ? [] : [this.supernode.address], plainHttp: [this.registry.address],
      containerd: options.containerd, flags: options.flags,
    })
    this.nodes.push(node)
    return node
  }

  /** Makes an image of these layers and pushes it; resolves with its reference in the lab. */
  async push(name: string, layers: readonly SampleLayer[]): Promise<SampleImage & { reference: string }> {
    const image = writeLayout(join(this.directory, `image-${this.#images++}`), layers)
    const reference = `${this.registry.address}/test/${name}:latest`
    await this.registry.host.run(['skopeo', 'copy', '--quiet', '--preserve-digests', '--dest-tls-verify=false', `oci:${image.layout}:latest`, `docker://${reference}`])
    return { ...image, reference }
  }

  async stop(): Promise<void> {
    for (const node of this.nodes) await node.containerd?.stop()
    await this.network.destroy()
    const left = readFileSync('/proc/self/mounts', 'utf8').split('\n').filter((line) => line.includes(`${this.directory}/`))
    for (const line of left.toReversed()) spawnSync('umount', ['-l', line.split(' ')[1]])
    // With the variable set, logs and state stay to be looked at.
    if (!process.env.SKIMMER_TEST_KEEP) rmSync(this.directory, { recursive: true, force: true })
    if (left.length > 0) throw new Error(`mounts were left behind:\n${left.join('\n')}`)
  }
}

/** Waits until `look` does not throw any more; what it threw last is the failure. */
export async function eventually<T>(look: () => Promise<T> | T, timeoutMs = 20_000): Promise<T> {
  for (const deadline = Date.now() + timeoutMs; ; ) {
    try {
      return await look()
    } catch (error) {
      if (Date.now() > deadline) throw error
    }
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

/** Has containerd collect garbage now; on its own it waits for many changes. */
export async function collectGarbage(node: LabNode): Promise<void> {
  const id = `collect-${Math.random().toString(36).slice(2)}`
  await node.containerd!.ctr(['leases', 'create', '--id', id])
  await node.containerd!.ctr(['leases', 'rm', '--sync', id])
}

/** runc keeps its state by container id for the whole machine: an id must be like no other test's. */
export const containerName = (what: string): string => `${what}-${process.pid.toString(36)}${Math.random().toString(36).slice(2, 8)}`

/** A lazy pull: names image and layers to the snapshotter, as CRI does. */
export async function lazyPull(node: LabNode, reference: string): Promise<void> {
  await node.containerd!.ctrRemote(['images', 'rpull', '--plain-http', ...OURS, reference], { timeoutMs: 60_000 })
}

/** Runs a container to its end; its output, by way of a file: ctr's own pipes lose what a short-lived container says when the machine is busy. */
export async function runContainer(node: LabNode, reference: string, ...command: string[]): Promise<string> {
  const name = containerName('c')
  const output = join(node.directory, `${name}.out`)
  const { stdout, stderr, code } = await node.containerd!.ctr(['run', '--rm', '--log-uri', `file://${output}`, ...OURS, reference, name, ...command], { timeoutMs: 90_000, mayFail: true })
  const said = existsSync(output) ? readFileSync(output, 'utf8') : ''
  if (code !== 0) throw new Error(`${command.join(' ')} ended with code ${code}: ${stdout}${stderr}${said}`)
  return said
}

export const imageOn = (node: LabNode, reference: string): Promise<ImageAnswer> => node.api<ImageAnswer>(`/v1/image?reference=${encodeURIComponent(reference)}`, { timeoutMs: 60_000 })
export const explainOn = (node: LabNode): Promise<ExplainAnswer> => node.api<ExplainAnswer>('/v1/explain')

/** Every layer here and proved against its diffID. */
export async function untilWhole(node: LabNode, reference: string): Promise<void> {
  await eventually(async () => {
    const { layers } = await imageOn(node, reference)
    const missing = layers.filter((layer) => !layer.whole || !layer.proved)
    if (layers.length === 0 || missing.length > 0) throw new Error(`${node.name}: ${missing.length} of ${layers.length} layers are not whole and proved\n${node.process.tail()}`)
  }, 60_000)
}

/** Whether containerd downloaded this layer (lazily it must not). */
export async function hasBlob(node: LabNode, digest: string): Promise<boolean> {
  return (await node.containerd!.ctr(['content', 'ls', '-q'])).stdout.includes(digest)
}

export function daemonPid(node: LabNode): number | undefined {
  return readSupervisorState(stateFileIn(join(node.directory, 'run')))?.daemon?.pid
}

/** The daemon (another than `not`) answers its API. */
export async function untilServing(node: LabNode, not?: number): Promise<number> {
  return eventually(async () => {
    const pid = daemonPid(node)
    if (pid === undefined || pid === not) throw new Error(`${node.name}: no new daemon\n${node.process.tail()}`)
    await callNode(node.apiSocket, '/v1/ready', { timeoutMs: 2_000 })
    if (daemonPid(node) !== pid) throw new Error(`${node.name}: the daemon changed again`)
    return pid
  }, 30_000)
}

/** The `skimmer` command on a node's host, its output on pipes. */
export function skimmer(node: LabNode, ...words: string[]): Promise<RunResult> {
  return node.host.run(skimmerArgv(...words), { mayFail: true, timeoutMs: 60_000, env: { SKIMMER_SOCKET: node.apiSocket } })
}

/** Image mounts of a node: what is mounted below its run directory, without the FUSE mount itself. */
export function imageMounts(node: LabNode): string[] {
  const images = join(node.directory, 'run/images')
  return existsSync(images) ? readdirSync(images).filter((name) => /^[0-9a-f]{64}$/.test(name)) : []
}

/** A view of a snapshot, mounted on the host while `look` runs. */
export async function withView<T>(node: LabNode, snapshotter: string, chainId: string, look: (directory: string) => Promise<T>): Promise<T> {
  const containerd = node.containerd!
  const target = mkdtempSync(join(node.directory, 'view-'))
  const key = `view-${snapshotter}-${target.slice(-6)}`
  const { stdout } = await eventually(async () => {
    const mounts = await containerd.ctr(['snapshots', '--snapshotter', snapshotter, 'view', '--target', target, key, chainId])
    // A garbage collection under way takes what nothing refers to.
    await containerd.ctr(['snapshots', '--snapshotter', snapshotter, 'label', key, 'containerd.io/gc.root=kept'])
    return mounts
  })
  mkdirSync(target, { recursive: true })
  await run(['sh', '-c', stdout])
  try {
    return await look(target)
  } finally {
    await run(['umount', target])
    await containerd.ctr(['snapshots', '--snapshotter', snapshotter, 'rm', key])
    rmSync(target, { recursive: true })
  }
}
