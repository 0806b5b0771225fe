// What a resource is made of, and what the block store does for it.
import type { Logger } from 'pino'
import type { BlockTable } from '../image/block-table.ts'
import type { HeldRing } from './held-blocks.ts'
import type { PackFile } from './pack-file.ts'
import type { Prover } from './proof.ts'
import type { RawFile } from './raw-file.ts'
import type { Resource } from './resource.ts'
import type { StoreMetrics } from './store-metrics.ts'
import type { ResourceRecord } from './store-records.ts'

/** What the store does for its resources. */
export interface ResourceKeeper {
  readonly logger: Logger
  readonly metrics: StoreMetrics
  readonly prover: Prover
  readonly ring: HeldRing
  readonly now: () => number
  /** Takes room in the account, dropping other things if it must; NO_SPACE. Undefined when there was room at once: nothing to wait for. */
  takePacked(resource: Resource, bytes: number, priority: 'demand' | 'background'): Promise<void> | undefined
  /** The same for a raw file, which is never worth what others hold; false when there is no room. */
  takeRaw(resource: Resource, bytes: number): Promise<boolean>
  give(kind: 'packed' | 'raw', bytes: number): void
  save(resource: Resource, durable: boolean): Promise<void>
  /** Hashes of these blocks have come to be known: copies can be found by them, and they must be saved. */
  learnt(resource: Resource, from: number, to: number): void
  quarantine(id: string, reason: string): Promise<void>
  /** Something may be dropped now that could not before. */
  droppable(): void
}

export interface ResourceParts {
  readonly id: string
  /** Unique in this process. */
  readonly number: number
  readonly table: BlockTable
  readonly record: ResourceRecord
  readonly pack: PackFile
  readonly raw: RawFile
  readonly state: Uint8Array<SharedArrayBuffer>
  readonly lastUse: number
  readonly keeper: ResourceKeeper
}
