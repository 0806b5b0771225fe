// A preheat job: what may be asked for, and what is kept and shown of it.
import { z } from 'zod'
import { ERROR_CODES } from '../oci/errors.ts'

export const preheatRequestSchema = z.strictObject({
  type: z.enum(['image', 'file']).default('image').describe('what url names'),
  url: z.string().min(1).max(4096).describe('an image reference (registry.example/team/app:1.2), or the URL of a file'),
  platform: z.string().min(1).max(100).optional().describe('os/architecture[/variant] of a multi-platform image; default: the supernode\'s own'),
  scope: z.enum(['supernode', 'all', 'nodes']).default('supernode').describe('only index and hold it here; push it to all nodes that listen; push it to chosen nodes'),
  nodes: z.array(z.string().min(1).max(200)).max(1000).optional().describe('peer ids, for scope "nodes"'),
  hold: z.boolean().default(true).describe('keep it in the cache until the job is deleted'),
  credentials: z.union([z.strictObject({ username: z.string().max(4096), secret: z.string().max(65536) }), z.strictObject({ token: z.string().max(65536) })]).optional()
    .describe('for the registry, used for this job and not kept'),
}).refine(request => (request.scope === 'nodes') === (request.nodes !== undefined && request.nodes.length > 0), { message: 'scope "nodes" and a list of nodes belong together', path: ['nodes'] })
export type PreheatRequest = z.infer<typeof preheatRequestSchema>

export const preheatJobSchema = z.object({
  id: z.string(), type: z.enum(['image', 'file']), url: z.string(), platform: z.string().optional(), scope: z.enum(['supernode', 'all', 'nodes']), nodes: z.array(z.string()).optional(), hold: z.boolean(),
  state: z.enum(['WAITING', 'RUNNING', 'SUCCESS', 'FAILED']),
  createdAt: z.number().describe('milliseconds since 1970'), startedAt: z.number().optional(), finishedAt: z.number().optional(),
  progress: z.object({
    bytes: z.number().describe('bytes read from the source'), total: z.number(), layers: z.number(), layersDone: z.number(),
    nodes: z.number().describe('nodes that were told to hold it'), nodesDone: z.number(),
  }),
  manifestDigest: z.string().optional(), resources: z.array(z.string()).describe('what is held'),
  error: z.object({ code: z.enum(ERROR_CODES), message: z.string() }).optional(),
})
export type PreheatJob = z.infer<typeof preheatJobSchema>
