// dfget's own peer: store, peer, downloads and their API on a socket; it knows when nobody has used it for long enough.
import { chmodSync, rmSync } from 'node:fs'
import { createServer, type Server } from 'node:http'
import { join } from 'node:path'
import express from 'express'
import type { Logger } from 'pino'
import type { Registry } from 'prom-client'
import { SkimmerError } from '../oci/errors.ts'
import type { BlockStore } from '../peer/block-store.ts'
import { Downloads } from '../peer/downloads.ts'
import { Peer } from '../peer/peer.ts'
import { Sources } from '../source/sources.ts'
import { VERSION } from '../command-line/version.ts'
import { answerErrors } from './api-errors.ts'
import { DownloadApi } from './download-api.ts'
import { HostRate } from './host-rate.ts'
import type { PeerProcessOptions } from './peer-process-options.ts'
import { SharedRate } from './shared-rate.ts'

/** Whoever was told that it is ready has at least this long to ask for something. */
const LEAST_ALIVE_MS = 2_000
const FIRST_ALIVE_MS = 10_000

export interface ReadyAnswer {
  readonly ready: true
  readonly version: string
  readonly pid: number
  readonly peerId: string
  /** Addresses of supernodes that are connected. */
  readonly supernodes: readonly string[]
}

export class OwnPeer {
  /** Resolves when nobody has used it for long enough. */
  readonly idle: Promise<void>
  readonly peer: Peer
  readonly #stops: (() => Promise<unknown> | void)[]
  readonly #aliveMs: number
  readonly #ended = Promise.withResolvers<void>()
  #api!: DownloadApi
  #until: number
  #timer: NodeJS.Timeout | undefined

  private constructor(peer: Peer, stops: (() => Promise<unknown> | void)[], aliveMs: number) {
    this.peer = peer
    this.#stops = stops
    this.#aliveMs = aliveMs
    this.#until = performance.now() + Math.max(aliveMs, FIRST_ALIVE_MS)
    this.idle = this.#ended.promise
  }

  /** It serves when this resolves. The store is the caller's to close. */
  static async start(options: PeerProcessOptions & { joinToken?: string }, { store, metrics, logger }: { store: BlockStore; metrics: Registry; logger: Logger }): Promise<OwnPeer> {
    const stops: (() => Promise<unknown> | void)[] = []
    try {
      const peer = await Peer.start({ store, logger, metrics }, {
        listen: options.listen,
        announce: options.announce,
        identityFile: join(options.directory, 'identity'),
        supernodes: options.supernodes,
        joinToken: options.joinToken,
        labels: options.labels,
        version: VERSION,
        exchange: { uploadBytesPerSecond: options.uploadBytesPerSecond },
      })
      stops.push(() => peer.stop())
      const sources = new Sources({ logger })
      stops.push(() => sources.close())
      const downloads = new Downloads({ peer, logger, metrics })
      stops.push(() => downloads.stop())
      const rate = new HostRate({ bytesPerSecond: options.bytesPerSecond })
      const shared = new SharedRate({ rate }, { directory: options.rates })
      shared.start()
      stops.push(() => shared.stop())
      const own = new OwnPeer(peer, stops, options.aliveMs)
      own.#api = new DownloadApi({ downloads, sources, rate, logger }, {
        parallel: options.parallel,
        onUse: (request, ended) => {
          if (ended) own.#used(request.aliveMs)
          else shared.tick()
        },
      })
      stops.push(await own.#listen(options.socket, metrics, logger))
      own.#look()
      logger.info({ pid: process.pid, peerId: peer.id, addrs: peer.addresses, supernodes: options.supernodes }, 'peer started')
      return own
    } catch (error) {
      for (const stop of stops.toReversed()) await stop()
      throw error
    }
  }

  /** Breaks off the calls that run: their callers ask the next process to go on. */
  async stop(): Promise<void> {
    clearTimeout(this.#timer)
    for (const stop of this.#stops.splice(0).toReversed()) await stop()
  }

  #used(aliveMs = 0): void {
    this.#until = Math.max(this.#until, performance.now() + Math.max(this.#aliveMs, aliveMs, LEAST_ALIVE_MS))
  }

  /** Ends when its time has come, unless a download runs. A peer that is just being served is let finish, for one more such time at most. */
  #look(): void {
    const now = performance.now()
    const { exchange } = this.peer
    const serving = exchange.slotsFree < exchange.uploadSlots && now < this.#until + this.#aliveMs
    if (this.#api.active === 0 && now >= this.#until && !serving) return this.#ended.resolve()
    const wait = this.#api.active > 0 || now >= this.#until ? 500 : this.#until - now
    this.#timer = setTimeout(() => this.#look(), Math.min(wait, 60_000))
  }

  async #listen(socket: string, metrics: Registry, logger: Logger): Promise<() => Promise<void>> {
    const app = express()
    app.disable('x-powered-by')
    app.get('/v1/ready', (_, response) => {
      const supernodes = this.peer.supernodes.inOrder('').map(({ address }) => address)
      response.json({ ready: true, version: VERSION, pid: process.pid, peerId: this.peer.id, supernodes } satisfies ReadyAnswer)
    })
    app.use(this.#api.router())
    app.get('/metrics', async (_, response) => {
      response.setHeader('content-type', metrics.contentType)
      response.end(await metrics.metrics())
    })
    app.use((request) => {
      throw new SkimmerError('NOT_FOUND', `${request.method} ${request.path}: this API has no such call`)
    })
    app.use(answerErrors(logger))
    const server = createServer({ requestTimeout: 15_000 }, app)
    // Whoever has the store has the socket: what is there is left from one that died.
    rmSync(socket, { force: true })
    await listen(server, socket)
    chmodSync(socket, 0o600)
    return async () => {
      // New callers start the next process; calls that were taken until now are broken off.
      const closed = new Promise((resolve) => server.close(resolve))
      server.closeAllConnections()
      await closed
    }
  }
}

function listen(server: Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject)
    server.listen(path, () => {
      server.off('error', reject)
      resolve()
    })
  })
}
