// The parts of a Skimmer datacenter as the lab runs them: a supernode, nodes with their containerd, and what they say of themselves.
import { mkdirSync } from 'node:fs'
import { request } from 'node:http'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { SkimmerError } from '../../oci/errors.ts'
import { LabContainerd } from './containerd.ts'
import type { LabHost } from './network.ts'
import type { LabProcess } from './process.ts'

const CLI = fileURLToPath(new URL('../../node/cli.ts', import.meta.url))
export const skimmerArgv = (...words: string[]): string[] => [process.execPath, CLI, ...words]

const SUPERNODE_PORT = 4980
const SUPERNODE_HTTP_PORT = 4981

export class LabSupernode {
  readonly host: LabHost
  readonly process: LabProcess
  readonly url: string

  private constructor(host: LabHost, child: LabProcess) {
    this.host = host
    this.process = child
    this.url = `http://${host.address}:${SUPERNODE_HTTP_PORT}`
  }

  static async start(host: LabHost, options: { directory: string; plainHttp: string[]; flags?: string[] }): Promise<LabSupernode> {
    mkdirSync(options.directory, { recursive: true })
    const child = host.launch('skimmer supernode', skimmerArgv(
      'supernode', '--root', join(options.directory, 'data'), '--listen', `/ip4/${host.address}/tcp/${SUPERNODE_PORT}`, '--http-listen', `${host.address}:${SUPERNODE_HTTP_PORT}`,
      ...options.plainHttp.flatMap((registry) => ['--registry-plain-http', registry]), ...(options.flags ?? []),
    ), { logFile: join(options.directory, 'supernode.log') })
    const supernode = new LabSupernode(host, child)
    await child.until('it was ready', async () => (await supernode.get('/readyz')).code === 0, 60_000)
    return supernode
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
  readonly containerd: LabContainerd
  readonly apiSocket: string
  readonly directory: string

  private constructor(host: LabHost, directory: string, child: LabProcess, containerd: LabContainerd) {
    this.name = host.name
    this.host = host
    this.directory = directory
    this.process = child
    this.containerd = containerd
    this.apiSocket = join(directory, 'run', 'api.sock')
  }

  static async start(host: LabHost, options: { directory: string; supernodes: string[]; plainHttp: string[]; flags?: string[] }): Promise<LabNode> {
    mkdirSync(options.directory, { recursive: true })
    const run = join(options.directory, 'run')
    const child = host.launch('skimmer node', skimmerArgv(
      'node', '--root', join(options.directory, 'data'), '--run', run, '--listen', `/ip4/${host.address}/tcp/4979`,
      ...options.supernodes.flatMap((address) => ['--supernodes', address]), ...options.plainHttp.flatMap((registry) => ['--registry-plain-http', registry]), ...(options.flags ?? []),
    ), { logFile: join(options.directory, 'node.log') })
    await child.until('its API answered', async () => (await apiGet(join(run, 'api.sock'), '/v1/ready').catch(() => undefined)) !== undefined, 60_000)
    const containerd = await LabContainerd.start({ directory: join(options.directory, 'containerd'), host, snapshotter: { name: 'skimmer', socket: join(run, 'snapshotter.sock') } })
    return new LabNode(host, options.directory, child, containerd)
  }

  api<T>(path: string): Promise<T> {
    return apiGet(this.apiSocket, path)
  }
}

/** GET on a node's API socket. */
export function apiGet<T>(socketPath: string, path: string): Promise<T> {
  return new Promise((resolve, reject) => {
    const get = request({ socketPath, path, timeout: 20_000 }, (response) => {
      const chunks: Buffer[] = []
      response.on('data', (chunk: Buffer) => chunks.push(chunk))
      response.on('end', () => {
        const body = Buffer.concat(chunks).toString()
        if (response.statusCode !== 200) reject(new SkimmerError('UNAVAILABLE', `${path} on ${socketPath}: ${response.statusCode} ${body.slice(0, 500)}`))
        else resolve(JSON.parse(body) as T)
      })
    })
    get.on('timeout', () => get.destroy(new SkimmerError('TIMEOUT', `${path} on ${socketPath}: no answer`)))
    get.on('error', reject)
    get.end()
  })
}
