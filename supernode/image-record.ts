// What is remembered of images: tags, manifests, chains and who may read them, as schemas of the stored values.
import { z } from 'zod'

export const digestSchema = z.string().regex(/^sha256:[0-9a-f]{64}$/)

export const layerRecordSchema = z.object({ digest: digestSchema, size: z.number().int().min(0), mediaType: z.string(), diffId: digestSchema })
/** A layer as manifest and config name it. */
export type ImageLayerRecord = z.infer<typeof layerRecordSchema>

export const imageRecordSchema = z.object({
  manifestDigest: digestSchema, registry: z.string(), repository: z.string(), platform: z.string(), configDigest: z.string(),
  layers: z.array(layerRecordSchema).max(512), chainId: z.string(),
  /** Names under which it was asked for, the latest last. */
  references: z.array(z.string()), firstSeen: z.number(), lastUse: z.number(),
})
/** One manifest in one repository. */
export type ImageRecord = z.infer<typeof imageRecordSchema>

/** What a name meant when it was last asked: the digest that HEAD answers (an index's, if it is one), and the platform's manifest. */
export const tagRecordSchema = z.object({ top: z.string(), manifestDigest: digestSchema, checked: z.number() })

/** Whether a registry let someone see a manifest, and when it said so. */
export const accessRecordSchema = z.object({ allowed: z.boolean(), checked: z.number(), /** When it last said yes. */ granted: z.number() })

export const chainRecordSchema = z.object({ images: z.array(z.string()).max(64), length: z.number().int() })
