// The fields that the control protocol's messages are made of, each with its bounds.
import { z } from 'zod'

export const digest = z.string().regex(/^sha256:[0-9a-f]{64}$/, 'a digest is sha256:<64 hex digits>')
/** `layer:sha256:…`, `blob:sha256:…` or `file:<task id>`. */
export const resourceIdSchema = z.string().regex(/^(?:(?:layer|blob):sha256:[0-9a-f]{64}|file:[\w.:-]{1,200})$/, 'a resource id is layer:<digest>, blob:<digest> or file:<task>')
export const peerId = z.string().min(1).max(200)
export const reference = z.string().min(1).max(4096)
export const address = z.string().min(1).max(500)
export const count = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER)
/** An opaque signed token: see grants.ts. */
export const grant = z.string().max(2 * 1024 * 1024)
export const platform = z.string().max(100) // os/architecture[/variant]
/** What a registry wants: passed on over the encrypted channel, never logged, never stored. */
export const credentials = z.union([z.object({ username: z.string().max(4096), secret: z.string().max(65536) }), z.object({ token: z.string().max(65536) })])
