// The forward proxy inside a node, or beside a registry proxy alone, where the configuration says that there is one.
import type { Logger } from 'pino'
import type { Registry } from 'prom-client'
import type { Values } from '../command-line/settings.ts'
import type { Downloads } from '../peer/downloads.ts'
import type { TokenBucket } from '../peer/token-bucket.ts'
import type { ForwardProxy } from '../registry-proxy/forward/forward-proxy.ts'
import type { RegistryProxy } from '../registry-proxy/registry-proxy.ts'
import { type FORWARD_SETTINGS, forwardOptions } from './config/forward-settings.ts'
import { hostsConfig, type REGISTRY_SETTINGS } from './config/registries.ts'

type Config = Values<typeof FORWARD_SETTINGS> & Values<typeof REGISTRY_SETTINGS>

export interface RunningForwardProxy {
  readonly proxy: ForwardProxy
  stop(): Promise<void>
}

/** undefined: `proxy.forward-listen` is empty, or it cannot be had: clients then need their own way out, and the log says why. */
export async function startForwardProxy(
  config: Config,
  parts: { downloads: Downloads; registry: RegistryProxy | undefined; buckets?: () => readonly TokenBucket[]; logger: Logger; metrics: Registry },
): Promise<RunningForwardProxy | undefined> {
  const listen = config['proxy.forward-listen']
  if (listen === undefined) return undefined
  const { downloads, registry, buckets = () => [], logger, metrics } = parts
  const [{ ForwardProxy }, { forwardFiles }, { Sources }] = await Promise.all([import('../registry-proxy/forward/forward-proxy.ts'), import('./forward-files.ts'), import('../source/sources.ts')])
  const hosts = hostsConfig(config)
  const sources = new Sources({ hosts, logger })
  try {
    const proxy = await ForwardProxy.start({ logger, metrics, hosts, ...(registry !== undefined && { registry }), files: forwardFiles({ downloads, sources, buckets }) }, forwardOptions(config, listen))
    return {
      proxy,
      stop: async () => {
        await proxy.stop()
        await sources.close()
      },
    }
  } catch (error) {
    await sources.close()
    logger.error({ err: error }, 'there is no forward proxy here')
    return undefined
  }
}
