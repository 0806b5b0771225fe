// The control protocol's messages: what a node and a supernode say to each other, as schemas that both ends validate with.
import { z } from 'zod'
import { ERROR_CODES } from '../oci/errors.ts'
import { address, count, credentials, digest, grant, peerId, platform, reference, resourceIdSchema } from './control-fields.ts'
import { STREAM_OPERATIONS } from './control-streams.ts'

export const CONTROL_PROTOCOL = '/skimmer/control/1'
/** The largest frame either end accepts, bytes. */
export const CONTROL_MAX_FRAME = 8 * 1024 * 1024

/**
 * The blocks that the first seconds of a start read, in order. `blocks` holds pairs: an index into `resources` and a block.
 * Pairs keep a trace of 2,000 blocks near 20 KB: it travels before the first byte of output.
 */
export const traceSchema = z.object({
  resources: z.array(resourceIdSchema).max(512),
  blocks: z.array(z.tuple([z.number().int().min(0).max(511), z.number().int().min(0).max(0xffffffff)])).max(65536),
}).refine(trace => trace.blocks.every(([resource]) => resource < trace.resources.length), 'a block names a resource that the trace does not list')
export type Trace = z.infer<typeof traceSchema>

/** An image composed by the supernode: an object with its EROFS metadata (zstd), its length unpacked, and where its layers lie on the flat disk. */
export const composedImageSchema = z.object({
  object: digest, length: z.number().int().min(4096).max(2 ** 31),
  layers: z.array(z.object({ diffId: digest, rawLength: count, uniaddr: count })).min(1).max(512),
})
export type ComposedImage = z.infer<typeof composedImageSchema>

const layer = z.object({
  digest, size: count, mediaType: z.string().max(300), diffId: digest,
  /** Digest of the layer index object, when the layer is indexed already. */
  index: digest.optional(),
})
const have = z.union([z.object({ resource: resourceIdSchema, whole: z.literal(true) }), z.object({ resource: resourceIdSchema, blocks: z.base64().max(1024 * 1024) })])
const parent = z.object({ peerId, addrs: z.array(address).max(32), whole: z.boolean(), /** Upload slots believed free. */ slots: z.number().int().min(0) })
const empty = z.object({})

/** What `events` pushes from a supernode to a node. */
export const controlEventSchema = z.discriminatedUnion('type', [
  z.object({ type: z.literal('quarantine'), resource: resourceIdSchema, reason: z.string().max(4096) }),
  z.object({ type: z.literal('hold'), reference, platform: platform.optional(), manifestDigest: digest.optional() }),
  /** A file to hold here: `file.open` with this resource brings it. `name` is what people call it. */
  z.object({ type: z.literal('hold-file'), resource: resourceIdSchema, name: z.string().max(8192) }),
])
export type ControlEvent = z.infer<typeof controlEventSchema>

/** Every operation: what is asked, what is answered and, for long ones, what comes in between. */
export const CONTROL_OPERATIONS = {
  /** Who I am and that I am alive: on connecting, then every `heartbeatMs`. */
  hello: {
    request: z.object({
      version: z.string().max(100), addrs: z.array(address).max(32), labels: z.record(z.string().max(100), z.string().max(300)),
      /** How many peers this node serves at once, and how many of those slots are free now. */
      uploadSlots: z.number().int().min(0).max(100_000), slotsFree: z.number().int().min(0).max(100_000).optional(),
      /** For supernodes that admit only nodes which know it. */
      joinToken: z.string().max(1024).optional(),
    }),
    answer: z.object({ /** The supernode's ed25519 public key, base64url of 32 bytes. */ grantKey: z.string().max(100), heartbeatMs: z.number().int().min(100).max(3_600_000), peerId }),
    progress: empty,
  },
  /** The layers of an image, bottom first; starts indexing those that are not indexed. */
  'image.resolve': {
    request: z.object({ reference, platform: platform.optional(), manifestDigest: digest.optional(), credentials: credentials.optional() }),
    answer: z.object({ manifestDigest: digest, layers: z.array(layer).max(512), grant, trace: traceSchema.optional(), composed: composedImageSchema.optional() }),
    progress: empty,
  },
  /** Waits until one layer is indexed. UNSUPPORTED or INVALID_DATA when it cannot be. */
  'layer.index': {
    request: z.object({ reference, manifestDigest: digest, layerDigest: digest, credentials: credentials.optional() }),
    answer: z.object({ index: digest, diffId: digest, rawLength: count, packedLength: count, grant: grant.optional() }),
    progress: z.object({ /** Bytes of the layer blob read so far, and its size. */ bytes: count, total: count }),
  },
  /** The layers of a chainID that the supernode has seen, bottom first; else NOT_FOUND. */
  'chain.resolve': {
    request: z.object({ chainId: digest }),
    answer: z.object({ layers: z.array(z.object({ digest, size: count, diffId: digest, index: digest })).max(512), grant, trace: traceSchema.optional() }),
    progress: empty,
  },
  /** What this node has come to hold or no longer holds. Bitmaps are least significant bit first, and replace what was said before. */
  announce: {
    request: z.object({ have: z.array(have).max(10_000), gone: z.array(resourceIdSchema).max(10_000) }),
    answer: empty, progress: empty,
  },
  /** Whom to ask for a resource: the best first. */
  parents: {
    request: z.object({ resource: resourceIdSchema, count: z.number().int().min(1).max(64), exclude: z.array(peerId).max(256).optional() }),
    answer: z.object({ parents: z.array(parent).max(64) }),
    progress: empty,
  },
  /** How parents did, so that the scheduler learns: bytes, blocks, failures, milliseconds of transfer. */
  report: {
    request: z.object({ resource: resourceIdSchema, from: z.array(z.object({ peerId, bytes: count, blocks: count, failures: count, millis: z.number().min(0) })).max(256) }),
    answer: empty, progress: empty,
  },
  'trace.put': { request: z.object({ image: z.string().min(1).max(300), trace: traceSchema }), answer: empty, progress: empty },
  'trace.get': { request: z.object({ image: z.string().min(1).max(300) }), answer: z.object({ trace: traceSchema.optional() }), progress: empty },
  /** A fresh grant for resources that this node was granted before. */
  'grant.renew': { request: z.object({ resources: z.array(resourceIdSchema).min(1).max(4096) }), answer: z.object({ grant }), progress: empty },
  /** A resource failed its proof: the supernode stops serving it and tells the others. */
  quarantine: { request: z.object({ resource: resourceIdSchema, reason: z.string().max(4096) }), answer: empty, progress: empty },
  /** Long-lived: progress frames are events until either end closes. */
  events: { request: empty, answer: empty, progress: controlEventSchema },
  ...STREAM_OPERATIONS,
} as const

export type ControlOperation = keyof typeof CONTROL_OPERATIONS
export type ControlRequest<O extends ControlOperation> = z.infer<(typeof CONTROL_OPERATIONS)[O]['request']>
export type ControlAnswer<O extends ControlOperation> = z.infer<(typeof CONTROL_OPERATIONS)[O]['answer']>
export type ControlProgress<O extends ControlOperation> = z.infer<(typeof CONTROL_OPERATIONS)[O]['progress']>
export type ImageLayer = z.infer<typeof layer>
export type Parent = z.infer<typeof parent>
export type Announcement = ControlRequest<'announce'>

/** The frames of an answer: `alive` says only that the work still goes on, so that the caller's wait for silence starts anew. */
export const controlReplySchema = z.union([
  z.object({ ok: z.unknown().refine(value => value !== undefined) }),
  z.object({ error: z.object({ code: z.enum(ERROR_CODES), message: z.string().max(65536) }) }),
  z.object({ progress: z.unknown().refine(value => value !== undefined) }),
  z.object({ alive: z.literal(true) }),
])

/** First line of what zod found, with the field's path: enough to act on, and never a value (it may be a secret). */
export function describeIssue(error: z.ZodError): string {
  const issue = error.issues[0]
  if (issue === undefined) return 'malformed'
  const path = issue.path.join('.')
  return path === '' ? issue.message : `${path}: ${issue.message}`
}
