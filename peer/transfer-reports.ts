// Tells the scheduler how parents did: sums by resource and peer, sent every few seconds.
import type { Supernodes } from './supernodes.ts'

const EVERY_MS = 3_000

interface Sum { bytes: number; blocks: number; failures: number; millis: number }

export class TransferReports {
  readonly #supernodes: Supernodes
  readonly #sums = new Map<string, Map<string, Sum>>()
  #timer: NodeJS.Timeout | undefined

  constructor(supernodes: Supernodes) {
    this.#supernodes = supernodes
  }

  add(resource: string, peerId: string, bytes: number, blocks: number, failures: number, millis: number): void {
    let peers = this.#sums.get(resource)
    if (peers === undefined) this.#sums.set(resource, peers = new Map())
    const sum = peers.get(peerId) ?? { bytes: 0, blocks: 0, failures: 0, millis: 0 }
    peers.set(peerId, { bytes: sum.bytes + bytes, blocks: sum.blocks + blocks, failures: sum.failures + failures, millis: sum.millis + millis })
    this.#timer ??= setTimeout(() => this.#send(), EVERY_MS)
  }

  stop(): void {
    clearTimeout(this.#timer)
  }

  #send(): void {
    this.#timer = undefined
    const sums = [...this.#sums]
    this.#sums.clear()
    for (const [resource, peers] of sums) void this.#supernodes.tell('report', { resource, from: [...peers].slice(0, 256).map(([peerId, sum]) => ({ peerId, ...sum })) })
  }
}
