// A registry proxy with nothing else: block store, peer, downloads and the proxy in one process; no mounts, no root, and no supernode if there is none.
import { createServer } from 'node:http'
import type { Logger } from 'pino'
import { Registry, collectDefaultMetrics } from 'prom-client'
import type { Endpoint } from '../command-line/settings.ts'
import { loadDockerConfig } from '../oci/docker-config.ts'
import { SkimmerError } from '../oci/errors.ts'
import { RegistryProxy } from '../registry-proxy/registry-proxy.ts'
import { forwardOptions } from './config/forward-settings.ts'
import type { LoneProxyConfig } from './config/lone-proxy-settings.ts'
import { proxyOptions } from './config/proxy-settings.ts'
import { hostsConfig } from './config/registries.ts'
import { startForwardProxy } from './node-forward-proxy.ts'
import { proxySecret } from './node-proxy.ts'
import { startPeerStack, type Stops } from './peer-stack.ts'

export class LoneProxy {
  readonly proxy: RegistryProxy
  readonly #stops: Stops

  private constructor(proxy: RegistryProxy, stops: Stops) {
    this.proxy = proxy
    this.#stops = stops
  }

  static async start(config: LoneProxyConfig, { logger }: { logger: Logger }): Promise<LoneProxy> {
    const listenAt = config['proxy.listen']
    if (listenAt === undefined) throw new SkimmerError('INVALID_ARGUMENT', 'proxy.listen is empty: a proxy must listen somewhere')
    proxyOptions(config, listenAt)
    if (config['proxy.forward-listen'] !== undefined) forwardOptions(config, config['proxy.forward-listen'])
    const metrics = new Registry()
    collectDefaultMetrics({ register: metrics, prefix: 'skimmer_node_' })
    const stops: Stops = []
    try {
      const { store, downloads, identityFile } = await startPeerStack(config, { logger, metrics }, stops)
      const proxy = await RegistryProxy.start(
        { downloads, store, logger, metrics, hosts: hostsConfig(config), credentials: loadDockerConfig(config['registry.config']) },
        proxyOptions(config, listenAt, await proxySecret(identityFile)),
      )
      stops.push(() => proxy.stop())
      const forward = await startForwardProxy(config, { downloads, registry: proxy, logger, metrics })
      if (forward !== undefined) stops.push(() => forward.stop())
      if (config['metrics.listen'] !== undefined) stops.push(await serveMetrics(metrics, config['metrics.listen']))
      return new LoneProxy(proxy, stops)
    } catch (error) {
      for (const stop of stops.toReversed()) await stop().catch((cause: unknown) => logger.warn({ err: cause }, 'while giving up the start'))
      throw error
    }
  }

  async stop(): Promise<void> {
    for (const stop of this.#stops.toReversed()) await stop()
  }
}

async function serveMetrics(metrics: Registry, where: Endpoint): Promise<() => Promise<void>> {
  const server = createServer((_, response) => {
    metrics.metrics().then((text) => response.writeHead(200, { 'content-type': metrics.contentType }).end(text), () => response.writeHead(500).end())
  })
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) => reject(new SkimmerError('CONFLICT', `metrics.listen: ${where.host}:${where.port}: ${cause.code}`, { cause })))
    server.listen(where.port, where.host, resolve)
  })
  return () => new Promise((resolve) => {
    server.close(() => resolve())
    server.closeAllConnections()
  })
}
