// The resources that are being made in a store: their files, their room, and how each becomes a resource under its own name.
import * as crypto from 'node:crypto'
import { SkimmerError } from '../oci/errors.ts'
import type { BlockTable } from '../image/block-table.ts'
import { GrowingResource } from './growing-resource.ts'
import { PackFile } from './pack-file.ts'
import type { Resource } from './resource.ts'

export interface MadeOptions { diffId?: string; origin?: Record<string, unknown> }

/** What the store does for them. */
export interface GrowingListKeeper {
  /** Where a file of this name lies. */
  path(name: string): string
  takePacked(bytes: number): Promise<void> | undefined
  give(bytes: number): void
  /** Makes it a resource whose pack this is; or answers the one that is there already, `created` false. */
  add(id: string, table: BlockTable, pack: PackFile, options: MadeOptions): Promise<{ resource: Resource; created: boolean }>
}

export class GrowingList {
  readonly #keeper: GrowingListKeeper
  readonly #growing = new Map<string, GrowingResource>()

  constructor(keeper: GrowingListKeeper) {
    this.#keeper = keeper
  }

  get(temporaryId: string): GrowingResource | undefined {
    return this.#growing.get(temporaryId)
  }

  /** CONFLICT when one of that name is being made. */
  create(temporaryId: string): GrowingResource {
    if (this.#growing.has(temporaryId)) throw new SkimmerError('CONFLICT', `${temporaryId} is being made already`)
    const growing = new GrowingResource(temporaryId, new PackFile(this.#keeper.path(crypto.randomBytes(16).toString('hex')), 0), {
      takePacked: (bytes) => this.#keeper.takePacked(bytes),
      adopt: (made, id, table, options) => this.#adopt(made, id, table, options),
      abandon: async (made, bytes) => this.#drop(made, bytes),
    })
    this.#growing.set(temporaryId, growing)
    return growing
  }

  async #adopt(made: GrowingResource, id: string, table: BlockTable, options: MadeOptions): Promise<Resource> {
    const { resource, created } = await this.#keeper.add(id, table, made.pack, options)
    if (created) {
      this.#growing.delete(made.temporaryId)
      return resource
    }
    // What the store's own lacks is filled in.
    const owner = `seal:${made.temporaryId}`
    resource.pin(owner)
    try {
      for (let block = 0; block < table.count; block++) if (!await resource.check(block)) await resource.putBlock(block, await made.readPacked(block))
    } finally {
      resource.unpin(owner)
    }
    await made.unread()
    this.#drop(made, made.packedLength)
    return resource
  }

  #drop(made: GrowingResource, bytes: number): void {
    this.#growing.delete(made.temporaryId)
    made.pack.unlink()
    made.pack.close()
    this.#keeper.give(bytes)
  }

  /** Gives up all of them. */
  async discardAll(): Promise<void> {
    await Promise.allSettled([...this.#growing.values()].map((growing) => growing.discard()))
  }
}
