// A layer's blob as it comes from outside: given up when a signal says so, and its size and digest checked before its end is given.
import { createHash } from 'node:crypto'
import { SkimmerError } from '../oci/errors.ts'
import { abortable } from './abortable.ts'

export interface BlobExpectation {
  /** `sha256:<hex>` and size of the blob, as the manifest has them. */
  readonly layerDigest: string
  readonly layerSize: number
  /** The input itself throws DIGEST_MISMATCH before its end when it is not that blob, as RegistryClient.blob does: it is not hashed again. */
  readonly verified?: boolean
  readonly signal?: AbortSignal
}

/** Throws UNSUPPORTED (no sha256) at once; later DIGEST_MISMATCH, ABORTED and what `input` throws. */
export function layerBlob(input: AsyncIterable<Uint8Array>, expected: BlobExpectation): AsyncGenerator<Uint8Array> {
  if (!/^sha256:[0-9a-f]{64}$/.test(expected.layerDigest)) throw new SkimmerError('UNSUPPORTED', `layer digest ${expected.layerDigest} is no sha256 digest`)
  const pieces = abortable(input, expected.signal)
  return expected.verified === true ? pieces : checked(pieces, expected)
}

/** What the blob says at its end, when its reader has stopped before: of a broken layer, that it is not the promised blob at all says more. */
export async function checkRest(blob: AsyncGenerator<Uint8Array>): Promise<void> {
  for await (const piece of blob) void piece
}

async function* checked(input: AsyncIterable<Uint8Array>, { layerDigest, layerSize }: BlobExpectation): AsyncGenerator<Uint8Array> {
  const hash = createHash('sha256')
  let length = 0
  for await (const piece of input) {
    length += piece.length
    if (length > layerSize) throw new SkimmerError('DIGEST_MISMATCH', `layer ${layerDigest} has more than the ${layerSize} bytes of its manifest`)
    hash.update(piece)
    yield piece
  }
  if (length !== layerSize) throw new SkimmerError('DIGEST_MISMATCH', `layer ${layerDigest} has ${length} bytes, not the ${layerSize} of its manifest`)
  const digest = `sha256:${hash.digest('hex')}`
  if (digest !== layerDigest) throw new SkimmerError('DIGEST_MISMATCH', `layer ${layerDigest} came as ${digest}`)
}
