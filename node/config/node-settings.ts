// Every setting of the node daemon.
import { choice, count, endpoint, list, optional, path, size, text, toggle, type Values, wait } from '../../command-line/settings.ts'
import { FORWARD_SETTINGS } from './forward-settings.ts'
import { PROXY_SETTINGS } from './proxy-settings.ts'
import { REGISTRY_SETTINGS } from './registries.ts'

export const NODE_SETTINGS = {
  root: path('/var/lib/skimmer', 'state that survives: block store, snapshots, composed images'),
  run: path('/run/skimmer', 'sockets and mounts'),
  supernodes: list('ADDRESS', [], 'supernodes: /ip4/10.0.0.1/tcp/4980/p2p/<peer id> (trusted by that id) or 10.0.0.1:4980 (whoever answers there is trusted)'),
  listen: list('ADDRESS', ['/ip4/0.0.0.0/tcp/4979'], 'where peers reach this node'),
  announce: list('ADDRESS', [], 'addresses to tell others instead of those listened on'),
  labels: list('NAME=VALUE', [], 'where this node is, for instance zone=a rack=7: near peers are asked first'),
  'join-token-file': optional('FILE', 'file with the token a supernode asks of its nodes'),
  'cache.size': size('20GiB', 'disk space for blocks and unpacked layers'),
  'fuse.mode': choice(['auto', 'file', 'loop', 'fuse', 'fuse-native'], 'auto', 'how images are mounted: EROFS over files, over a loop device, or as a FUSE filesystem (our driver, or the fuse-native package)'),
  'fuse.threads': count('2', 'threads that answer reads', { least: 1, most: 64 }),
  'demand.timeout': wait('30s', 'longest wait of a read for a remote block; then it fails and says why'),
  'prefetch.enabled': toggle('true', 'bring the rest of an image once its container has started'),
  'prefetch.delay': wait('1.5s', 'earliest start of that, after the container started'),
  'prefetch.quiet': wait('700ms', 'and only after this long without a read that had to wait'),
  'prefetch.rate': size('0', 'bytes per second of background fetching; 0: no limit'),
  'upload.rate': size('0', 'bytes per second given to peers; 0: no limit'),
  'upload.slots': count('16', 'peers served at the same time'),
  'download.rate': size('0', 'bytes per second of all files that dfget brings through this node; 0: no limit'),
  'download.parallel': count('32', 'such files at the same time; more wait for their turn', { least: 1 }),
  'trace.window': wait('10s', 'how long after a start reads are recorded for the next one'),
  'metrics.listen': endpoint('', 'serve Prometheus metrics there as well as on the API socket'),
  'log.level': choice(['trace', 'debug', 'info', 'warn', 'error', 'silent'], 'info', 'least important lines to log'),
  'snapshotter.name': text('skimmer', 'name used in messages and in the containerd configuration that `skimmer doctor` prints'),
  ...PROXY_SETTINGS,
  ...FORWARD_SETTINGS,
  ...REGISTRY_SETTINGS,
}
export type NodeConfig = Values<typeof NODE_SETTINGS>

export function labelsOf(config: Pick<NodeConfig, 'labels'>): Record<string, string> {
  return Object.fromEntries(config.labels.map((label) => {
    const at = label.indexOf('=')
    return [label.slice(0, at), label.slice(at + 1)]
  }))
}
