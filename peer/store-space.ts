// The store's byte account: what packs, raw files and objects take, and who may still have some.
export type SpaceKind = 'packed' | 'raw' | 'objects'

/** From this share of the cap on, background writes stop when nothing can be dropped, and dropping starts on its own. */
export const HIGH_WATERMARK = 0.95
/** Dropping goes on down to this share. */
export const LOW_WATERMARK = 0.9

export class StoreSpace {
  readonly capBytes: number
  readonly used: Record<SpaceKind, number> = { packed: 0, raw: 0, objects: 0 }
  constructor(capBytes: number) {
    this.capBytes = capBytes
  }

  get usedBytes(): number {
    return this.used.packed + this.used.raw + this.used.objects
  }

  get highBytes(): number {
    return Math.floor(this.capBytes * HIGH_WATERMARK)
  }

  get lowBytes(): number {
    return Math.floor(this.capBytes * LOW_WATERMARK)
  }

  /** Takes `bytes` if the total stays within `limit`. */
  tryTake(kind: SpaceKind, bytes: number, limit: number): boolean {
    if (this.usedBytes + bytes > limit) return false
    this.used[kind] += bytes
    return true
  }

  /** What is on disk already counts, whatever the cap says. */
  take(kind: SpaceKind, bytes: number): void {
    this.used[kind] += bytes
  }

  give(kind: SpaceKind, bytes: number): void {
    this.used[kind] -= bytes
  }
}
