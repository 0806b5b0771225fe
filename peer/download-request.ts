// What is asked of a download, and what it says of itself: the words that dfget and the registry proxy share with the peer.
import type { ControlRequest } from './control.ts'
import type { TokenBucket } from './token-bucket.ts'

/** What the source said of what it answers. `version` is opaque: two that are equal are the same bytes. */
export interface DownloadHead {
  readonly version: string
  /** Bytes; undefined while the source does not say. */
  readonly length?: number
  readonly contentType?: string
  /** The bytes are encoded so, and stay so. */
  readonly contentEncoding?: string
  readonly etag?: string
  readonly lastModified?: string
}

/** How a node reads from the source itself. */
export interface SourceAnswer extends DownloadHead {
  /** The resource id of each part: what a supernode would call it too. A stream of known length has part 0 only. */
  readonly resourceId: (part: number) => string
  readonly blockBytes: number
  /** The bytes from the offset asked for to the end. Ends with an error when they cannot be had, never short. */
  readonly body: AsyncIterable<Uint8Array>
}

export interface SourceFrom {
  readonly offset: number
  /** What was read before must go on as this version: CONFLICT otherwise. Undefined: any. */
  readonly version?: string
  readonly signal: AbortSignal
}

export interface DownloadRequest {
  /** The caller's name for just this request, credentials included: who asks with the same key while it runs joins. */
  readonly key: string
  /** What errors and logs call it; no secrets. Default: the URL without its query, or the blob's digest. */
  readonly name?: string
  /** What a supernode is asked. Left out: none is. */
  readonly ask?: { readonly operation: 'file.open'; readonly request: ControlRequest<'file.open'> } | { readonly operation: 'blob.open'; readonly request: ControlRequest<'blob.open'> }
  /** Back to source. Left out: not allowed. */
  readonly source?: (from: SourceFrom) => Promise<SourceAnswer>
  /** A resource that, when the store has it whole, is served without asking anyone: the caller knows that it may be. */
  readonly local?: string
  /** False: blocks come from the supernode only. Default true. */
  readonly peers?: boolean
  /** The task's limit, or buckets shared with others (asked for each time): bytes that come over the network are paid before they are asked for. Default: no limit. */
  readonly bytesPerSecond?: number | (() => readonly TokenBucket[])
  /** sha256 of the whole (`sha256:<hex>`): nobody gets the last bytes of a whole that does not match. */
  readonly digest?: string
  /** The resources are left pinned by this name, also through a restart; taking it off (`resource.unpin`) is the caller's. */
  readonly pin?: string
}

/** Bytes by where they came from since this download began; `local` were here before, or in another resource. */
export interface DownloadStats {
  readonly length?: number
  /** Bytes of it that are in the store now. */
  readonly storedBytes: number
  readonly local: number
  readonly peer: number
  readonly supernode: number
  /** By this node from the source. */
  readonly source: number
  /** Bytes that the supernode has read from the source so far, as it said. */
  readonly fetched?: number
  readonly failed?: { readonly code: string; readonly message: string }
}

/** Bytes: `from` (default 0) to `to` (exclusive; default the end). */
export interface ReadRange { readonly from?: number; readonly to?: number }
