// The parts of a Skimmer datacenter as the lab runs them: a supernode, nodes with their containerd, and what they say of themselves.
import { existsSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type ApiCall, callNode } from '../../node/api/client.ts'
import { LabContainerd } from './containerd.ts'
import type { LabHost } from './network.ts'
import type { LabProcess } from './process.ts'

/** The commands as users have them: what was built, in processes of their own. From the sources as from dist/. */
const command = (path: string): string => [new URL(`../../${path}`, import.meta.url), new URL(`../../../${path}`, import.meta.url)].map((url) => fileURLToPath(url)).find((file) => existsSync(file)) ?? path
const SKIMMER = command('node/bin/skimmer')
const DFGET = command('dfget/bin/dfget')

export const skimmerArgv = (...words: string[]): string[] => [SKIMMER, ...words]

export const dfgetArgv = (...words: string[]): string[] => [DFGET, ...words]

const SUPERNODE_PORT = 4980
const SUPERNODE_HTTP_PORT = 4981

export class LabSupernode {
  readonly host: LabHost
  readonly process: LabProcess
  readonly url: string
  /** For nodes. */
  readonly address: string

  private constructor(host: LabHost, child: LabProcess) {
    this.host = host
    this.process = child
    this.url = `http://${host.address}:${SUPERNODE_HTTP_PORT}`
    this.address = `${host.address}:${SUPERNODE_PORT}`
  }

  static async start(host: LabHost, options: { directory: string; plainHttp: string[]; flags?: string[] }): Promise<LabSupernode> {
    mkdirSync(options.directory, { recursive: true })
    const child = host.launch('skimmer supernode', skimmerArgv(
      'supernode', '--root', join(options.directory, 'data'), '--listen', `/ip4/${host.address}/tcp/${SUPERNODE_PORT}`, '--http-listen', `0.0.0.0:${SUPERNODE_HTTP_PORT}`,
      ...options.plainHttp.flatMap((registry) => ['--registry-plain-http', registry]), ...(options.flags ?? []),
    ), { logFile: join(options.directory, 'supernode.log') })
    const supernode = new LabSupernode(host, child)
    await child.until('it was ready', async () => (await supernode.get('/readyz')).code === 0, 60_000)
    return supernode
  }

  /** `skimmer preheat` on the supernode's own host, which needs no token: resolves when the image is indexed and held. */
  async preheat(reference: string, signal?: AbortSignal): Promise<void> {
    await this.host.run(skimmerArgv('preheat', '--supernode', `http://127.0.0.1:${SUPERNODE_HTTP_PORT}`, reference), { timeoutMs: 900_000, signal })
  }

  /** GET over the lab's network: curl in the host's own namespace. */
  async get(path: string): Promise<{ code: number; body: string }> {
    const { code, stdout } = await this.host.run(['curl', '-sSf', '--max-time', '20', this.url + path], { mayFail: true })
    return { code, body: stdout }
  }
}

export class LabNode {
  readonly name: string
  readonly host: LabHost
  readonly process: LabProcess
  /** Missing on a node that only fetches. */
  readonly containerd: LabContainerd | undefined
  readonly apiSocket: string
  readonly directory: string

  private constructor(host: LabHost, directory: string, child: LabProcess, containerd: LabContainerd | undefined) {
    this.name = host.name
    this.host = host
    this.directory = directory
    this.process = child
    this.containerd = containerd
    this.apiSocket = join(directory, 'run', 'api.sock')
  }

  static async start(host: LabHost, options: { directory: string; supernodes: string[]; plainHttp: string[]; containerd?: boolean; flags?: string[] }): Promise<LabNode> {
    mkdirSync(options.directory, { recursive: true })
    const run = join(options.directory, 'run')
    const child = host.launch('skimmer node', skimmerArgv(
      'node', '--root', join(options.directory, 'data'), '--run', run, '--listen', `/ip4/${host.address}/tcp/4979`,
      ...options.supernodes.flatMap((address) => ['--supernodes', address]), ...options.plainHttp.flatMap((registry) => ['--registry-plain-http', registry]), ...(options.flags ?? []),
    ), { logFile: join(options.directory, 'node.log') })
    await child.until('its API answered', async () => (await callNode(join(run, 'api.sock'), '/v1/ready').catch(() => undefined)) !== undefined, 60_000)
    const containerd = options.containerd === false ? undefined : await LabContainerd.start({ directory: join(options.directory, 'containerd'), host, snapshotter: { name: 'skimmer', socket: join(run, 'snapshotter.sock') } })
    return new LabNode(host, options.directory, child, containerd)
  }

  api<T>(path: string, call?: ApiCall): Promise<T> {
    return callNode<T>(this.apiSocket, path, call)
  }
}
