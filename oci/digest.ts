// Content digests: `sha256:<hex>` and `sha512:<hex>`, checked, made, and computed while bytes stream by.
import { createHash, hash } from 'node:crypto'
import type { Hash } from 'node:crypto'
import { SkimmerError } from './errors.ts'

/** The algorithms the OCI image spec registers, with the length of their hex. */
const HEX_LENGTH = { sha256: 64, sha512: 128 } as const
export type DigestAlgorithm = keyof typeof HEX_LENGTH

const SHAPE = /^(sha256|sha512):([a-f0-9]+)$/

export interface ParsedDigest {
  readonly algorithm: DigestAlgorithm
  readonly hex: string
}

/** True for a digest whose algorithm Skimmer can verify and whose hex has the right length. */
export function isDigest(text: string): boolean {
  if (text.length > 135) return false
  const match = SHAPE.exec(text)
  return match !== null && match[2].length === HEX_LENGTH[match[1] as DigestAlgorithm]
}

/** Throws INVALID_ARGUMENT. */
export function parseDigest(text: string): ParsedDigest {
  if (!isDigest(text)) {
    throw new SkimmerError('INVALID_ARGUMENT', `"${String(text).slice(0, 140)}" is not a digest: expected sha256:<64 hex digits> or sha512:<128 hex digits>, in lower case`)
  }
  const colon = text.indexOf(':')
  return { algorithm: text.slice(0, colon) as DigestAlgorithm, hex: text.slice(colon + 1) }
}

export function digestOf(bytes: Uint8Array | string, algorithm: DigestAlgorithm = 'sha256'): string {
  return `${algorithm}:${hash(algorithm, bytes, 'hex')}`
}

/** A running hash for the digest's algorithm; compare with `finishDigest`. */
export function startDigest(digest: string): Hash {
  return createHash(parseDigest(digest).algorithm)
}

export function finishDigest(digest: string, running: Hash): string {
  return `${parseDigest(digest).algorithm}:${running.digest('hex')}`
}

/** Throws DIGEST_MISMATCH, naming `what`, unless the bytes are those the digest names. */
export function verifyDigest(bytes: Uint8Array, digest: string, what: string): void {
  const actual = digestOf(bytes, parseDigest(digest).algorithm)
  if (actual !== digest) throw digestMismatch(what, digest, actual)
}

export function digestMismatch(what: string, expected: string, actual: string): SkimmerError {
  return new SkimmerError('DIGEST_MISMATCH', `${what}: got bytes of ${actual}, not of ${expected}; the source or something on the way changed them, nothing was kept`, {
    details: { expected, actual },
  })
}
