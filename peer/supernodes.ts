// The supernodes this node is configured with: kept connected, greeted, listened to, and called in the order of rendezvous hashing.
import { createHash } from 'node:crypto'
import type { Libp2p } from '@libp2p/interface'
import { multiaddr } from '@multiformats/multiaddr'
import type { Logger } from 'pino'
import { SkimmerError, hasCode } from '../oci/errors.ts'
import { ControlClient } from './control-client.ts'
import type { ControlCallOptions } from './control-client.ts'
import type { ControlAnswer, ControlEvent, ControlOperation, ControlRequest } from './control.ts'
import { parseAddress } from './host.ts'
import { pause } from './pause.ts'

export interface SupernodesOptions {
  /** Multiaddrs or `host:port`, each optionally with `/p2p/<peer id>`: without it whoever answers there is trusted. */
  supernodes: readonly string[]
  /** What `hello` says of this node, asked anew each time. */
  greeting: () => ControlRequest<'hello'>
  /** A call made while no supernode is connected waits for one so long, milliseconds. Default 3,000. */
  connectWaitMs?: number
}

export interface SupernodesEvents {
  /** Greeted: `grantKey` is to be trusted. */
  up(supernode: ConnectedSupernode, grantKey: string): void
  down(peerId: string): void
  event(event: ControlEvent): void
  grant(token: string): void
}

export interface SupernodeCallOptions<O extends ControlOperation> extends ControlCallOptions<O> {
  /** Whose it is: rendezvous hashing of this decides who is asked first. Default: the operation. */
  key?: string
  /** Called with each supernode's peer id just before it is asked: progress that follows is its. */
  onAsked?: (peerId: string) => void
}

export interface ConnectedSupernode { readonly peerId: string; readonly address: string; readonly client: ControlClient }

const MIN_BACKOFF_MS = 250
const MAX_BACKOFF_MS = 10_000

export class Supernodes {
  events: SupernodesEvents | undefined
  readonly #libp2p: Libp2p
  readonly #logger: Logger
  readonly #options: SupernodesOptions
  readonly #up = new Map<string, ConnectedSupernode>()
  readonly #abort = new AbortController()
  readonly #loops: Promise<void>[] = []
  #waiting: (() => void)[] = []
  /** Addresses that have not failed yet since they were last up: only these are worth waiting for. */
  readonly #hopeful = new Set<string>()

  constructor(components: { libp2p: Libp2p; logger: Logger }, options: SupernodesOptions) {
    this.#libp2p = components.libp2p
    this.#logger = components.logger
    this.#options = options
    for (const address of options.supernodes) parseAddress(address)
  }

  start(): void {
    for (const address of new Set(this.#options.supernodes)) {
      this.#hopeful.add(address)
      this.#loops.push(this.#keep(address))
    }
  }

  async stop(): Promise<void> {
    this.#abort.abort(new SkimmerError('ABORTED', 'this peer is stopping'))
    await Promise.all(this.#loops)
  }

  get configured(): boolean {
    return this.#options.supernodes.length > 0
  }

  /** Connected supernodes, the one that `key` (a resource id, a reference) belongs to first. */
  inOrder(key: string): ConnectedSupernode[] {
    if (this.#up.size < 2) return [...this.#up.values()]
    return [...this.#up.values()]
      .map(supernode => ({ supernode, score: createHash('sha256').update(`${supernode.peerId}\n${key}`).digest('hex') }))
      .sort((a, b) => (a.score < b.score ? 1 : -1))
      .map(({ supernode }) => supernode)
  }

  /**
   * Calls the supernode that `key` belongs to, and the next ones when it is gone. Grants in answers are kept.
   * UNAVAILABLE when no supernode can be reached.
   */
  async call<O extends ControlOperation>(operation: O, request: ControlRequest<O>, options: SupernodeCallOptions<O> = {}): Promise<ControlAnswer<O>> {
    if (this.#up.size === 0) await this.#someone(options.signal)
    let last: unknown
    for (const supernode of this.inOrder(options.key ?? operation)) {
      options.onAsked?.(supernode.peerId)
      try {
        const answer = await supernode.client.call(operation, request, options)
        if ('grant' in answer && typeof answer.grant === 'string') this.events?.grant(answer.grant)
        return answer
      } catch (error) {
        if (!hasCode(error, 'UNAVAILABLE', 'TIMEOUT')) throw error
        last = error
      }
    }
    throw last ?? new SkimmerError('UNAVAILABLE', this.configured ? `${operation}: no supernode can be reached; check ${this.#options.supernodes.join(', ')}` : `${operation}: no supernode is configured`)
  }

  /** The same call to every connected supernode; failures are logged only. */
  async tell<O extends ControlOperation>(operation: O, request: ControlRequest<O>): Promise<void> {
    await Promise.all([...this.#up.values()].map(async supernode => {
      try {
        await supernode.client.call(operation, request, { signal: this.#abort.signal })
      } catch (error) {
        this.#logger.debug({ operation, supernode: supernode.peerId, err: error }, 'a supernode could not be told')
      }
    }))
  }

  async #someone(signal: AbortSignal | undefined): Promise<void> {
    const until = performance.now() + (this.#options.connectWaitMs ?? 3_000)
    while (this.#up.size === 0 && this.#hopeful.size > 0 && !this.#abort.signal.aborted) {
      signal?.throwIfAborted()
      const left = until - performance.now()
      if (left <= 0) return
      await new Promise<void>(resolve => {
        const timer = setTimeout(resolve, left)
        this.#waiting.push(() => {
          clearTimeout(timer)
          resolve()
        })
      })
    }
  }

  #wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve()
  }

  /** Connects, greets, listens; and again after every failure, for as long as this node lives. */
  async #keep(address: string): Promise<void> {
    const { signal } = this.#abort
    let backoff = MIN_BACKOFF_MS
    while (!signal.aborted) {
      let peerId: string | undefined
      try {
        const target = parseAddress(address)
        const connection = await this.#libp2p.dial(target, { signal: AbortSignal.any([signal, AbortSignal.timeout(5_000)]) })
        peerId = connection.remotePeer.toString()
        const full = target.toString().includes('/p2p/') ? target : multiaddr(`${target.toString()}/p2p/${peerId}`)
        const supernode: ConnectedSupernode = { peerId, address: full.toString(), client: new ControlClient({ libp2p: this.#libp2p }, { peer: full }) }
        await this.#stay(supernode, address, () => { backoff = MIN_BACKOFF_MS })
      } catch (error) {
        if (!signal.aborted) this.#logger.warn({ supernode: address, error: (error as Error).message }, 'a supernode cannot be reached; trying again')
      }
      if (peerId !== undefined && this.#up.delete(peerId)) this.events?.down(peerId)
      this.#hopeful.delete(address)
      this.#wake()
      await pause(backoff * (0.75 + Math.random() / 2), signal)
      backoff = Math.min(MAX_BACKOFF_MS, backoff * 2)
    }
  }

  /** Resolves or rejects when the supernode is gone. */
  async #stay(supernode: ConnectedSupernode, address: string, greeted: () => void): Promise<void> {
    const over = new AbortController()
    const signal = AbortSignal.any([this.#abort.signal, over.signal])
    const hello = await supernode.client.call('hello', this.#options.greeting(), { signal })
    greeted()
    this.#hopeful.add(address)
    this.#up.set(supernode.peerId, supernode)
    this.#logger.info({ supernode: supernode.peerId, address: supernode.address }, 'connected to a supernode')
    this.events?.up(supernode, hello.grantKey)
    this.#wake()
    try {
      await Promise.race([this.#listen(supernode, signal), this.#beat(supernode, hello.heartbeatMs, signal)])
    } finally {
      over.abort(new SkimmerError('ABORTED', 'the supernode is gone'))
    }
  }

  async #listen(supernode: ConnectedSupernode, signal: AbortSignal): Promise<void> {
    await supernode.client.call('events', {}, { signal, onProgress: event => this.events?.event(event) })
    throw new SkimmerError('UNAVAILABLE', 'the supernode ended its events')
  }

  async #beat(supernode: ConnectedSupernode, everyMs: number, signal: AbortSignal): Promise<void> {
    for (;;) {
      await pause(everyMs, signal)
      signal.throwIfAborted()
      const hello = await supernode.client.call('hello', this.#options.greeting(), { signal })
      this.events?.up(supernode, hello.grantKey)
    }
  }
}
