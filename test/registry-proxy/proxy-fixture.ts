// A registry proxy with all that is behind it on one machine: store, peer and downloads, in a directory of its own.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import type { CredentialSource } from '../../oci/credentials.ts'
import type { HostsConfig } from '../../oci/registry-hosts.ts'
import { BlockStore } from '../../peer/block-store.ts'
import { Downloads } from '../../peer/downloads.ts'
import { Peer } from '../../peer/peer.ts'
import type { RegistryProxyOptions } from '../../registry-proxy/proxy-options.ts'
import { RegistryProxy } from '../../registry-proxy/registry-proxy.ts'

export interface ProxyFixture {
  readonly proxy: RegistryProxy
  readonly store: BlockStore
  /** `127.0.0.1:<port>` */
  readonly host: string
  readonly url: string
  readonly metrics: Registry
  /** How many answers of this kind and outcome there were. */
  count(kind: string, outcome: string): Promise<number>
  /** Stops the proxy and starts it again on its port, with other options and the same store. */
  restart(options?: Partial<RegistryProxyOptions>): Promise<ProxyFixture>
  stop(): Promise<void>
}

export interface ProxySetting {
  readonly options?: Partial<RegistryProxyOptions>
  readonly supernodes?: string[]
  readonly credentials?: CredentialSource
  readonly hosts?: HostsConfig
  readonly directory?: string
}

const SECRET = Buffer.alloc(32, 7)

export async function startProxy(setting: ProxySetting = {}): Promise<ProxyFixture> {
  const directory = setting.directory ?? mkdtempSync(join(tmpdir(), 'skimmer-proxy-'))
  const logger = pino({ level: process.env.TEST_LOG ?? 'silent' })
  const metrics = new Registry()
  const store = await BlockStore.open({ directory: join(directory, 'store'), capBytes: 512 * 2 ** 20, logger, metrics })
  const peer = await Peer.start({ store, logger, metrics }, { listen: ['/ip4/127.0.0.1/tcp/0'], supernodes: setting.supernodes ?? [] })
  const downloads = new Downloads({ peer, logger, metrics })
  const proxy = await RegistryProxy.start({ downloads, store, logger, metrics, credentials: setting.credentials, hosts: setting.hosts }, { listen: { host: '127.0.0.1', port: 0 }, secret: SECRET, ...setting.options })
  const end = async (): Promise<void> => {
    await proxy.stop()
    await downloads.stop()
    await peer.stop()
    await store.close()
  }
  const host = proxy.address
  return {
    proxy, store, host, url: `${setting.options?.tls === undefined ? 'http' : 'https'}://${host}`, metrics,
    count: async (kind, outcome) => {
      const found = (await metrics.getSingleMetric('skimmer_proxy_requests_total')!.get()).values.find(({ labels }) => labels.kind === kind && labels.outcome === outcome)
      return found?.value ?? 0
    },
    restart: async (options = {}) => {
      await end()
      const port = Number(host.split(':')[1])
      return await startProxy({ ...setting, directory, options: { ...setting.options, listen: { host: '127.0.0.1', port }, ...options } })
    },
    stop: async () => {
      await end()
      rmSync(directory, { recursive: true, force: true })
    },
  }
}
