// The scheduler: who has what, and whom to ask for it. Pure code: no network, no timers; the clock is handed in.
import { SkimmerError } from '../oci/errors.ts'
import {
  DEFAULT_BAN_MS, DEFAULT_DEAD_AFTER_MS, DEFAULT_FAN_OUT, DEFAULT_FORGET_AFTER_MS, DEFAULT_INTEREST_MS, DEFAULT_LEASE_MS, DEFAULT_MAX_FAN_OUT,
  DEFAULT_MAX_PEERS, DEFAULT_MAX_RESOURCES_PER_PEER, DEFAULT_MINIMUM_MEASURED_BYTES, DEFAULT_PENALTY_MS, DEFAULT_SAMPLE, DEFAULT_SLOW_FACTOR,
} from './defaults.ts'
import { parentScore } from './parent-score.ts'
import { SchedulerPeer } from './scheduler-peer.ts'
import type { PeerAnnouncement } from './scheduler-peer.ts'
import { seededRandom } from './seeded-random.ts'
import { Swarm } from './swarm.ts'
import type { Holding } from './swarm.ts'

const DEFAULTS = {
  fanOut: DEFAULT_FAN_OUT, maxFanOut: DEFAULT_MAX_FAN_OUT, leaseMs: DEFAULT_LEASE_MS, deadAfterMs: DEFAULT_DEAD_AFTER_MS,
  forgetAfterMs: DEFAULT_FORGET_AFTER_MS, interestMs: DEFAULT_INTEREST_MS, sample: DEFAULT_SAMPLE, slowFactor: DEFAULT_SLOW_FACTOR,
  minimumMeasuredBytes: DEFAULT_MINIMUM_MEASURED_BYTES, penaltyMs: DEFAULT_PENALTY_MS, maxPeers: DEFAULT_MAX_PEERS,
  maxResourcesPerPeer: DEFAULT_MAX_RESOURCES_PER_PEER, seed: 1,
}
export type SchedulerOptions = Partial<typeof DEFAULTS>

export interface ParentOffer {
  readonly peerId: string
  readonly addrs: readonly string[]
  readonly whole: boolean
  /** Share of the resource it holds, 0..1. */
  readonly fill: number
  /** Upload slots believed free. */
  readonly slots: number
  /** The parent in the resource's tree: blocks flow to it from a root without passing the asker. */
  readonly tree: boolean
}

/** How one parent did for one child. */
export interface TransferReport {
  readonly peerId: string
  readonly bytes: number
  readonly blocks: number
  readonly failures: number
  /** Milliseconds of transfer. */
  readonly millis: number
}

/** Complaints of as many different peers silence a parent for all. */
const COMPLAINTS_TO_SILENCE = 3
/** A peer remembers this many parents to avoid; the oldest go first. */
const MAX_AVOIDED = 256
/** What one more hop on a block's way costs, against the score's 0..1. */
const DEPTH_COST = 0.04
/** What an existing connection is worth against a slightly better stranger. */
const KEPT_BONUS = 0.1

/**
 * Every peer that asks for a resource joins its swarm, and gets: one *tree parent* that is whole or joined earlier (so the tree has no
 * circles and every branch ends at a whole peer or at one that asks the supernode) with at most `fanOut` tree children, as in DADI; then
 * *mesh* neighbours, near and free ones first, to trade blocks with. Nobody has more than `maxFanOut` children for one resource or more
 * distinct children than upload slots. Where nobody is free the answer is short or empty: the asker then uses the supernode.
 */
export class Scheduler {
  /** Least recently heard of first. */
  readonly #peers = new Map<string, SchedulerPeer>()
  readonly #swarms = new Map<string, Swarm>()
  readonly #supernodes: Set<string>
  readonly #clock: () => number
  readonly #random: () => number
  readonly #options: typeof DEFAULTS

  /** `clock` gives milliseconds; `supernodes` are peer ids whose transfers are what parents are measured against. */
  constructor(components: { clock: () => number; supernodes?: Iterable<string> }, options: SchedulerOptions = {}) {
    this.#clock = components.clock
    this.#supernodes = new Set(components.supernodes)
    this.#options = { ...DEFAULTS, ...options }
    this.#random = seededRandom(this.#options.seed)
  }

  /** A peer says who it is, or that it still lives. LIMIT_EXCEEDED when there are too many peers, FORBIDDEN while it is banned. */
  hello(announcement: PeerAnnouncement): void {
    const now = this.#clock()
    let peer = this.#peers.get(announcement.id)
    if (peer === undefined) {
      if (this.#peers.size >= this.#options.maxPeers) this.sweep()
      if (this.#peers.size >= this.#options.maxPeers) throw new SkimmerError('LIMIT_EXCEEDED', `this supernode knows ${this.#peers.size} peers and takes no more; raise limits.peers`)
      peer = new SchedulerPeer(announcement.id, now)
      this.#peers.set(peer.id, peer)
    }
    if (peer.bannedUntil > now) throw new SkimmerError('FORBIDDEN', `peer ${peer.id} is banned: ${peer.banReason}`)
    this.#touch(peer, now)
    peer.addrs = announcement.addrs
    peer.uploadSlots = announcement.uploadSlots
    peer.version = announcement.version
    if (peer.labels.zone !== announcement.labels.zone || peer.labels.rack !== announcement.labels.rack) this.#relabel(peer, announcement.labels)
    peer.labels = announcement.labels
  }

  leave(peerId: string): void {
    const peer = this.#peers.get(peerId)
    if (peer === undefined) return
    for (const resource of peer.holdings.keys()) this.#drop(peer, resource)
    this.#peers.delete(peerId)
  }

  /** `fill` is the share of the resource that the peer holds: 1 when whole. Replaces what was said before. */
  announce(peerId: string, resource: string, fill: number): void {
    const peer = this.#known(peerId)
    const now = this.#clock()
    this.#touch(peer, now)
    const swarm = this.#swarm(resource)
    swarm.update(this.#join(peer, resource, swarm, now), fill >= 1, fill, now)
  }

  gone(peerId: string, resource: string): void {
    const peer = this.#known(peerId)
    this.#touch(peer, this.#clock())
    this.#drop(peer, resource)
  }

  /** Nobody may fetch this any more. */
  forgetResource(resource: string): void {
    const swarm = this.#swarms.get(resource)
    if (swarm === undefined) return
    for (const holding of swarm.holdings.values()) this.#drop(holding.peer, resource)
  }

  /** Whom `peerId` should ask for `resource`, best first. FORBIDDEN when it never said hello. */
  parents(peerId: string, resource: string, count: number, exclude: readonly string[] = []): ParentOffer[] {
    const asker = this.#known(peerId)
    const now = this.#clock()
    this.#touch(asker, now)
    if (asker.bannedUntil > now) return []
    const swarm = this.#swarm(resource)
    const child = this.#join(asker, resource, swarm, now)

    const excluded = new Set(exclude)
    for (const parent of child.parents) if (!this.#fit(parent, asker, excluded, now)) swarm.release(parent, child)
    const scores = new Map<Holding, number>()
    for (const parent of child.parents) scores.set(parent, parentScore(asker, parent, this.#options.maxFanOut) + KEPT_BONUS)
    const stale: Holding[] = []
    for (const candidate of swarm.sample(asker, this.#options.sample, this.#random)) {
      if (scores.has(candidate) || candidate === child) continue
      if (candidate.fill === 0 && now - candidate.seen > this.#options.interestMs) stale.push(candidate)
      else if (this.#fit(candidate, asker, excluded, now) && this.#room(swarm, candidate, asker, now)) scores.set(candidate, parentScore(asker, candidate, this.#options.maxFanOut))
    }
    for (const holding of stale) this.#drop(holding.peer, resource)

    const ranked = [...scores.keys()].sort((a, b) => scores.get(b)! - scores.get(a)! || a.sequence - b.sequence)
    // Who says that it has it all (and asks because a block went bad) has no place below others in the tree: it is a root.
    const tree = child.whole ? undefined : (child.treeParent ?? this.#treeParent(child, ranked, scores))
    const chosen = tree === undefined ? ranked.slice(0, count) : [tree, ...ranked.filter(candidate => candidate !== tree)].slice(0, count)
    for (const parent of chosen) swarm.lease(parent, child, now + this.#options.leaseMs)
    if (tree !== undefined) swarm.graft(child, tree)
    return chosen.map(({ peer, whole, fill }) => ({ peerId: peer.id, addrs: peer.addrs, whole, fill, slots: peer.freeSlots(), tree: peer === tree?.peer }))
  }

  /** What a peer's fetches taught: slow or failing parents are not offered to it for a while, and to nobody when several complain. */
  report(peerId: string, resource: string, transfers: readonly TransferReport[]): void {
    const reporter = this.#known(peerId)
    const now = this.#clock()
    this.#touch(reporter, now)
    const { minimumMeasuredBytes, slowFactor, leaseMs } = this.#options
    const swarm = this.#swarms.get(resource)
    const child = swarm?.holdings.get(peerId)
    // The yardstick first, so that one report's order does not matter.
    for (const transfer of transfers) {
      reporter.bytesReceived += transfer.bytes
      if (this.#supernodes.has(transfer.peerId) && transfer.bytes >= minimumMeasuredBytes) reporter.measuredSupernode(transfer.bytes, transfer.millis)
    }
    for (const transfer of transfers) {
      const parent = this.#peers.get(transfer.peerId)
      if (parent === undefined || parent === reporter) continue
      parent.bytesServed += transfer.bytes
      parent.answered(transfer.blocks, transfer.failures)
      const measured = transfer.bytes >= minimumMeasuredBytes && transfer.millis > 0
      if (measured) parent.measured(transfer.bytes, transfer.millis)
      const slow = measured && (transfer.bytes * 1000) / transfer.millis < reporter.supernodeThroughput * slowFactor
      const failing = transfer.failures > transfer.blocks
      const holding = swarm?.holdings.get(parent.id)
      if (slow || failing) this.#avoid(reporter, parent, failing, now)
      if (holding === undefined || child === undefined || !child.parents.has(holding)) continue
      if (slow || failing) swarm!.release(holding, child)
      else swarm!.lease(holding, child, now + leaseMs)
    }
  }

  measuredRtt(peerId: string, rttMs: number): void {
    const peer = this.#peers.get(peerId)
    if (peer !== undefined) peer.rttMs = peer.rttMs === undefined ? rttMs : 0.7 * peer.rttMs + 0.3 * rttMs
  }

  /** A peer that was proved to lie: offered to nobody, served nothing, until the ban ends. */
  ban(peerId: string, reason: string, durationMs: number = DEFAULT_BAN_MS): void {
    const peer = this.#peers.get(peerId)
    if (peer === undefined) return
    for (const resource of peer.holdings.keys()) this.#drop(peer, resource)
    peer.bannedUntil = this.#clock() + durationMs
    peer.banReason = reason
  }

  /** Forget peers that were silent for long, unless they are banned. Returns who is gone. */
  sweep(): string[] {
    const now = this.#clock()
    const gone: string[] = []
    for (const peer of this.#peers.values()) {
      if (now - peer.lastSeen <= this.#options.forgetAfterMs) break
      if (peer.bannedUntil <= now) gone.push(peer.id)
    }
    for (const id of gone) this.leave(id)
    return gone
  }

  /** Whether it said hello and is not banned. */
  knows(peerId: string): boolean {
    const peer = this.#peers.get(peerId)
    return peer !== undefined && peer.bannedUntil <= this.#clock()
  }

  banned(peerId: string): boolean {
    return (this.#peers.get(peerId)?.bannedUntil ?? 0) > this.#clock()
  }

  holdsWhole(peerId: string, resource: string): boolean {
    return this.#peers.get(peerId)?.holdings.get(resource)?.whole === true
  }

  alive(peerId: string): boolean {
    const peer = this.#peers.get(peerId)
    return peer !== undefined && this.#alive(peer, this.#clock())
  }

  /** Every peer, least recently heard of first. */
  peers(): IterableIterator<SchedulerPeer> {
    return this.#peers.values()
  }

  get peerCount(): number {
    return this.#peers.size
  }

  /** Who holds how much of a resource. */
  holders(resource: string): { peerId: string; whole: boolean; fill: number; children: number; treeParent?: string }[] {
    return [...(this.#swarms.get(resource)?.holdings.values() ?? [])].map(holding => ({
      peerId: holding.peer.id, whole: holding.whole, fill: holding.fill, children: holding.children.size, treeParent: holding.treeParent?.peer.id,
    }))
  }

  #alive(peer: SchedulerPeer, now: number): boolean {
    return peer.bannedUntil <= now && now - peer.lastSeen <= this.#options.deadAfterMs
  }

  #fit(candidate: Holding, asker: SchedulerPeer, excluded: ReadonlySet<string>, now: number): boolean {
    const { peer } = candidate
    return peer !== asker && this.#alive(peer, now) && peer.addrs.length > 0 && !excluded.has(peer.id) && !asker.avoids(peer.id, now) && !this.#silenced(peer, now)
  }

  #room(swarm: Swarm, candidate: Holding, asker: SchedulerPeer, now: number): boolean {
    swarm.expire(candidate, now)
    return candidate.children.size < this.#options.maxFanOut && (candidate.peer.freeSlots() > 0 || candidate.peer.children.has(asker.id))
  }

  #treeParent(child: Holding, ranked: readonly Holding[], scores: ReadonlyMap<Holding, number>): Holding | undefined {
    let best: Holding | undefined
    let bestScore = -Infinity
    for (const candidate of ranked) {
      if ((!candidate.whole && candidate.sequence > child.sequence) || candidate.treeChildren >= this.#options.fanOut) continue
      const score = scores.get(candidate)! - DEPTH_COST * candidate.depth
      if (score > bestScore) [best, bestScore] = [candidate, score]
    }
    return best
  }

  #silenced(peer: SchedulerPeer, now: number): boolean {
    for (const [complainer, until] of peer.complaints) if (until <= now) peer.complaints.delete(complainer)
    return peer.complaints.size >= COMPLAINTS_TO_SILENCE
  }

  #avoid(reporter: SchedulerPeer, parent: SchedulerPeer, failing: boolean, now: number): void {
    const until = now + this.#options.penaltyMs
    reporter.avoided.delete(parent.id)
    reporter.avoided.set(parent.id, until)
    if (reporter.avoided.size > MAX_AVOIDED) reporter.avoided.delete(reporter.avoided.keys().next().value!)
    if (failing && parent.complaints.size < MAX_AVOIDED) parent.complaints.set(reporter.id, until)
  }

  #known(peerId: string): SchedulerPeer {
    const peer = this.#peers.get(peerId)
    if (peer === undefined) throw new SkimmerError('FORBIDDEN', `peer ${peerId} has not said hello to this supernode`)
    return peer
  }

  #touch(peer: SchedulerPeer, now: number): void {
    peer.lastSeen = now
    this.#peers.delete(peer.id)
    this.#peers.set(peer.id, peer)
  }

  #swarm(resource: string): Swarm {
    let swarm = this.#swarms.get(resource)
    if (swarm === undefined) this.#swarms.set(resource, (swarm = new Swarm()))
    return swarm
  }

  #join(peer: SchedulerPeer, resource: string, swarm: Swarm, now: number): Holding {
    if (!peer.holdings.has(resource) && peer.holdings.size >= this.#options.maxResourcesPerPeer) {
      if (swarm.holdings.size === 0) this.#swarms.delete(resource)
      throw new SkimmerError('LIMIT_EXCEEDED', `peer ${peer.id} announces more than ${this.#options.maxResourcesPerPeer} resources`)
    }
    const holding = swarm.join(peer, now)
    peer.holdings.set(resource, holding)
    return holding
  }

  #drop(peer: SchedulerPeer, resource: string): void {
    peer.holdings.delete(resource)
    const swarm = this.#swarms.get(resource)
    swarm?.leave(peer.id)
    if (swarm?.holdings.size === 0) this.#swarms.delete(resource)
  }

  #relabel(peer: SchedulerPeer, labels: Readonly<Record<string, string>>): void {
    const swarms = [...peer.holdings.keys()].map(resource => this.#swarms.get(resource)!)
    const old = peer.labels
    for (const swarm of swarms) {
      peer.labels = old
      swarm.relabel(peer.id, () => { peer.labels = labels })
    }
  }
}
