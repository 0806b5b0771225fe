// What a node and a lone proxy both stand on: block store, peer, and files and blobs on their way.
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import type { Logger } from 'pino'
import type { Registry } from 'prom-client'
import { VERSION } from '../command-line/version.ts'
import { BlockStore } from '../peer/block-store.ts'
import { Downloads } from '../peer/downloads.ts'
import { Peer, type PeerOptions } from '../peer/peer.ts'
import type { LoneProxyConfig } from './config/lone-proxy-settings.ts'
import { labelsOf } from './config/node-settings.ts'
import { secretIn } from './config/supernode-settings.ts'

/** The settings that `skimmer node` and `skimmer proxy` share. */
type PeerStackConfig = Pick<LoneProxyConfig, 'root' | 'cache.size' | 'listen' | 'announce' | 'supernodes' | 'join-token-file' | 'labels' | 'upload.slots' | 'upload.rate' | 'demand.timeout'>

/** How the parts are stopped, in the order they were started. */
export type Stops = (() => Promise<unknown>)[]

export interface PeerStack {
  readonly store: BlockStore
  readonly peer: Peer
  readonly downloads: Downloads
  readonly identityFile: string
}

/** Adds to `stops` what is to be stopped also when this throws. */
export async function startPeerStack(config: PeerStackConfig, components: { logger: Logger; metrics: Registry }, stops: Stops, more: { backgroundBytesPerSecond?: number; prefetch?: PeerOptions['prefetch'] } = {}): Promise<PeerStack> {
  const { logger, metrics } = components
  mkdirSync(config.root, { recursive: true, mode: 0o700 })
  const store = await BlockStore.open({ directory: join(config.root, 'store'), capBytes: config['cache.size'], logger, metrics })
  stops.push(() => store.close())
  const identityFile = join(config.root, 'identity')
  const peer = await Peer.start({ store, logger, metrics }, {
    listen: [...config.listen],
    announce: config.announce.length === 0 ? undefined : [...config.announce],
    identityFile,
    supernodes: config.supernodes,
    joinToken: secretIn(config['join-token-file'], 'join-token-file'),
    labels: labelsOf(config),
    version: VERSION,
    exchange: { uploadSlots: config['upload.slots'], uploadBytesPerSecond: config['upload.rate'] || undefined },
    fetch: { demandTimeout: config['demand.timeout'], backgroundBytesPerSecond: more.backgroundBytesPerSecond },
    prefetch: more.prefetch,
  })
  stops.push(() => peer.stop())
  const downloads = new Downloads({ peer, logger, metrics })
  stops.push(() => downloads.stop())
  return { store, peer, downloads, identityFile }
}
