// One snapshot as the store keeps it, in memory and (as JSON) in the metadata database.
import { z } from 'zod'

export type SnapshotKind = 'view' | 'active' | 'committed'

const schema = z.strictObject({
  /** Never used twice; names the snapshot's directory. */
  id: z.int().positive(),
  name: z.string().min(1),
  /** '' without one. */
  parent: z.string(),
  kind: z.enum(['view', 'active', 'committed']),
  labels: z.record(z.string(), z.string()),
  createdMs: z.number(),
  updatedMs: z.number(),
  /** Bytes and inodes; known once committed. */
  usage: z.strictObject({ size: z.number(), inodes: z.number() }).optional(),
  /** A claimed layer: it has no directory, its files are in the lazily mounted tree. */
  lazy: z.strictObject({ diffId: z.string(), chainId: z.string() }).optional(),
  /** Why the snapshot is lazy or not, for people. */
  why: z.string(),
})

export type SnapshotRecord = Readonly<z.infer<typeof schema>>

/** @throws ZodError naming the field. */
export const parseRecord = (json: string): SnapshotRecord => schema.parse(JSON.parse(json))
