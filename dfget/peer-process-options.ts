// What dfget's own peer is started with.
import { z } from 'zod'

/** As JSON in the process's one argument. */
export const peerProcessSchema = z.strictObject({
  directory: z.string().startsWith('/'),
  socket: z.string().startsWith('/'),
  rates: z.string().startsWith('/'),
  supernodes: z.array(z.string().min(1).max(500)).max(100),
  listen: z.array(z.string().min(1).max(500)).max(32).default(['/ip4/0.0.0.0/tcp/0']),
  announce: z.array(z.string().min(1).max(500)).max(32).optional(),
  joinTokenFile: z.string().max(4096).optional(),
  labels: z.record(z.string().max(100), z.string().max(300)).default({}),
  cacheBytes: z.number().int().min(16 * 1024 * 1024).default(10 * 1024 ** 3),
  /** Milliseconds after the last use. */
  aliveMs: z.number().int().min(0).default(300_000),
  /** Downloads of this host together; several processes share it. */
  bytesPerSecond: z.number().int().min(1).optional(),
  uploadBytesPerSecond: z.number().int().min(1).optional(),
  parallel: z.number().int().min(1).optional(),
  logLevel: z.string().default('info'),
})
export type PeerProcessOptions = z.infer<typeof peerProcessSchema>
