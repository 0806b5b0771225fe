// What the HTTP API answers, as schemas: the routes fill them, the OpenAPI document is made of them.
import { z } from 'zod'
import { ERROR_CODES } from '../oci/errors.ts'

const time = z.number().describe('milliseconds since 1970')
const bytes = z.number().int().describe('bytes')

export const errorSchema = z.object({ code: z.enum(ERROR_CODES), message: z.string() })

export const identitySchema = z.object({
  peerId: z.string(), addrs: z.array(z.string()).describe('multiaddrs with this supernode\'s peer id'),
  grantKey: z.string().describe('ed25519 public key that signs grants, base64url'), version: z.string(), startedAt: time,
})

export const imageSchema = z.object({
  registry: z.string(), repository: z.string(), manifestDigest: z.string(), platform: z.string(), references: z.array(z.string()), chainId: z.string(),
  bytes: bytes.describe('bytes of all layers as the registry has them'), firstSeen: time, lastUse: time,
  indexed: z.boolean().describe('all layers are indexed and here'),
  layers: z.array(z.object({ digest: z.string(), size: bytes, diffId: z.string(), index: z.string().optional() })),
})

export const resourceSchema = z.object({
  id: z.string(), rawBytes: bytes, packedBytes: bytes, storedBytes: bytes, blocks: z.number().int(), whole: z.boolean(), proved: z.boolean(), quarantined: z.boolean(),
  pinned: z.boolean(), lastUse: time, layerDigest: z.string().optional(), diffId: z.string().optional(), holders: z.number().int().describe('nodes that hold some of it'), wholeHolders: z.number().int(),
})

export const fileSchema = z.object({
  kind: z.enum(['file', 'blob']), name: z.string().describe('URL without user, password and query, or registry/repository@digest'), resource: z.string().describe('of its first part'),
  length: bytes.optional().describe('missing while the source has not told it'), parts: z.number().int(), storedBytes: bytes.describe('of it that are here'), fetchedBytes: bytes.optional().describe('read from the source by the download that goes on'),
  state: z.enum(['running', 'complete', 'partial']).describe('being brought; all here; to be gone on with when somebody asks'), followers: z.number().int().describe('calls of nodes that follow the download'),
  etag: z.string().optional(), lastModified: z.string().optional(), contentType: z.string().optional(), madeAt: time, lastUse: time, holders: z.number().int().describe('nodes that hold some of its first part'), wholeHolders: z.number().int(),
})

export const peerSchema = z.object({
  peerId: z.string(), addrs: z.array(z.string()), labels: z.record(z.string(), z.string()), version: z.string().optional(), alive: z.boolean(), listening: z.boolean().describe('it gets events'),
  banned: z.string().optional().describe('why'), uploadSlots: z.number().int(), slotsFree: z.number().int(), resources: z.number().int(), bytesServed: bytes, bytesReceived: bytes,
  success: z.number().describe('share of requests answered well, 0..1'), throughput: z.number().describe('bytes per second its children see; 0 while unknown'), firstSeen: time, lastSeen: time,
})

export const cacheSchema = z.object({
  usage: z.object({ packedBytes: bytes, rawBytes: bytes, objectBytes: bytes.describe('bytes of layer indexes'), capBytes: bytes }), resources: z.number().int(),
  indexing: z.array(z.object({ layerDigest: z.string(), repository: z.string(), bytes, total: bytes, startedAt: time })),
})

export const quarantineSchema = z.object({ resource: z.string(), reason: z.string() })
