// The Accept header of a client: which media types it takes, and one spelling of it for equal wishes.
import { createHash } from 'node:crypto'
import { bareMediaType } from '../oci/media-types.ts'

/** Whether the client takes this type. No header at all takes everything (RFC 9110 section 12.5.1). */
export function accepts(header: string | undefined, mediaType: string): boolean {
  const ranges = wishes(header)
  if (ranges.length === 0) return true
  const type = bareMediaType(mediaType)
  const family = `${type.split('/', 1)[0]}/*`
  // The most specific range that fits decides.
  for (const range of [type, family, '*/*']) {
    const found = ranges.find((wish) => wish.type === range)
    if (found !== undefined) return found.quality > 0
  }
  return false
}

/** The same text for headers that ask for the same, whatever their order: registries may answer a tag by what is asked for. */
export function wishKey(header: string | undefined): string {
  const types = wishes(header).filter(({ quality }) => quality > 0).map(({ type }) => type)
  return createHash('sha256').update([...new Set(types)].toSorted().join(',')).digest('hex').slice(0, 16)
}

function wishes(header: string | undefined): { type: string; quality: number }[] {
  return (header ?? '').slice(0, 16_384).split(',').map((part) => {
    const quality = /;\s*q\s*=\s*([0-9.]+)/i.exec(part)?.[1]
    return { type: bareMediaType(part), quality: quality === undefined ? 1 : Number(quality) || 0 }
  }).filter(({ type }) => type !== '')
}
