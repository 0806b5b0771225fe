// The registry proxy inside a node: over the node's own store and downloads, where the configuration says that there is one.
import { createHash } from 'node:crypto'
import { join } from 'node:path'
import type { Logger } from 'pino'
import type { Registry } from 'prom-client'
import { loadDockerConfig } from '../oci/docker-config.ts'
import { loadIdentity } from '../peer/host.ts'
import { RegistryProxy } from '../registry-proxy/registry-proxy.ts'
import type { NodeConfig } from './config/node-settings.ts'
import { proxyOptions } from './config/proxy-settings.ts'
import { hostsConfig } from './config/registries.ts'
import type { NodeCore } from './core.ts'

/** undefined: `proxy.listen` is empty, or its address cannot be had: a node without a proxy is better than none, and clients go to the registry. */
export async function startNodeProxy(config: NodeConfig, { core, logger, metrics }: { core: NodeCore; logger: Logger; metrics: Registry }): Promise<RegistryProxy | undefined> {
  const listen = config['proxy.listen']
  if (listen === undefined) return undefined
  try {
    return await RegistryProxy.start(
      { downloads: core.downloads, store: core.store, logger, metrics, hosts: hostsConfig(config), credentials: loadDockerConfig(config['registry.config']) },
      proxyOptions(config, listen, await proxySecret(join(config.root, 'identity'))),
    )
  } catch (error) {
    logger.error({ err: error }, 'there is no registry proxy on this node')
    return undefined
  }
}

/** The key of remembered clients: it must outlive a restart, and not stand beside what it keys. */
export async function proxySecret(identityFile: string): Promise<Buffer> {
  const seed = (await loadIdentity(identityFile)).raw.subarray(0, 32)
  return createHash('sha256').update('skimmer registry proxy clients').update(seed).digest()
}
