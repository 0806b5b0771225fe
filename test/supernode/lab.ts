// A supernode of one's own for tests: real registry behind a counting proxy, real images, real nodes' control clients.
import { createServer, connect } from 'node:net'
import type { AddressInfo, Socket } from 'node:net'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { multiaddr } from '@multiformats/multiaddr'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { pack } from 'tar-stream'
import { anonymous } from '../../oci/credentials.ts'
import type { CredentialSource } from '../../oci/credentials.ts'
import { parseReference } from '../../oci/reference.ts'
import { RegistryClient } from '../../oci/registry-client.ts'
import { BlockStore } from '../../peer/block-store.ts'
import { ControlClient } from '../../peer/control-client.ts'
import { Downloads } from '../../peer/downloads.ts'
import { createHost } from '../../peer/host.ts'
import { Peer } from '../../peer/peer.ts'
import { Supernode } from '../../supernode/supernode.ts'
import type { SupernodeConfigInput } from '../../supernode/supernode-config.ts'
import { pushImage } from '../oci/image-fixture.ts'
import type { MadeImage } from '../oci/image-fixture.ts'

export const silent = pino({ level: 'silent' })

/** What must be undone, last first, whatever the test did. */
export class Cleanup {
  readonly #steps: (() => unknown)[] = []

  add(step: () => unknown): void {
    this.#steps.push(step)
  }

  async run(): Promise<void> {
    for (const step of this.#steps.splice(0).toReversed()) await step()
  }
}

export async function temporaryDirectory(cleanup: Cleanup): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'skimmer-supernode-'))
  cleanup.add(() => rm(directory, { recursive: true, force: true }))
  return directory
}

/** A tar of files with bytes that do not compress to nothing. */
export async function tarOf(files: Record<string, number>, seed = 1): Promise<Buffer> {
  const tar = pack()
  for (const [name, length] of Object.entries(files)) {
    const content = Buffer.alloc(length)
    let value = seed * 2_654_435_761 + name.length
    for (let at = 0; at < length; at++) content[at] = (value = (Math.imul(value, 1_103_515_245) + 12_345) >>> 0) >>> 24
    tar.entry({ name, mtime: new Date(0) }, content)
  }
  tar.finalize()
  const chunks: Buffer[] = []
  for await (const chunk of tar) chunks.push(chunk as Buffer)
  return Buffer.concat(chunks)
}

export async function push(host: string, name: string, tars: readonly Buffer[], credentials: CredentialSource = anonymous): Promise<MadeImage & { reference: string }> {
  const client = new RegistryClient({ credentials })
  try {
    const reference = `${host}/${name}`
    return { ...(await pushImage(client, parseReference(reference), tars)), reference }
  } finally {
    await client.close()
  }
}

/** A TCP proxy that counts what comes back, and can play dead. */
export async function countingProxy(cleanup: Cleanup, port: number): Promise<{ host: string; received: () => number; kill: () => void; revive: () => void }> {
  let received = 0
  let dead = false
  const sockets = new Set<Socket>()
  const server = createServer(client => {
    if (dead) return void client.destroy()
    const upstream = connect(port, '127.0.0.1')
    for (const socket of [client, upstream]) {
      sockets.add(socket)
      socket.on('error', () => { client.destroy(); upstream.destroy() }).on('close', () => { sockets.delete(socket); client.destroy(); upstream.destroy() })
    }
    upstream.on('data', bytes => { received += bytes.length })
    client.pipe(upstream)
    upstream.pipe(client)
  })
  await new Promise<void>(resolve => { server.listen(0, '127.0.0.1', resolve) })
  const kill = (): void => {
    dead = true
    for (const socket of sockets) socket.destroy()
  }
  cleanup.add(() => {
    kill()
    return new Promise(resolve => { server.close(resolve) })
  })
  return { host: `127.0.0.1:${(server.address() as AddressInfo).port}`, received: () => received, kill, revive: () => { dead = false } }
}

export async function startSupernode(cleanup: Cleanup, config: Partial<SupernodeConfigInput> = {}): Promise<Supernode> {
  const supernode = await Supernode.start({
    dataDir: config.dataDir ?? (await temporaryDirectory(cleanup)), listen: ['/ip4/127.0.0.1/tcp/0'], http: { host: '127.0.0.1', port: 0 }, cacheBytes: 2 ** 30, limits: { indexerThreads: 1 },
    // Not this machine's own docker login.
    registry: { credentialsFile: join(import.meta.dirname, 'no-credentials.json') }, ...config,
  }, { logger: silent })
  cleanup.add(() => supernode.stop())
  return supernode
}

/** A node as the supernode sees it: a libp2p host that has said hello. */
export async function joinNode(cleanup: Cleanup, supernode: Supernode, hello: { labels?: Record<string, string>; joinToken?: string } = {}) {
  const libp2p = await createHost({ listen: ['/ip4/127.0.0.1/tcp/0'] })
  cleanup.add(() => libp2p.stop())
  const control = new ControlClient({ libp2p }, { peer: multiaddr(supernode.addrs[0]), silenceMs: 10_000 })
  const welcome = await control.call('hello', { version: '0', addrs: libp2p.getMultiaddrs().map(String), labels: hello.labels ?? {}, uploadSlots: 16, joinToken: hello.joinToken })
  return { libp2p, control, welcome, peerId: libp2p.peerId.toString() }
}

/** Waits for a condition; the test's own time limit is the bound. */
export async function until<Value>(condition: () => Value | Promise<Value>): Promise<Exclude<NonNullable<Value>, false>> {
  for (;;) {
    const value = await condition()
    if (value) return value as Exclude<NonNullable<Value>, false>
    await new Promise(resolve => { setTimeout(resolve, 20) })
  }
}

/** A whole node's peer: store, exchange, downloads. */
export async function startPeer(cleanup: Cleanup, supernode: Supernode, options: { directory?: string; capBytes?: number } = {}) {
  const directory = options.directory ?? (await temporaryDirectory(cleanup))
  const store = await BlockStore.open({ directory: join(directory, 'store'), capBytes: options.capBytes ?? 2 ** 30, logger: silent })
  const peer = await Peer.start({ store, logger: silent, metrics: new Registry() }, { listen: ['/ip4/127.0.0.1/tcp/0'], supernodes: [supernode.addrs[0]] })
  const downloads = new Downloads({ peer, logger: silent, metrics: new Registry() })
  cleanup.add(async () => {
    await downloads.stop()
    await peer.stop()
    await store.close()
  })
  await until(() => supernode.parts.control.listeners.includes(peer.id))
  return { store, peer, downloads }
}
