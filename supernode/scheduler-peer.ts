// One peer as the scheduler knows it: where it is, whether it lives, how well it serves, what it holds.
import type { Holding } from './swarm.ts'

/** What a peer says of itself when it says hello. */
export interface PeerAnnouncement {
  readonly id: string
  readonly addrs: readonly string[]
  /** `zone` and `rack` steer locality; others are kept for the console. */
  readonly labels: Readonly<Record<string, string>>
  readonly uploadSlots: number
  readonly version?: string
}

const SMOOTHING = 0.3

export class SchedulerPeer {
  readonly id: string
  addrs: readonly string[] = []
  labels: Readonly<Record<string, string>> = {}
  uploadSlots = 0
  version: string | undefined
  readonly firstSeen: number
  lastSeen: number
  /** Milliseconds between this supernode and the peer, when measured. */
  rttMs: number | undefined
  bannedUntil = 0
  banReason: string | undefined
  /** Share of requests that this peer answered well, smoothed; starts well-meaning. */
  success = 1
  /** Bytes a second its children saw, smoothed; 0 while unknown. */
  throughput = 0
  bytesServed = 0
  bytesReceived = 0
  /** Bytes a second this peer gets from the supernode: what a parent must not fall far below. */
  supernodeThroughput = 0
  readonly holdings = new Map<string, Holding>()
  /** Parents that this peer is not sent to until a time. */
  readonly avoided = new Map<string, number>()
  /** Who complained of this peer, and until when the complaint counts: one hostile reporter must not silence it for all. */
  readonly complaints = new Map<string, number>()
  /** Distinct children over all resources, and how many resources each is here for. */
  readonly children = new Map<string, number>()

  constructor(id: string, now: number) {
    this.id = id
    this.firstSeen = now
    this.lastSeen = now
  }

  get zone(): string | undefined {
    return this.labels.zone
  }

  get rack(): string | undefined {
    return this.labels.rack === undefined ? undefined : `${this.labels.zone ?? ''}/${this.labels.rack}`
  }

  freeSlots(): number {
    return Math.max(0, this.uploadSlots - this.children.size)
  }

  avoids(parent: string, now: number): boolean {
    const until = this.avoided.get(parent)
    if (until === undefined) return false
    if (until > now) return true
    this.avoided.delete(parent)
    return false
  }

  measured(bytes: number, millis: number): void {
    if (millis <= 0) return
    this.throughput = smooth(this.throughput, (bytes * 1000) / millis)
  }

  measuredSupernode(bytes: number, millis: number): void {
    if (millis <= 0) return
    this.supernodeThroughput = smooth(this.supernodeThroughput, (bytes * 1000) / millis)
  }

  answered(good: number, failed: number): void {
    if (good + failed === 0) return
    this.success += SMOOTHING * (good / (good + failed) - this.success)
  }
}

const smooth = (old: number, value: number): number => (old === 0 ? value : old + SMOOTHING * (value - old))
