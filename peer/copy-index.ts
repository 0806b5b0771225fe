// Which resources hold a block with this hash: an open-addressing table in typed arrays, about 16 bytes a block.
import { HASH_LENGTH } from '../image/block-table.ts'
import type { BlockTable } from '../image/block-table.ts'

const EMPTY = 0
const REMOVED = -1

/**
 * Maps a block's sha256 to (resource number, block). The hash itself is not kept: the resource's own table has it. Within
 * one resource only the first of several equal blocks is listed, or an image full of zeros would make chains without end.
 * Resource numbers are positive integers below 2^31, at most once added.
 */
export class CopyIndex {
  readonly #tables = new Map<number, BlockTable>()
  #owners = new Int32Array(1024)
  #blocks = new Int32Array(1024)
  /** Slots that are not EMPTY. */
  #filled = 0
  #live = 0

  /** `known`: false for blocks of an open table whose hash will be told by learnt(). */
  add(number: number, table: BlockTable, known: (block: number) => boolean): void {
    this.#tables.set(number, table)
    this.#growFor(table.count)
    for (let block = 0; block < table.count; block++) if (known(block)) this.#insert(number, table, block)
  }

  /** Hashes of a table that was added are known now. */
  learnt(number: number, from: number, to: number): void {
    const table = this.#tables.get(number)
    if (table === undefined) return
    this.#growFor(to - from)
    for (let block = from; block < to; block++) this.#insert(number, table, block)
  }

  delete(number: number): void {
    const table = this.#tables.get(number)
    if (table === undefined) return
    for (let block = 0; block < table.count; block++) {
      for (let slot = this.#home(table, block); this.#owners[slot] !== EMPTY; slot = this.#after(slot)) {
        if (this.#owners[slot] !== number || this.#blocks[slot] !== block) continue
        this.#owners[slot] = REMOVED
        this.#live--
        break
      }
    }
    this.#tables.delete(number)
  }

  /** Calls `visit` with every holder of the block's hash until it answers true. */
  find(table: BlockTable, block: number, visit: (number: number, block: number) => boolean): boolean {
    for (let slot = this.#home(table, block); this.#owners[slot] !== EMPTY; slot = this.#after(slot)) {
      if (this.#owners[slot] !== REMOVED && this.#equal(slot, table, block) && visit(this.#owners[slot], this.#blocks[slot])) return true
    }
    return false
  }

  #insert(number: number, table: BlockTable, block: number): void {
    let slot = this.#home(table, block)
    let free = -1
    for (; this.#owners[slot] !== EMPTY; slot = this.#after(slot)) {
      if (this.#owners[slot] === REMOVED) free = free < 0 ? slot : free
      else if (this.#owners[slot] === number && this.#equal(slot, table, block)) return
    }
    if (free < 0) this.#filled++
    else slot = free
    this.#owners[slot] = number
    this.#blocks[slot] = block
    this.#live++
  }

  /** A sha256 is as good a hash as any: four of its bytes choose the slot. */
  #home(table: BlockTable, block: number): number {
    const { hashes } = table
    const at = block * HASH_LENGTH
    return (hashes[at] | (hashes[at + 1] << 8) | (hashes[at + 2] << 16) | (hashes[at + 3] << 24)) & (this.#owners.length - 1)
  }

  #after(slot: number): number {
    return (slot + 1) & (this.#owners.length - 1)
  }

  #equal(slot: number, table: BlockTable, block: number): boolean {
    const other = this.#tables.get(this.#owners[slot])
    if (other === undefined) return false
    const theirs = this.#blocks[slot] * HASH_LENGTH
    const ours = block * HASH_LENGTH
    for (let index = 0; index < HASH_LENGTH; index++) if (other.hashes[theirs + index] !== table.hashes[ours + index]) return false
    return true
  }

  /**
   * At most half of the slots are filled, removed ones included; a new table leaves the removed ones behind, and has room for a while: open
   * tables add block by block.
   */
  #growFor(more: number): void {
    if ((this.#filled + more) * 2 <= this.#owners.length) return
    let size = this.#owners.length
    while ((this.#live + more) * 8 > size * 3) size *= 2
    const [owners, blocks] = [this.#owners, this.#blocks]
    this.#owners = new Int32Array(size)
    this.#blocks = new Int32Array(size)
    this.#filled = 0
    this.#live = 0
    for (let slot = 0; slot < owners.length; slot++) {
      const table = owners[slot] > 0 ? this.#tables.get(owners[slot]) : undefined
      if (table !== undefined) this.#insert(owners[slot], table, blocks[slot])
    }
  }
}
