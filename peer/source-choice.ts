// Whom to ask for a block that a reader waits for, and when to ask a second one: by what each peer showed so far.
import type { RemotePeer } from './remote-peer.ts'

const UNKNOWN_RATE = 20 * 1024 * 1024 // bytes per second, until something was measured
const UNKNOWN_LATENCY = 10 // milliseconds
/** A supernode serves many: a peer may be this much slower and is still preferred. */
const SUPERNODE_HANDICAP = 2
const SUPERNODE_HANDICAP_MS = 20
/** Bounds of the wait before another peer is asked as well, milliseconds. */
const HEDGE_MIN = 80
const HEDGE_MAX = 2_000
const HEDGE_UNKNOWN = 400

/** When `bytes` more would be here, milliseconds from now. */
export function expectedMillis(peer: RemotePeer, bytes: number): number {
  const rate = peer.speed.rate ?? UNKNOWN_RATE
  return (peer.speed.latency ?? UNKNOWN_LATENCY) + ((peer.outstandingBytes + bytes) / rate) * 1000
}

/** The best of the peers that may be asked for a demand; undefined when there is none. */
export function chooseSource(candidates: readonly RemotePeer[], bytes: number): RemotePeer | undefined {
  let best: RemotePeer | undefined
  let bestCost = Infinity
  for (const peer of candidates) {
    const millis = expectedMillis(peer, bytes)
    const cost = peer.supernode ? millis * SUPERNODE_HANDICAP + SUPERNODE_HANDICAP_MS : millis
    if (cost < bestCost) {
      best = peer
      bestCost = cost
    }
  }
  return best
}

/**
 * Milliseconds without the first byte after which a second peer is asked: well over what 95 of 100 requests took with this
 * peer, and the time that what was asked before needs.
 */
export function hedgeDelay(peer: RemotePeer, bytes: number): number {
  const queue = ((peer.outstandingBytes + bytes) / (peer.speed.rate ?? UNKNOWN_RATE)) * 1000
  const prompt = peer.speed.promptness
  return Math.min(HEDGE_MAX, Math.max(HEDGE_MIN, prompt === undefined ? HEDGE_UNKNOWN : prompt * 1.5) + queue)
}

/** So much of a link is kept asked for, seconds: more than it takes to ask and get an answer through the queues of a busy link, 50-100 ms. */
const PIPELINE_S = 0.2
const MOST_PIPELINE = 8 * 1024 * 1024

/**
 * Bytes to keep asked for in the background, so that a link never idles. With no more than the answer takes, a node that fell behind its source once stays
 * behind: measured at 200 Mbit/s with half of this, a backlog of 4-6 MB. A demand does not wait behind it: it is served first.
 */
export function pipelineBytes(peer: RemotePeer): number {
  const rate = peer.speed.rate
  if (rate === undefined) return 1024 * 1024
  return Math.min(MOST_PIPELINE, Math.max(512 * 1024, rate * PIPELINE_S))
}
