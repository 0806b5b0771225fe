// Which peer brings which part of a resource from the supernode: so that peers that want it at once each bring another part, and trade.
import { createHash } from 'node:crypto'
import { packedLength } from '../image/block-table.ts'
import type { BlockTable } from '../image/block-table.ts'

/** Blocks of a layer that stay together: neighbours are read with one call. About 400 KiB packed. */
const PIECE_BLOCKS = 4
/** Blocks of this size on average, bytes, are pieces each for itself. */
const LARGE_BLOCK = 512 * 1024

/** How many blocks of a resource make a piece: the same wherever it is computed. */
export function pieceBlocks(table: BlockTable): number {
  return packedLength(table) >= LARGE_BLOCK * table.count ? 1 : PIECE_BLOCKS
}

const seeds = new Map<string, number>()

/** A peer's fixed 32-bit number: the same wherever it is computed. */
export function peerSeed(peer: string): number {
  let seed = seeds.get(peer)
  if (seed === undefined) {
    if (seeds.size > 10_000) seeds.clear()
    seed = createHash('sha256').update(peer).digest().readUInt32BE(0)
    seeds.set(peer, seed)
  }
  return seed
}

/** MurmurHash3's finaliser: every bit of the input changes half of the output's bits. */
function mix(value: number): number {
  let hash = value | 0
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b)
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35)
  return (hash ^ (hash >>> 16)) >>> 0
}

/**
 * Rendezvous hashing: the piece belongs to the peer with the highest score. When a peer comes or goes, only its own share
 * moves. Nothing needs to be agreed: peers that know the same others compute the same owners.
 */
export function ownsPiece(block: number, blocks: number, self: number, others: readonly number[]): boolean {
  const piece = mix(Math.floor(block / blocks) + 1)
  const own = mix(self ^ piece)
  for (const other of others) {
    const score = mix(other ^ piece)
    if (score > own || (score === own && other > self)) return false
  }
  return true
}

/** The blocks in random order of pieces, those of a piece together and rising. */
export function shufflePieces(blocks: readonly number[], pieceBlocks: number, random: () => number = Math.random): number[] {
  const pieces: number[][] = []
  for (const block of blocks) {
    const last = pieces.at(-1)
    if (last !== undefined && Math.floor(last[0] / pieceBlocks) === Math.floor(block / pieceBlocks)) last.push(block)
    else pieces.push([block])
  }
  for (let index = pieces.length - 1; index > 0; index--) {
    const other = Math.floor(random() * (index + 1))
    ;[pieces[index], pieces[other]] = [pieces[other], pieces[index]]
  }
  return pieces.flat()
}
