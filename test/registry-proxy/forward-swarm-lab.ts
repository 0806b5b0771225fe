// A forward proxy whose swarm is real: a store, a peer, downloads, a registry proxy, and sources read by this node.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { forwardFiles } from '../../node/forward-files.ts'
import type { HostsConfig } from '../../oci/registry-hosts.ts'
import { BlockStore } from '../../peer/block-store.ts'
import { Downloads } from '../../peer/downloads.ts'
import { Peer } from '../../peer/peer.ts'
import type { ForwardConfigInput } from '../../registry-proxy/forward/forward-config.ts'
import type { ForwardProxyOptions } from '../../registry-proxy/forward/forward-proxy.ts'
import { RegistryProxy } from '../../registry-proxy/registry-proxy.ts'
import { Sources } from '../../source/sources.ts'
import { ForwardLab } from './forward-lab.ts'

export class SwarmLab extends ForwardLab {
  readonly #stops: (() => Promise<unknown>)[] = []
  readonly proxyMetrics = new Registry()

  async startSwarm(config: ForwardConfigInput, hosts: HostsConfig = {}, options: Partial<ForwardProxyOptions> = {}): Promise<void> {
    const directory = mkdtempSync(join(tmpdir(), 'skimmer-forward-store-'))
    this.#stops.push(async () => rmSync(directory, { recursive: true, force: true }))
    const logger = pino({ level: process.env.TEST_LOG ?? 'silent' })
    const metrics = this.proxyMetrics
    const store = await BlockStore.open({ directory, capBytes: 512 * 2 ** 20, logger, metrics })
    this.#stops.push(() => store.close())
    const peer = await Peer.start({ store, logger, metrics }, { listen: ['/ip4/127.0.0.1/tcp/0'], supernodes: [] })
    this.#stops.push(() => peer.stop())
    const downloads = new Downloads({ peer, logger, metrics })
    this.#stops.push(() => downloads.stop())
    const registry = await RegistryProxy.start({ downloads, store, logger, metrics, hosts }, { listen: { host: '127.0.0.1', port: 0 }, secret: Buffer.alloc(32, 7) })
    this.#stops.push(() => registry.stop())
    const sources = new Sources({ hosts, logger })
    this.#stops.push(() => sources.close())
    await this.start(config, { registry, files: forwardFiles({ downloads, sources, buckets: () => [] }), hosts }, options)
  }

  override async end(): Promise<void> {
    await super.end()
    for (const stop of this.#stops.splice(0).toReversed()) await stop()
  }
}
