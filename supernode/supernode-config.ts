// The supernode's configuration, as a schema with every default. Sizes are bytes and times milliseconds: the CLI reads units.
import { availableParallelism } from 'node:os'
import { z } from 'zod'
import { hostsConfigSchema } from '../oci/registry-hosts.ts'
import {
  DEFAULT_ACCESS_TTL_MS, DEFAULT_CACHE_BYTES, DEFAULT_CACHE_TTL_MS, DEFAULT_FAN_OUT, DEFAULT_FILE_EXPIRE_MS, DEFAULT_GRANT_MS, DEFAULT_HEARTBEAT_MS, DEFAULT_HTTP_PORT, DEFAULT_LISTEN, DEFAULT_MAX_FAN_OUT, DEFAULT_MAX_FILE_BYTES, DEFAULT_MAX_JOBS,
  DEFAULT_MAX_PEERS, DEFAULT_PARALLEL_FILES, DEFAULT_PARALLEL_LAYERS, DEFAULT_TAG_TTL_MS,
} from './defaults.ts'

const milliseconds = z.number().int().min(1)
const positive = z.number().int().min(1)

export const supernodeConfigSchema = z.strictObject({
  /** Everything that survives a restart. */
  dataDir: z.string().min(1),
  /** Multiaddrs. */
  listen: z.array(z.string()).min(1).default([DEFAULT_LISTEN]),
  /** Addresses to tell nodes instead of those listened on. */
  announce: z.array(z.string()).default([]),
  http: z.strictObject({
    host: z.string().default('0.0.0.0'), port: z.number().int().min(0).max(65535).default(DEFAULT_HTTP_PORT),
    /** Bearer token for calls that change things; without one only this host may. */
    token: z.string().min(8).optional(),
  }).prefault({}),
  cacheBytes: positive.default(DEFAULT_CACHE_BYTES),
  /** What nobody read for so long is dropped; 0: only the cap counts. */
  cacheTtlMs: z.number().int().min(0).default(DEFAULT_CACHE_TTL_MS),
  registry: z.strictObject({
    hosts: hostsConfigSchema.default({}),
    /** A docker config.json. Without it docker's and podman's usual places are looked at. */
    credentialsFile: z.string().optional(),
  }).prefault({}),
  /** Nodes must say it to be admitted; without one all are. */
  joinToken: z.string().min(8).optional(),
  tagTtlMs: z.number().int().min(0).default(DEFAULT_TAG_TTL_MS),
  accessTtlMs: z.number().int().min(0).default(DEFAULT_ACCESS_TTL_MS),
  files: z.strictObject({
    /** How long a source's answer about a file is believed, milliseconds. */
    expireMs: z.number().int().min(0).default(DEFAULT_FILE_EXPIRE_MS),
    /** Files are also fetched from this host and from link-local addresses. */
    loopback: z.boolean().default(false),
    maxBytes: positive.default(DEFAULT_MAX_FILE_BYTES),
    parallel: positive.default(DEFAULT_PARALLEL_FILES),
  }).prefault({}),
  grantMs: milliseconds.default(DEFAULT_GRANT_MS),
  heartbeatMs: z.number().int().min(100).max(3_600_000).default(DEFAULT_HEARTBEAT_MS),
  limits: z.strictObject({
    parallelLayers: positive.default(Math.max(DEFAULT_PARALLEL_LAYERS, availableParallelism())), indexerThreads: positive.default(availableParallelism()),
    peers: positive.default(DEFAULT_MAX_PEERS), connections: positive.default(4_096), fanOut: positive.default(DEFAULT_FAN_OUT), maxFanOut: positive.default(DEFAULT_MAX_FAN_OUT),
    uploadSlots: positive.default(64), uploadBytesPerSecond: positive.optional(), preheatJobs: positive.default(DEFAULT_MAX_JOBS),
  }).prefault({}),
})
export type SupernodeConfig = z.infer<typeof supernodeConfigSchema>
/** As it is written: all but dataDir may be left out. */
export type SupernodeConfigInput = z.input<typeof supernodeConfigSchema>
