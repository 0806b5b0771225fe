// The image config: what a container of the image runs, and the diffIDs that prove its layers.
import { z } from 'zod'
import { isDigest } from './digest.ts'
import { SkimmerError } from './errors.ts'
import { firstIssue, parseJsonObject } from './manifest.ts'

/** Configs grow with history; the largest seen in public registries are some hundred KiB. */
export const MAX_CONFIG_BYTES = 8 * 1024 * 1024

const optional = <Value extends z.ZodType>(value: Value) => value.nullish().transform((given) => given ?? undefined).optional()

const configSchema = z.object({
  architecture: z.string().max(64),
  os: z.string().max(64),
  variant: optional(z.string().max(64)),
  created: optional(z.string().max(64)),
  author: optional(z.string()),
  config: optional(
    z.object({
      User: optional(z.string()),
      Env: optional(z.array(z.string())),
      Entrypoint: optional(z.array(z.string())),
      Cmd: optional(z.array(z.string())),
      WorkingDir: optional(z.string()),
      Labels: optional(z.record(z.string(), z.string())),
      StopSignal: optional(z.string()),
      ExposedPorts: optional(z.record(z.string(), z.unknown())),
      Volumes: optional(z.record(z.string(), z.unknown())),
    }),
  ),
  rootfs: z.object({
    type: z.literal('layers'),
    diff_ids: z.array(z.string().refine(isDigest, 'must be a sha256 or sha512 digest')).nullable().transform((list) => list ?? []),
  }),
  history: optional(
    z.array(
      z.object({
        created: optional(z.string()),
        created_by: optional(z.string()),
        author: optional(z.string()),
        comment: optional(z.string()),
        empty_layer: optional(z.boolean()),
      }),
    ),
  ),
})

/** The wire's own field names; unknown fields are dropped (keep the bytes if you must write it back). */
export interface ImageConfig extends z.infer<typeof configSchema> {
  /** `rootfs.diff_ids`: sha256 of each layer's uncompressed tar, bottom first. */
  readonly diffIds: readonly string[]
}

/** Throws INVALID_DATA with the field, LIMIT_EXCEEDED over 8 MiB. */
export function parseImageConfig(bytes: Uint8Array, what = 'the image config'): ImageConfig {
  const parsed = configSchema.safeParse(parseJsonObject(bytes, what, MAX_CONFIG_BYTES))
  if (!parsed.success) throw new SkimmerError('INVALID_DATA', `${what} is not valid: ${firstIssue(parsed.error)}`)
  return { ...parsed.data, diffIds: parsed.data.rootfs.diff_ids }
}
