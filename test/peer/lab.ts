// A small datacenter in one process for the tests of peer/: real stores, real peers on loopback, a supernode with a plain scheduler.
import { createHash, randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { buildBlockTable, CODEC_RAW } from '../../image/block-table.ts'
import { SkimmerError } from '../../oci/errors.ts'
import { BlockStore } from '../../peer/block-store.ts'
import type { ControlEvent } from '../../peer/control.ts'
import { GrantSigner } from '../../peer/grants.ts'
import { loadIdentity } from '../../peer/host.ts'
import { Peer } from '../../peer/peer.ts'
import type { PeerOptions } from '../../peer/peer.ts'
import type { Resource } from '../../peer/resource.ts'
import { serveControl } from '../../peer/serve-control.ts'
import type { ControlHandlers } from '../../peer/serve-control.ts'

export const logger = pino({ level: process.env.PEER_TEST_LOG ?? 'silent' })

export interface Content { id: string; table: ReturnType<typeof buildBlockTable>; blocks: Buffer[]; bytes: Buffer; diffId: string }

/** A layer of random blocks, stored as they are. */
export function makeContent(count: number, blockBytes = 20_000): Content {
  const blocks = Array.from({ length: count }, () => randomBytes(blockBytes))
  const table = buildBlockTable(blocks.map(block => ({ rawLength: block.length, packedLength: block.length, codec: CODEC_RAW, hash: createHash('sha256').update(block).digest() })))
  const bytes = Buffer.concat(blocks)
  return { id: `layer:sha256:${randomBytes(32).toString('hex')}`, table, blocks, bytes, diffId: `sha256:${createHash('sha256').update(bytes).digest('hex')}` }
}

export interface Node { name: string; peer: Peer; store: BlockStore; directory: string; stop(): Promise<void> }

export class Lab {
  readonly #stops: (() => Promise<void>)[] = []

  async directory(): Promise<string> {
    const directory = await mkdtemp(join(tmpdir(), 'skimmer-peer-'))
    this.#stops.push(() => rm(directory, { recursive: true, force: true }))
    return directory
  }

  onStop(stop: () => Promise<void>): void {
    this.#stops.push(stop)
  }

  async node(name: string, options: Partial<PeerOptions> = {}, at: { directory?: string; capBytes?: number; heldBytes?: number } = {}): Promise<Node> {
    const directory = at.directory ?? await this.directory()
    const store = await BlockStore.open({ directory: join(directory, 'store'), capBytes: at.capBytes ?? 1e9, heldBytes: at.heldBytes, logger })
    const peer = await Peer.start({ store, logger, metrics: new Registry() }, { listen: ['/ip4/127.0.0.1/tcp/0'], identityFile: join(directory, 'identity'), prefetch: { startMs: 50, quietMs: 50, backoffMs: [50, 200] }, ...options })
    let stopped: Promise<void> | undefined
    const node: Node = { name, peer, store, directory, stop: () => stopped ??= (async () => { await peer.stop(); await store.close() })() }
    this.#stops.push(() => node.stop())
    return node
  }

  async supernode(options: { grantMs?: number; at?: { directory?: string }; listen?: string[]; exchange?: PeerOptions['exchange'] } = {}): Promise<TestSupernode> {
    const directory = options.at?.directory ?? await this.directory()
    const supernode = new TestSupernode(options.grantMs ?? 60_000)
    const node = await this.node('supernode', { exchange: { admit: remote => supernode.admitted.has(remote), ...options.exchange }, listen: options.listen ?? ['/ip4/127.0.0.1/tcp/0'] }, { directory })
    await supernode.serve(node)
    this.#stops.push(() => supernode.stop())
    return supernode
  }

  async stop(): Promise<void> {
    for (const stop of this.#stops.splice(0).toReversed()) await stop()
  }
}

/** The supernode's side in its plainest form: everyone who says hello is admitted; parents are all who announced. */
export class TestSupernode {
  readonly admitted = new Set<string>()
  readonly holders = new Map<string, Map<string, { whole: boolean }>>()
  readonly reports: unknown[] = []
  readonly quarantines: string[] = []
  readonly listeners = new Set<(event: ControlEvent) => void>()
  readonly #addrs = new Map<string, string[]>()
  readonly grantMs: number
  node!: Node
  signer!: GrantSigner
  /** Peers that must be named as parents for everything, whatever was announced. */
  readonly decoys = new Map<string, string[]>()
  /** Operations that a test answers itself. */
  readonly handlers: Partial<ControlHandlers> = {}
  #stop: (() => Promise<void>) | undefined

  constructor(grantMs: number) {
    this.grantMs = grantMs
  }

  get address(): string {
    return this.node.peer.addresses[0]
  }

  grant(peer: string, resources: string[], expires = Date.now() + this.grantMs): string {
    return this.signer.sign({ peer, resources, expires })
  }

  async serve(node: Node): Promise<void> {
    this.node = node
    this.signer = new GrantSigner((await loadIdentity(join(node.directory, 'identity'))).raw)
    const handlers: ControlHandlers = {
      hello: async (request, call) => {
        this.admitted.add(call.remote)
        this.#addrs.set(call.remote, request.addrs)
        return { grantKey: this.signer.publicKey, heartbeatMs: 500, peerId: node.peer.id }
      },
      announce: async (request, call) => {
        for (const have of request.have) {
          let holders = this.holders.get(have.resource)
          if (holders === undefined) this.holders.set(have.resource, holders = new Map())
          holders.set(call.remote, { whole: 'whole' in have })
        }
        for (const id of request.gone) this.holders.get(id)?.delete(call.remote)
        return {}
      },
      parents: async (request, call) => {
        const parents = [...this.holders.get(request.resource) ?? []].filter(([id]) => id !== call.remote && request.exclude?.includes(id) !== true)
          .map(([peerId, { whole }]) => ({ peerId, whole, addrs: this.#addrs.get(peerId) ?? [], slots: 4 }))
        for (const [peerId, addrs] of this.decoys) if (peerId !== call.remote && !parents.some(parent => parent.peerId === peerId)) parents.unshift({ peerId, whole: true, addrs, slots: 4 })
        return { parents: parents.slice(0, request.count) }
      },
      report: async request => { this.reports.push(request); return {} },
      'grant.renew': async (request, call) => ({ grant: this.grant(call.remote, request.resources) }),
      quarantine: async request => { this.quarantines.push(request.resource); return {} },
      events: async (_, call) => {
        const listener = (event: ControlEvent): void => call.progress(event)
        this.listeners.add(listener)
        await new Promise<void>(resolve => { call.signal.addEventListener('abort', () => resolve()) })
        this.listeners.delete(listener)
        return {}
      },
      'image.resolve': no, 'layer.index': no, 'chain.resolve': no, 'trace.put': no, 'trace.get': no, 
      'file.open': (request, call) => (this.handlers['file.open'] ?? no)(request, call), 'blob.open': (request, call) => (this.handlers['blob.open'] ?? no)(request, call),
    }
    this.#stop = await serveControl({ libp2p: node.peer.libp2p, logger }, handlers, { aliveMs: 200 })
  }

  async stop(): Promise<void> {
    await this.#stop?.()
    await this.node.stop()
  }
}

const no = (): Promise<never> => Promise.reject(new SkimmerError('UNSUPPORTED', 'not in this test'))

export async function put(node: Node, content: Content, blocks: Iterable<number> = content.blocks.keys()): Promise<Resource> {
  const resource = await node.store.add(content.id, content.table, { diffId: content.diffId })
  for (const block of blocks) await resource.putBlock(block, content.blocks[block])
  return resource
}

export async function until(what: string, condition: () => boolean | Promise<boolean>, millis = 15_000): Promise<void> {
  const end = performance.now() + millis
  while (!await condition()) {
    if (performance.now() > end) throw new Error(`waited in vain: ${what}`)
    await new Promise(resolve => { setTimeout(resolve, 10) })
  }
}
