// A whole image as one disk: the metadata file first, then the layers' streams at their addresses, zeros in between.
import { SkimmerError } from '../oci/errors.ts'

export interface DiskSegment {
  /** Bytes from the start of the disk, and how many of the layer's stream follow. */
  readonly start: number
  readonly length: number
  /** Name of the published layer. */
  readonly layer: string
}

export interface VirtualDisk {
  /** Open file with the metadata; the fd is the whole process's, threads read it as it is. */
  readonly metadataFd: number
  readonly metadataLength: number
  /** Sorted, without overlap, behind the metadata. */
  readonly segments: readonly DiskSegment[]
  readonly length: number
}

/** One stretch of an answer: bytes of a layer's stream, of an open file, or zeros. */
export type Stretch =
  | { readonly kind: 'layer'; readonly layer: string; readonly offset: number; readonly length: number }
  | { readonly kind: 'file'; readonly fd: number; readonly offset: number; readonly length: number }
  | { readonly kind: 'zero'; readonly length: number }

/** Check and sort: INVALID_ARGUMENT names the segment that overlaps or leaves the disk. */
export function checkDisk(disk: VirtualDisk): VirtualDisk {
  const segments = [...disk.segments].sort((a, b) => a.start - b.start)
  let end = disk.metadataLength
  for (const segment of segments) {
    if (!Number.isSafeInteger(segment.start) || !Number.isSafeInteger(segment.length) || segment.length < 0 || segment.start < end) {
      throw new SkimmerError('INVALID_ARGUMENT', `disk segment of layer ${segment.layer} at ${segment.start} (${segment.length} bytes) overlaps what ends at ${end}`)
    }
    end = segment.start + segment.length
  }
  if (!Number.isSafeInteger(disk.length) || end > disk.length) throw new SkimmerError('INVALID_ARGUMENT', `disk of ${disk.length} bytes: its segments end at ${end}`)
  return { ...disk, segments }
}

/** The stretches of `length` bytes at `offset`, cut at the disk's end. */
export function diskStretches(disk: VirtualDisk, offset: number, length: number): Stretch[] {
  const end = Math.min(offset + length, disk.length)
  const stretches: Stretch[] = []
  let at = offset
  if (at < end && at < disk.metadataLength) {
    const piece = Math.min(end, disk.metadataLength) - at
    stretches.push({ kind: 'file', fd: disk.metadataFd, offset: at, length: piece })
    at += piece
  }
  for (let index = firstEndingAfter(disk.segments, at); at < end && index < disk.segments.length; index++) {
    const segment = disk.segments[index]
    if (segment.start >= end) break
    if (segment.start > at) stretches.push({ kind: 'zero', length: segment.start - at })
    at = Math.max(at, segment.start)
    const piece = Math.min(end, segment.start + segment.length) - at
    if (piece > 0) stretches.push({ kind: 'layer', layer: segment.layer, offset: at - segment.start, length: piece })
    at += piece
  }
  if (at < end) stretches.push({ kind: 'zero', length: end - at })
  return stretches
}

function firstEndingAfter(segments: readonly DiskSegment[], offset: number): number {
  let low = 0
  let high = segments.length
  while (low < high) {
    const middle = (low + high) >>> 1
    if (segments[middle].start + segments[middle].length <= offset) low = middle + 1
    else high = middle
  }
  return low
}
