// The downloads of a node: one in flight for each key, however many ask.
import type { Logger } from 'pino'
import type { Registry } from 'prom-client'
import type { Download } from './download.ts'
import type { DownloadRequest } from './download-request.ts'
import type { Peer } from './peer.ts'

export declare class Downloads {
  constructor(components: { peer: Peer; logger: Logger; metrics: Registry }, options?: object)
  open(request: DownloadRequest, options?: { signal?: AbortSignal }): Promise<Download>
  list(): Download[]
  stop(): Promise<void>
}
