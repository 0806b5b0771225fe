// The digest a user gives for a whole file, in the spellings people use, computed while the bytes pass.
import { createHash } from 'node:crypto'
import { crc32 } from 'node:zlib'
import { SkimmerError } from '../oci/errors.ts'

const HEX_LENGTH = { sha256: 64, sha512: 128, md5: 32, crc32: 8 } as const
export type ContentDigestAlgorithm = keyof typeof HEX_LENGTH

export interface ContentDigest {
  readonly algorithm: ContentDigestAlgorithm
  /** `sha256:<hex>` and so on, lower case. */
  readonly text: string
  /** Hex values that are right; two for a crc32 of eight decimal digits, which can be read both ways. */
  readonly accepted: readonly string[]
}

export interface StreamedDigest {
  readonly algorithm: ContentDigestAlgorithm
  update(chunk: Uint8Array): void
  /** Call once, after the last byte. Throws DIGEST_MISMATCH, naming `what`. Returns the digest as `algorithm:hex`. */
  verify(what?: string): string
}

const HEX_BY_LENGTH = new Map(Object.entries(HEX_LENGTH).map(([algorithm, length]) => [length as number, algorithm as ContentDigestAlgorithm]))

/**
 * `sha256:…`, `sha512:…`, `md5:…`, `crc32:…`; also `sha-256:…`, `sha256=…`, bare hex told by its length, any case; a crc32 as hex
 * (also `0x…`) or as the decimal number Dragonfly prints. Throws INVALID_ARGUMENT.
 */
export function parseContentDigest(spec: string): ContentDigest {
  const refuse = (why: string): SkimmerError =>
    new SkimmerError('INVALID_ARGUMENT', `"${spec.slice(0, 160)}" is not a digest of a file: ${why}; write it like sha256:<64 hex digits>, sha512:…, md5:… or crc32:<8 hex digits>`)
  if (spec.length > 200) throw refuse('it is too long')
  const match = /^(?:([a-z0-9-]+)[:=])?(?:0x)?([0-9a-f]+)$/i.exec(spec.trim())
  if (match === null) throw refuse('it is not hexadecimal')
  const value = match[2].toLowerCase()
  const named = match[1]?.toLowerCase().replace('-', '')
  const algorithm = named === undefined ? HEX_BY_LENGTH.get(value.length) : named in HEX_LENGTH ? (named as ContentDigestAlgorithm) : undefined
  if (algorithm === undefined) throw refuse(named === undefined ? `${value.length} digits are of no digest that is known here` : `${match[1]} is not known here`)
  const isHex = value.length === HEX_LENGTH[algorithm]
  const accepted = isHex ? [value] : []
  if (algorithm === 'crc32' && named !== undefined && /^[0-9]{1,10}$/.test(value) && Number(value) <= 0xffff_ffff) accepted.push(hexOf(Number(value)))
  if (accepted.length === 0) throw refuse(`${algorithm} has ${HEX_LENGTH[algorithm]} hex digits`)
  return { algorithm, text: `${algorithm}:${accepted[0]}`, accepted }
}

const hexOf = (crc: number): string => crc.toString(16).padStart(8, '0')

/** Throws INVALID_ARGUMENT for a digest that is none. */
export function streamedDigest(spec: string): StreamedDigest {
  const { algorithm, text, accepted } = parseContentDigest(spec)
  const running = runningHash(algorithm)
  return {
    algorithm,
    update: running.update,
    verify(what = 'the download') {
      const actual = running.finish()
      if (!accepted.includes(actual)) {
        throw new SkimmerError('DIGEST_MISMATCH', `${what}: got bytes of ${algorithm}:${actual}, not of ${text}; the source has something else, or the digest is of something else`, {
          details: { expected: text, actual: `${algorithm}:${actual}` },
        })
      }
      return `${algorithm}:${actual}`
    },
  }
}

function runningHash(algorithm: ContentDigestAlgorithm): { update(chunk: Uint8Array): void; finish(): string } {
  if (algorithm === 'crc32') {
    let crc = 0
    return {
      update: (chunk) => void (crc = crc32(chunk, crc)),
      finish: () => hexOf(crc),
    }
  }
  const hash = createHash(algorithm)
  return { update: (chunk) => void hash.update(chunk), finish: () => hash.digest('hex') }
}
