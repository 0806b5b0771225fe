// What the supernode remembers of a file or blob that it brought: which version, in which resources, and whether all of it came.
import { z } from 'zod'
import { digest, resourceIdSchema } from '../peer/control-fields.ts'

const bytes = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER)
const shown = z.string().max(8192)

/** What the source says of the stream. `version` is opaque: two streams of one version have the same bytes. */
export const streamHeadSchema = z.object({ version: shown, length: bytes.optional(), contentType: shown.optional(), contentEncoding: shown.optional(), etag: shown.optional(), lastModified: shown.optional() })
export type StreamHead = z.infer<typeof streamHeadSchema>

export const streamRecordSchema = z.object({
  kind: z.enum(['file', 'blob']),
  /** For people: a URL without secrets, or registry/repository@digest. */
  name: z.string().max(8192),
  /** The first part's id; a later part's is this with its number behind. */
  resource: resourceIdSchema,
  head: streamHeadSchema,
  /** False: nothing but the time of the answer tells this version from another, so that it cannot be asked for again. */
  validated: z.boolean(),
  blockBytes: z.number().int().min(1),
  /** Bytes that the parts hold; grows while a stream of unknown length is read. */
  length: bytes,
  /** All of it came, and it is what it should be. */
  complete: z.boolean(),
  /** sha256 of the whole, checked once it is complete. */
  digest: digest.optional(),
  /** Of a blob: registries that were seen to give these bytes. */
  registries: z.array(z.string().max(300)).max(64).optional(),
  /** Milliseconds since 1970: when the source answered, and when somebody opened it last. */
  madeAt: z.number(), lastUse: z.number(),
})
export type StreamRecord = z.infer<typeof streamRecordSchema>

export interface PartPlace { readonly resource: string; readonly offset: number; readonly length: number }

/** The parts of a stream. One whose length was known from the beginning has a single part; others are cut every `partBytes`. */
export function partsOf(record: Pick<StreamRecord, 'resource' | 'head' | 'length'>, partBytes: number): PartPlace[] {
  if (record.head.length !== undefined) return [{ resource: record.resource, offset: 0, length: record.head.length }]
  const parts: PartPlace[] = []
  for (let offset = 0; offset < record.length; offset += partBytes) {
    parts.push({ resource: offset === 0 ? record.resource : `${record.resource}.${offset / partBytes}`, offset, length: Math.min(partBytes, record.length - offset) })
  }
  return parts
}
