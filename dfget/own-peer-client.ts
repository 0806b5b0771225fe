// dfget's own peer: found or started, for where no node runs.
import { DaemonClient } from './daemon-client.ts'
import type { DfgetValues } from './options.ts'
import { launchPeer } from './peer-launcher.ts'
import { peerPlace } from './peer-place.ts'

/** UNAVAILABLE: it cannot start, and why. */
export async function ownPeer(values: DfgetValues, signal: AbortSignal): Promise<DaemonClient> {
  const place = peerPlace(values.supernodes, { home: values.home })
  await launchPeer(place, {
    supernodes: values.supernodes,
    listen: [...values.listen],
    ...(values.announce.length > 0 && { announce: [...values.announce] }),
    ...(values['join-token-file'] !== undefined && { joinTokenFile: values['join-token-file'] }),
    labels: Object.fromEntries(values.labels.map((label) => [label.split('=', 1)[0], label.slice(label.indexOf('=') + 1)])),
    cacheBytes: values['cache-size'],
    aliveMs: values['alive-time'],
    ...(values['upload-rate'] > 0 && { uploadBytesPerSecond: values['upload-rate'] }),
  }, { signal })
  return new DaemonClient(place.socket, { who: "dfget's peer" })
}
