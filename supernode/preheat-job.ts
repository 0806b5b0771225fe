// A preheat job: what may be asked for, and what is kept and shown of it.
import { z } from 'zod'
import { ERROR_CODES } from '../oci/errors.ts'
import { STREAM_OPERATIONS } from '../peer/control-streams.ts'

const { headers, tag, application, identifier, filteredQueryParams, pieceLength, digest, ca, insecure } = STREAM_OPERATIONS['file.open'].request.shape
/** What makes a file another one, or is needed to read it: a node that asks with other words asks for another file. */
const fileWords = { headers, tag, application, identifier, filteredQueryParams, pieceLength, digest, ca, insecure }
export const FILE_WORDS = Object.keys(fileWords) as (keyof typeof fileWords)[]

export const preheatRequestSchema = z.strictObject({
  type: z.enum(['image', 'file']).default('image').describe('what url names'),
  url: z.string().min(1).max(8192).describe('an image reference (registry.example/team/app:1.2), or the URL of a file'),
  platform: z.string().min(1).max(100).optional().describe('os/architecture[/variant] of a multi-platform image; default: the supernode\'s own'),
  scope: z.enum(['supernode', 'all', 'nodes']).default('supernode').describe('only index and hold it here; push it to all nodes that listen; push it to chosen nodes'),
  nodes: z.array(z.string().min(1).max(200)).max(1000).optional().describe('peer ids, for scope "nodes"'),
  hold: z.boolean().default(true).describe('keep it in the cache until the job is deleted'),
  credentials: z.union([z.strictObject({ username: z.string().max(4096), secret: z.string().max(65536) }), z.strictObject({ token: z.string().max(65536) })]).optional()
    .describe('for the registry or the source, used for this job and not kept'),
  ...fileWords,
}).refine(request => (request.scope === 'nodes') === (request.nodes !== undefined && request.nodes.length > 0), { message: 'scope "nodes" and a list of nodes belong together', path: ['nodes'] })
  .refine(request => request.type === 'file' || FILE_WORDS.every(word => request[word] === undefined), { message: `only with type "file": ${FILE_WORDS.join(', ')}`, path: ['type'] })
export type PreheatRequest = z.infer<typeof preheatRequestSchema>

export const preheatJobSchema = z.object({
  id: z.string(), type: z.enum(['image', 'file']), url: z.string().describe('of a file without user, password and query'), platform: z.string().optional(), scope: z.enum(['supernode', 'all', 'nodes']), nodes: z.array(z.string()).optional(), hold: z.boolean(),
  file: z.object(fileWords).optional().describe('how a file is asked for, without what proves who asks'),
  unkept: z.boolean().optional().describe('its URL, headers or credentials hold secrets, which are not kept: it cannot begin again after a restart'),
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
