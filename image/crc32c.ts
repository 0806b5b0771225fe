// CRC-32C (Castagnoli, reflected), as the kernel's crc32c(): no inversion of the result; the seed is the caller's. For small inputs only.

const POLYNOMIAL = 0x82f63b78
const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte
  for (let bit = 0; bit < 8; bit++) crc = (crc & 1) === 1 ? (crc >>> 1) ^ POLYNOMIAL : crc >>> 1
  return crc >>> 0
})

export function crc32c(seed: number, bytes: Uint8Array): number {
  let crc = seed
  for (const byte of bytes) crc = (crc >>> 8) ^ TABLE[(crc ^ byte) & 0xff]
  return crc >>> 0
}
