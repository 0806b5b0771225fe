// What the node's API answers, for the server, the CLI and the demo alike.
import type { TransferAnswer } from '../../dfget/transfer.ts'
import type { SourceBytes } from '../../peer/fetch-accounting.ts'

export interface StatusAnswer {
  readonly peerId: string
  readonly version: string
  readonly uptimeMs: number
  /** How images are mounted. */
  readonly mode: string
  readonly supernodes: readonly { readonly address: string; readonly connected: boolean }[]
  readonly peers: number
  readonly cache: { readonly packedBytes: number; readonly rawBytes: number; readonly capBytes: number }
  readonly images: readonly { readonly imageId: string; readonly layers: number; readonly storedBytes: number; readonly packedBytes: number; readonly proved: boolean; readonly users: number }[]
  /** Downloads of dfget that run, or ended in the last minute. */
  readonly files: readonly TransferAnswer[]
}

export interface LayerAnswer {
  readonly diffId: string
  readonly layerDigest: string
  /** Bytes in the registry, unpacked, as blocks, and as blocks here. */
  readonly layerSize: number
  readonly rawBytes: number
  readonly packedBytes: number
  readonly storedBytes: number
  readonly blocks: number
  readonly storedBlocks: number
  readonly files: number
  readonly whole: boolean
  readonly proved: boolean
  readonly quarantined: boolean
  /** Milliseconds since 1970; missing while it is not whole, or when that was before the node's start. */
  readonly wholeAt?: number
}

export interface ImageAnswer {
  readonly reference: string
  readonly imageId: string
  /** Bottom first. */
  readonly layers: readonly LayerAnswer[]
}

export interface TrafficAnswer {
  /** Bytes that came here by source: blocks and layer indexes. */
  readonly sources: SourceBytes
}

export interface ExplainAnswer {
  readonly snapshots: readonly { readonly name: string; readonly kind: string; readonly parent: string; readonly lazy: boolean; readonly why: string }[]
  readonly readFailures: readonly { readonly at: number; readonly waitedMs: number; readonly reason: string }[]
}

export interface MountAnswer {
  readonly reference: string
  readonly imageId: string
  readonly mountPoint: string
}
