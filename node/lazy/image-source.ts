// Where a node learns what an image is made of: from a supernode, or, when there is none, from the registry with its own eyes.
import type { ComposedImage, Trace } from '../../peer/control.ts'
import type { LayerRecord } from './layer-library.ts'

export interface SourceLayer {
  readonly digest: string
  readonly size: number
  readonly diffId: string
}

export interface SourceImage {
  /** As asked for; undefined when the image was found by its chainID. */
  readonly reference: string | undefined
  readonly manifestDigest: string | undefined
  /** Bottom first. */
  readonly layers: readonly SourceLayer[]
  /** What earlier starts read first. */
  readonly trace: Trace | undefined
  /** The image's EROFS metadata, composed by the source. */
  readonly composed?: ComposedImage
  /** Waits until the layer at this position is indexed. UNSUPPORTED, INVALID_DATA or DIGEST_MISMATCH when it cannot be. */
  index(position: number, signal?: AbortSignal, onProgress?: (progress: { bytes: number; total: number }) => void): Promise<LayerRecord>
}

export interface ImageSource {
  readonly name: string
  /** Starts the indexing of what is not indexed. UNAVAILABLE or TIMEOUT when the source is away. */
  resolve(request: { reference: string; manifestDigest?: string }, signal?: AbortSignal): Promise<SourceImage>
  /** NOT_FOUND when no image with this chainID is known there. */
  chain(chainId: string, signal?: AbortSignal): Promise<SourceImage>
}
