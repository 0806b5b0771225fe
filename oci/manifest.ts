// Manifests and indexes, OCI and Docker schema 2: read from hostile bytes into one shape, or refused with the field's name.
import { z } from 'zod'
import { isDigest } from './digest.ts'
import { SkimmerError } from './errors.ts'
import { MEDIA_TYPES, bareMediaType, isIndexType, isManifestType, isSchema1Type } from './media-types.ts'
import { platformSchema } from './platform.ts'

/** The bound that the distribution spec asks registries to accept; what is larger is refused. */
export const MAX_MANIFEST_BYTES = 4 * 1024 * 1024

const annotationsSchema = z.record(z.string(), z.string()).nullish().transform((annotations) => annotations ?? undefined).optional()
const listOf = <Item extends z.ZodType>(item: Item) => z.array(item).nullable().transform((list) => list ?? [])

export const descriptorSchema = z.object({
  mediaType: z.string().min(1).max(255),
  digest: z.string().refine(isDigest, 'must be a sha256 or sha512 digest'),
  size: z.number().int().nonnegative(),
  artifactType: z.string().max(255).optional(),
  annotations: annotationsSchema,
  urls: z.array(z.string().max(4096)).max(64).nullish().transform((urls) => urls ?? undefined).optional(),
})

/** Content by name: its digest, its exact size in bytes, and what it is. */
export type Descriptor = z.infer<typeof descriptorSchema>

const indexEntrySchema = descriptorSchema.extend({ platform: platformSchema.nullish().transform((platform) => platform ?? undefined).optional() })
export type IndexEntry = z.infer<typeof indexEntrySchema>

const manifestSchema = z.object({
  schemaVersion: z.literal(2),
  mediaType: z.string().max(255).optional(),
  artifactType: z.string().max(255).optional(),
  config: descriptorSchema,
  layers: listOf(descriptorSchema),
  subject: descriptorSchema.nullish().transform((subject) => subject ?? undefined).optional(),
  annotations: annotationsSchema,
})

const indexSchema = z.object({
  schemaVersion: z.literal(2),
  mediaType: z.string().max(255).optional(),
  artifactType: z.string().max(255).optional(),
  manifests: listOf(indexEntrySchema),
  subject: descriptorSchema.nullish().transform((subject) => subject ?? undefined).optional(),
  annotations: annotationsSchema,
})

export interface ImageManifest extends z.infer<typeof manifestSchema> {
  readonly kind: 'manifest'
  readonly mediaType: string
}
export interface ImageIndex extends z.infer<typeof indexSchema> {
  readonly kind: 'index'
  readonly mediaType: string
}

/** `layers.3.digest: must be …`, for the first thing that is wrong. Shared with the other JSON documents of this room. */
export function firstIssue(error: z.ZodError): string {
  const issue = error.issues[0]
  return `${issue.path.length === 0 ? 'the document' : issue.path.map(String).join('.').slice(0, 200)}: ${issue.message.slice(0, 200)}`
}

/** Parses JSON that must be an object. Throws INVALID_DATA (`what` says of which document), LIMIT_EXCEEDED over `limit` bytes. */
export function parseJsonObject(bytes: Uint8Array, what: string, limit: number): Record<string, unknown> {
  if (bytes.length > limit) throw new SkimmerError('LIMIT_EXCEEDED', `${what} has ${bytes.length} bytes, more than the ${limit} that are allowed`)
  let document: unknown
  try {
    document = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch (cause) {
    throw new SkimmerError('INVALID_DATA', `${what} is not JSON`, { cause })
  }
  if (typeof document !== 'object' || document === null || Array.isArray(document)) throw new SkimmerError('INVALID_DATA', `${what} is not a JSON object`)
  return document as Record<string, unknown>
}

const known = (type: string | undefined): type is string => type !== undefined && (isIndexType(type) || isManifestType(type))

/**
 * Reads a manifest or an index. `contentType` is what the registry called it, if anything. A document that could be read as
 * both (the confusion of CVE-2021-41190) is refused. Throws INVALID_DATA with the field, LIMIT_EXCEEDED over 4 MiB,
 * UNSUPPORTED for Docker schema 1 and for documents that are neither.
 */
export function parseManifest(bytes: Uint8Array, contentType?: string, what = 'the manifest'): ImageManifest | ImageIndex {
  const document = parseJsonObject(bytes, what, MAX_MANIFEST_BYTES)
  const declared = typeof document.mediaType === 'string' ? document.mediaType : undefined
  const header = contentType === undefined ? undefined : bareMediaType(contentType)
  if (document.schemaVersion === 1 || isSchema1Type(declared ?? '') || isSchema1Type(header ?? '')) {
    throw new SkimmerError('UNSUPPORTED', `${what} is Docker schema 1, which registries and containerd have dropped; push the image again with a current tool`)
  }
  if (known(declared) && known(header) && declared !== header) {
    throw new SkimmerError('INVALID_DATA', `${what}: the registry calls it ${header}, the document itself ${declared}`)
  }
  const hasManifests = document.manifests !== undefined
  const hasLayers = document.layers !== undefined || document.config !== undefined
  if (hasManifests && hasLayers) throw new SkimmerError('INVALID_DATA', `${what} has both "manifests" and "layers" or "config": it could be read in two ways`)

  const mediaType = known(declared) ? declared : known(header) ? header : undefined
  if (mediaType !== undefined ? isIndexType(mediaType) : hasManifests) {
    const parsed = indexSchema.safeParse(document)
    if (!parsed.success) throw new SkimmerError('INVALID_DATA', `${what} is not a valid index: ${firstIssue(parsed.error)}`)
    return { ...parsed.data, kind: 'index', mediaType: mediaType ?? MEDIA_TYPES.ociIndex }
  }
  if (mediaType === undefined && !hasLayers) {
    throw new SkimmerError('UNSUPPORTED', `${what} is neither an image manifest nor an index (${(declared ?? header ?? 'no media type').slice(0, 200)})`)
  }
  const parsed = manifestSchema.safeParse(document)
  if (!parsed.success) throw new SkimmerError('INVALID_DATA', `${what} is not a valid image manifest: ${firstIssue(parsed.error)}`)
  return { ...parsed.data, kind: 'manifest', mediaType: mediaType ?? MEDIA_TYPES.ociManifest }
}
