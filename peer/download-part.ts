// One part of a download: a resource that holds some of the stream, pinned and watched while the download lasts.
import { blockAt } from '../image/block-table.ts'
import type { SourceBytes } from './fetch-accounting.ts'
import type { OpenOptions } from './fetcher.ts'
import type { Peer } from './peer.ts'
import type { Resource } from './resource.ts'

export class DownloadPart {
  readonly resource: Resource
  /** Where it begins in the stream, bytes. */
  readonly offset: number
  readonly length: number
  /** 1 for a block that someone is bringing. */
  readonly asked: Uint8Array
  /** Bytes that were here when the download came to know of this part. */
  readonly found: number
  /** Hashes that became known since. */
  learnt = 0
  readonly #peer: Peer
  readonly #pin: string
  readonly #before: SourceBytes
  readonly #onBlock: () => void
  readonly #onChange: () => void
  #release: (() => void) | undefined
  /** Below this all blocks are here, or someone brings them. */
  #cursor = 0
  readonly #onLearnt = (from: number, to: number): void => {
    this.learnt += to - from
    this.#onChange()
  }
  readonly #onLost = (block: number): void => {
    this.forget(block, block + 1)
    this.#onChange()
  }

  constructor(peer: Peer, at: { resource: Resource; offset: number; length: number }, use: OpenOptions & { pin: string; lastingPin?: string; onBlock: () => void; onChange: () => void }) {
    const { resource } = at
    this.#peer = peer
    this.resource = resource
    this.offset = at.offset
    this.length = at.length
    this.asked = new Uint8Array(resource.table.count)
    this.found = resource.storedBytes
    this.#pin = use.pin
    this.#before = { ...peer.fetcher.stats(resource.id).bytes }
    this.#onBlock = use.onBlock
    this.#onChange = use.onChange
    resource.pin(use.pin)
    if (use.lastingPin !== undefined) resource.pin(use.lastingPin, { lasting: true })
    resource.on('block', use.onBlock).on('learnt', this.#onLearnt).on('quarantined', use.onChange).on('lost', this.#onLost)
  }

  /** It will be fetched from others: they are looked up and connected to. */
  open(use: OpenOptions): void {
    if (!this.resource.whole) this.#release ??= this.#peer.fetcher.open(this.resource, use)
  }

  get end(): number { return this.offset + this.length }

  /** Bytes by source since the download came to know of this part. */
  get bytes(): SourceBytes {
    const now = this.#peer.fetcher.stats(this.resource.id).bytes
    const before = this.#before
    return {
      local: this.found + now.local - before.local, peer: now.peer - before.peer, supernode: now.supernode - before.supernode,
      registry: now.registry - before.registry, source: now.source - before.source,
    }
  }

  has(block: number): boolean {
    return this.resource.state[block] !== 0
  }

  /** The block with the stream's byte at `position`, which must lie in this part. */
  blockOf(position: number): number {
    return blockAt(this.resource.table, position - this.offset)
  }

  /** Where a block begins in the stream; for the number of blocks: the end. */
  startOf(block: number): number {
    return this.offset + this.resource.table.rawOffsets[block]
  }

  bytesOf(from: number, to: number): number {
    return this.startOf(to) - this.startOf(from)
  }

  /** The next blocks, `bytes` at most but one at least, that are known, not here, and brought by no one. */
  nextWanted(bytes: number): { from: number; to: number } | undefined {
    const { table, state } = this.resource
    while (this.#cursor < table.count && (state[this.#cursor] !== 0 || this.asked[this.#cursor] === 1)) this.#cursor++
    const wanted = (block: number): boolean => state[block] === 0 && this.asked[block] === 0 && this.resource.knows(block)
    let from = this.#cursor
    while (from < table.count && !wanted(from)) from++
    if (from === table.count) return undefined
    let to = from + 1
    while (to < table.count && this.bytesOf(from, to + 1) <= bytes && wanted(to)) to++
    return { from, to }
  }

  /** Someone brings these. */
  ask(from: number, to: number): void {
    this.asked.fill(1, from, to)
  }

  /** No one brings these any more. */
  forget(from: number, to: number): void {
    this.asked.fill(0, from, to)
    this.#cursor = Math.min(this.#cursor, from)
  }

  close(): void {
    this.#release?.()
    this.resource.off('block', this.#onBlock).off('learnt', this.#onLearnt).off('quarantined', this.#onChange).off('lost', this.#onLost)
    this.resource.unpin(this.#pin)
  }
}
