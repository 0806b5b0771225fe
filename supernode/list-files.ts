// The files and blobs of the origin as the API and the console show them.
import type { z } from 'zod'
import type { BlockStore } from '../peer/block-store.ts'
import { PART_BYTES } from '../peer/file-blocks.ts'
import type { fileSchema } from './http-schemas.ts'
import type { Scheduler } from './scheduler.ts'
import type { StreamOrigin } from './stream-origin.ts'
import { partsOf } from './stream-record.ts'
import type { StreamRecord } from './stream-record.ts'
import type { StreamWork } from './stream-work.ts'

type ListedFile = z.infer<typeof fileSchema>

/** At most `most` of them, what is on its way first, then the latest used. */
export async function listFiles(components: { streams: StreamOrigin; store: BlockStore; scheduler: Scheduler }, most: number): Promise<ListedFile[]> {
  const { streams, store, scheduler } = components
  const running = new Map(streams.inWork().map(work => [work.key, work]))
  const records: { record: StreamRecord; work?: StreamWork }[] = [...running.values()].map(work => ({ record: work.record, work }))
  for await (const [key, record] of streams.records()) if (!running.has(key)) records.push({ record })
  records.sort((a, b) => Number(b.work !== undefined) - Number(a.work !== undefined) || b.record.lastUse - a.record.lastUse)
  return records.slice(0, most).map(({ record, work }) => {
    const { kind, name, resource, head, madeAt, lastUse } = record
    const places = partsOf(record, PART_BYTES)
    const storedBytes = places.reduce((sum, place) => sum + (store.get(place.resource)?.storedBytes ?? 0), 0)
    const length = head.length ?? (record.complete ? record.length : undefined)
    const holders = scheduler.holders(resource)
    return {
      kind, name, resource, ...(length !== undefined && { length }), parts: places.length, storedBytes, ...(work !== undefined && { fetchedBytes: work.fetched }),
      state: work !== undefined ? 'running' : record.complete && storedBytes === length ? 'complete' : 'partial', followers: work?.followers ?? 0,
      ...(head.etag !== undefined && { etag: head.etag }), ...(head.lastModified !== undefined && { lastModified: head.lastModified }), ...(head.contentType !== undefined && { contentType: head.contentType }),
      madeAt, lastUse, holders: holders.length, wholeHolders: holders.filter(({ whole }) => whole).length,
    }
  })
}
