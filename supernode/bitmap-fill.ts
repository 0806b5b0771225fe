// How full a bitmap of blocks is: what an announcement of a part of a resource comes down to for the scheduler.

const BITS = Uint8Array.from({ length: 256 }, (_, byte) => byte.toString(2).replaceAll('0', '').length)

/**
 * Share of set bits, 0..1. Bits are least significant first. `blocks` is the resource's number of blocks where it is known; then bits
 * beyond it do not count. A partial announcement is never quite 1: only a peer that says "whole" is believed to be.
 */
export function bitmapFill(bitmap: Uint8Array, blocks: number = bitmap.length * 8): number {
  if (blocks === 0) return 0
  const bytes = Math.min(bitmap.length, blocks >>> 3)
  let set = 0
  for (let at = 0; at < bytes; at++) set += BITS[bitmap[at]]
  if ((blocks & 7) !== 0 && bytes < bitmap.length) set += BITS[bitmap[bytes] & ((1 << (blocks & 7)) - 1)]
  return Math.min(set / blocks, 0.999)
}
