// Every setting of `skimmer proxy`: the proxy's, and those of the node that its peer and its store need.
import { endpoint, path, type Values } from '../../command-line/settings.ts'
import { FORWARD_SETTINGS } from './forward-settings.ts'
import { NODE_SETTINGS } from './node-settings.ts'
import { PROXY_LISTEN_HELP, PROXY_SETTINGS } from './proxy-settings.ts'
import { REGISTRY_SETTINGS } from './registries.ts'

const { supernodes, listen, announce, labels } = NODE_SETTINGS

export const LONE_PROXY_SETTINGS = {
  root: path('/var/lib/skimmer-proxy', 'what survives: blobs, manifests, identity; not the root of a node'),
  supernodes, listen, announce, labels,
  'join-token-file': NODE_SETTINGS['join-token-file'],
  'cache.size': NODE_SETTINGS['cache.size'],
  'demand.timeout': NODE_SETTINGS['demand.timeout'],
  'upload.rate': NODE_SETTINGS['upload.rate'],
  'upload.slots': NODE_SETTINGS['upload.slots'],
  'metrics.listen': NODE_SETTINGS['metrics.listen'],
  'log.level': NODE_SETTINGS['log.level'],
  ...PROXY_SETTINGS,
  ...FORWARD_SETTINGS,
  'proxy.listen': endpoint('127.0.0.1:4001', PROXY_LISTEN_HELP),
  ...REGISTRY_SETTINGS,
}
export type LoneProxyConfig = Values<typeof LONE_PROXY_SETTINGS>
