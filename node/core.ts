// What every node has, mounts or none: store, peer, and the sources that tell what images are made of.
import { createHash } from 'node:crypto'
import type { Logger } from 'pino'
import type { Registry } from 'prom-client'
import { IndexerPool } from '../image/indexer-pool.ts'
import { loadDockerConfig } from '../oci/docker-config.ts'
import { SkimmerError } from '../oci/errors.ts'
import type { BlockStore } from '../peer/block-store.ts'
import type { Downloads } from '../peer/downloads.ts'
import { loadIdentity } from '../peer/host.ts'
import type { Peer } from '../peer/peer.ts'
import { ImageCatalog } from '../supernode/image-catalog.ts'
import { LayerOrigin } from '../supernode/layer-origin.ts'
import { RegistryGate } from '../supernode/registry-access.ts'
import { EmbeddedState } from '../supernode/shared-state.ts'
import { HeldFiles } from './held-files.ts'
import type { NodeConfig } from './config/node-settings.ts'
import { hostsConfig } from './config/registries.ts'
import type { ImageSource } from './lazy/image-source.ts'
import { LayerLibrary } from './lazy/layer-library.ts'
import { OwnSource } from './lazy/own-source.ts'
import { SupernodeSource } from './lazy/supernode-source.ts'
import { startPeerStack, type Stops } from './peer-stack.ts'

/** A node that indexes for itself also serves containers: one thread leaves the other core to them. */
const INDEXER_THREADS = 1

export class NodeCore {
  readonly store: BlockStore
  readonly peer: Peer
  /** Files and blobs on their way here: one in flight for each, whoever asks. */
  readonly downloads: Downloads
  readonly library: LayerLibrary
  /** Supernodes first, then this node itself. */
  readonly sources: readonly ImageSource[]
  readonly #stops: Stops

  private constructor(parts: Pick<NodeCore, 'store' | 'peer' | 'downloads' | 'library' | 'sources'>, stops: Stops) {
    this.store = parts.store
    this.peer = parts.peer
    this.downloads = parts.downloads
    this.library = parts.library
    this.sources = parts.sources
    this.#stops = stops
  }

  static async start(config: NodeConfig, components: { logger: Logger; metrics: Registry }): Promise<NodeCore> {
    const { logger, metrics } = components
    const stops: Stops = []
    try {
      const { store, peer, downloads, identityFile } = await startPeerStack(config, components, stops, {
        backgroundBytesPerSecond: config['prefetch.rate'] || undefined,
        prefetch: { startMs: config['prefetch.delay'], quietMs: config['prefetch.quiet'] },
      })
      const heldFiles = new HeldFiles({ downloads, logger })
      peer.on('hold-file', ({ resource, name }) => heldFiles.hold(resource, name))

      const credentials = loadDockerConfig(config['registry.config'])
      const seed = (await loadIdentity(identityFile)).raw.subarray(0, 32)
      const secret = createHash('sha256').update('skimmer credentials').update(seed).digest()
      const state = new EmbeddedState({ open: (name) => store.sublevel(`own-${name}`), logger })
      const gate = new RegistryGate({ credentials, hosts: hostsConfig(config), logger, metrics }, { secret })
      stops.push(() => gate.close())
      const indexer = new IndexerPool({ threads: INDEXER_THREADS })
      stops.push(() => indexer.close())
      const origin = new LayerOrigin({ store, indexer, state, logger, metrics })
      stops.push(() => origin.close())
      const own = new OwnSource({ catalog: new ImageCatalog({ gate, state, logger }), origin })
      const supernode = new SupernodeSource({ supernodes: peer.supernodes, credentials })
      const library = new LayerLibrary({
        store,
        space: store.sublevel<unknown>('layers', { valueEncoding: 'json' }),
        logger,
        fetchObject: (digest, signal) => peer.fetcher.object(digest, { signal }),
      })
      await library.open()
      // When no peer and no supernode has a block, the layer is made again from the registry.
      peer.fetcher.setOrigin(async (resourceId, _, signal) => {
        const record = library.byResource(resourceId)?.record
        if (record?.reference === undefined) throw new SkimmerError('NOT_FOUND', `${resourceId}: no image reference is known by which a registry could be asked for it`)
        await own.bring(record.reference, record.diffId, signal)
      })
      return new NodeCore({ store, peer, downloads, library, sources: config.supernodes.length > 0 ? [supernode, own] : [own] }, stops)
    } catch (error) {
      for (const stop of stops.toReversed()) await stop().catch((cause: unknown) => logger.warn({ err: cause }, 'while giving up the start'))
      throw error
    }
  }

  async stop(): Promise<void> {
    for (const stop of this.#stops.toReversed()) await stop()
  }
}
