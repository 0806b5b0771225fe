// Files through the node: dfget's API over the node's own downloads, with the host's rate and what one user's processes share of it.
import { join } from 'node:path'
import type { Logger } from 'pino'
import { DownloadApi } from '../dfget/download-api.ts'
import { HostRate } from '../dfget/host-rate.ts'
import { runtimeDirectory } from '../dfget/peer-place.ts'
import { SharedRate } from '../dfget/shared-rate.ts'
import { Sources } from '../source/sources.ts'
import type { NodeConfig } from './config/node-settings.ts'
import { hostsConfig } from './config/registries.ts'
import type { NodeCore } from './core.ts'

export class NodeFiles {
  readonly api: DownloadApi
  readonly #stops: (() => Promise<void> | void)[] = []

  constructor(config: NodeConfig, { core, logger: parent }: { core: NodeCore; logger: Logger }) {
    const logger = parent.child({ room: 'dfget' })
    const sources = new Sources({ hosts: hostsConfig(config), logger })
    this.#stops.push(() => sources.close())
    const rate = new HostRate({ bytesPerSecond: config['download.rate'] })
    const shared = new SharedRate({ rate }, { directory: join(runtimeDirectory(), 'rates') })
    shared.start()
    this.#stops.push(() => shared.stop())
    this.api = new DownloadApi({ downloads: core.downloads, sources, rate, logger }, {
      parallel: config['download.parallel'],
      onUse: (_, ended) => {
        if (!ended) shared.tick()
      },
    })
  }

  async stop(): Promise<void> {
    for (const stop of this.#stops.toReversed()) await stop()
  }
}
