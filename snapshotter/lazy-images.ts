// What the snapshotter needs from the node to start images lazily. The node daemon implements it over peer/ and blockdev/.

/** What a caller of Prepare told us about an image layer. Every string comes from outside; digests are already well formed. */
export interface LayerClaim {
  /** Image reference as the puller wrote it, `docker.io/library/debian:12`. Missing when the labels name none. */
  readonly reference?: string
  readonly manifestDigest?: string
  /** Digest of the layer's blob in the registry. */
  readonly layerDigest?: string
  /** This layer's digest and those of the layers above it that are still to come; may be cut short. A hint for starting early. */
  readonly layerDigests?: readonly string[]
  /** `sha256:…` of the chain that ends in this layer. */
  readonly chainId: string
  /** diffIDs of the layers below, bottom first. */
  readonly parentDiffIds: readonly string[]
}

export interface ClaimedLayer {
  readonly diffId: string
  /** Bytes on local disk that containerd should account for, and inodes of the layer. */
  readonly size: number
  readonly inodes: number
}

export interface LazyImages {
  /**
   * Make a layer servable. Resolves once its index is here; its blocks may come later.
   * @throws SkimmerError UNSUPPORTED or INVALID_DATA when it must be unpacked the ordinary way; UNAVAILABLE or TIMEOUT when a
   * source is away; ABORTED when `signal` fires.
   */
  claim(layer: LayerClaim, signal: AbortSignal): Promise<ClaimedLayer>
  /** Mount the merged tree of these layers (bottom first) for `user`; resolves with the mount point. Idempotent for a user. */
  mount(diffIds: string[], user: string): Promise<string>
  /** The user needs the tree no more. Idempotent. */
  unmount(diffIds: string[], user: string): Promise<void>
  /** No snapshot names the layer any more. */
  forget(diffId: string): Promise<void>
}
