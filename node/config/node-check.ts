// What of a node's settings can be checked before the supervisor starts a daemon with them: a daemon that cannot start would be started again and again.
import { multiaddr } from '@multiformats/multiaddr'
import { SkimmerError } from '../../oci/errors.ts'
import { parseAddress } from '../../peer/host.ts'
import { forwardOptions } from './forward-settings.ts'
import { type NodeConfig } from './node-settings.ts'
import { proxyOptions } from './proxy-settings.ts'
import { hostsConfig } from './registries.ts'
import { secretIn } from './supernode-settings.ts'

/** INVALID_ARGUMENT that names the key. */
export function checkNodeConfig(config: NodeConfig): void {
  const each = (key: 'supernodes' | 'listen' | 'announce', read: (address: string) => unknown): void => {
    for (const address of config[key]) {
      try {
        read(address)
      } catch (cause) {
        throw new SkimmerError('INVALID_ARGUMENT', `${key}: ${(cause as Error).message}`, { cause })
      }
    }
  }
  each('supernodes', parseAddress)
  each('listen', multiaddr)
  each('announce', multiaddr)
  for (const label of config.labels) if (!/^[^=\s]+=/.test(label)) throw new SkimmerError('INVALID_ARGUMENT', `labels: ${JSON.stringify(label)} is not NAME=VALUE`)
  hostsConfig(config)
  if (config['proxy.listen'] !== undefined) proxyOptions(config, config['proxy.listen'])
  if (config['proxy.forward-listen'] !== undefined) forwardOptions(config, config['proxy.forward-listen'])
  secretIn(config['join-token-file'], 'join-token-file')
}
