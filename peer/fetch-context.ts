// What the fetches of single resources share: peers, limits, accounts, and the moment a reader last waited.
import type { Logger } from 'pino'
import type { SkimmerError } from '../oci/errors.ts'
import type { FetchAccounting, Source } from './fetch-accounting.ts'
import type { Origin } from './fetch-task.ts'
import type { RemotePeer } from './remote-peer.ts'
import type { Resource } from './resource.ts'
import type { TokenBucket } from './token-bucket.ts'

export interface FetchLimits {
  /** A reader's wait ends after this, milliseconds. Default 30,000. */
  readonly demandTimeout: number
  /** Background work without any progress ends after this, milliseconds. Default 60,000. */
  readonly backgroundTimeout: number
  /** A background request that brings nothing for this long goes to another peer, milliseconds. Default 4,000. */
  readonly stallTimeout: number
  /** Background work that no peer can serve waits this long for the peer whose part it is, before the supernode is asked. Default 300. */
  readonly stealAfter: number
  /** A reader waits this long for some peer or supernode to be connected before the origin is tried, milliseconds. Default 1,000. */
  readonly originAfter: number
}

export const DEFAULT_FETCH_LIMITS: FetchLimits = { demandTimeout: 30_000, backgroundTimeout: 60_000, stallTimeout: 4_000, stealAfter: 300, originAfter: 1_000 }

export interface FetchContext {
  /** This node's number for stripes. */
  readonly self: number
  readonly limits: FetchLimits
  readonly logger: Logger
  readonly accounting: FetchAccounting
  /** Paces background work. */
  readonly background: TokenBucket
  readonly origin: Origin | undefined
  /** Connected peers that may be asked for a resource. */
  peers(resourceId: string): readonly RemotePeer[]
  /** Connected supernodes, the one that has the resource first. */
  supernodes(resourceId: string): readonly RemotePeer[]
  /** It lied. It is not asked again. */
  ban(peer: RemotePeer, reason: string): void
  /** It said no: the grant may need renewal, or others must be found. */
  refused(peer: RemotePeer, resourceId: string, error: SkimmerError): void
  /** More peers would help. */
  morePeers(resource: Resource): void
  /** For the scheduler. */
  served(resourceId: string, peer: RemotePeer, bytes: number, blocks: number, failures: number, millis: number): void
  /** A reader's miss began (+1) or ended (-1). */
  demand(change: 1 | -1): void
  /** True while a reader waits, here or for another resource. */
  demandWaits(): boolean
}

export function sourceOf(peer: RemotePeer): Source {
  return peer.supernode ? 'supernode' : 'peer'
}
