// How good a parent one peer would be for another: near, complete, idle, reliable, fast. A pure function of what is known.
import type { SchedulerPeer } from './scheduler-peer.ts'
import type { Holding } from './swarm.ts'

/**
 * Weights in the spirit of Dragonfly's evaluator (completeness, upload success, free uploads, location), which sum to 1 there:
 * here locality weighs most, because a datacenter's links between zones are what a swarm fills first.
 */
const WEIGHTS = { locality: 0.3, completeness: 0.25, free: 0.2, success: 0.15, throughput: 0.05, rtt: 0.05 }

export function parentScore(asker: SchedulerPeer, candidate: Holding, maxFanOut: number): number {
  const { peer } = candidate
  const slots = peer.uploadSlots === 0 ? 0 : peer.freeSlots() / peer.uploadSlots
  const free = Math.min(slots, 1 - candidate.children.size / maxFanOut)
  return (
    WEIGHTS.locality * locality(asker, peer) +
    WEIGHTS.completeness * candidate.fill +
    WEIGHTS.free * free +
    WEIGHTS.success * peer.success +
    WEIGHTS.throughput * relativeThroughput(asker, peer) +
    WEIGHTS.rtt * nearness(peer.rttMs)
  )
}

/** 1 in the same rack, 0.7 in the same zone, 0.4 when one of the two does not say, 0 in another zone. */
function locality(asker: SchedulerPeer, peer: SchedulerPeer): number {
  if (asker.rack !== undefined && asker.rack === peer.rack) return 1
  if (asker.zone === undefined || peer.zone === undefined) return 0.4
  return asker.zone === peer.zone ? 0.7 : 0
}

function relativeThroughput(asker: SchedulerPeer, peer: SchedulerPeer): number {
  if (peer.throughput === 0 || asker.supernodeThroughput === 0) return 0.5
  return peer.throughput / (peer.throughput + asker.supernodeThroughput)
}

/** 1 at 0 ms, a half at 5 ms (another zone of one region), towards 0 beyond; unknown counts as a half. */
function nearness(rttMs: number | undefined): number {
  return rttMs === undefined ? 0.5 : 5 / (5 + rttMs)
}
