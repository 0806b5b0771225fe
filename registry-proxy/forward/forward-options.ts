// What the forward proxy is started with, and its bounds.
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Outcome } from '../answers.ts'

export interface ForwardLimits {
  /** To connect to a server, name look-up and TLS included. */
  readonly connectMs: number
  /** To the first byte of a server's answer. */
  readonly answerMs: number
  /** Without a byte in either direction: answers, request bodies, clients that take nothing. */
  readonly idleMs: number
  /** The same for tunnels and upgraded connections. */
  readonly tunnelIdleMs: number
  /** For the swarm to say what a file is; then it is fetched directly. */
  readonly swarmMs: number
  readonly connections: number
}

export const FORWARD_LIMITS: ForwardLimits = { connectMs: 10_000, answerMs: 120_000, idleMs: 300_000, tunnelIdleMs: 900_000, swarmMs: 30_000, connections: 1000 }

export const MAX_HEADER_BYTES = 64 * 1024
/** For a client to send a request's head, or to greet in TLS. */
export const HEAD_TIMEOUT_MS = 30_000

/** The registry proxy, which answers `/v2/<name>/blobs/<digest>?ns=<registry>`. */
export interface RegistryHandler {
  /** Resolves when it is answered, or broken off: with what became of it. Never rejects. */
  handle(request: IncomingMessage, response: ServerResponse): Promise<Outcome>
}

export interface FileRequest {
  readonly url: string
  /** Lower-case names; credentials among them. */
  readonly headers: Readonly<Record<string, string>>
  /** The client wants what the source has now (Cache-Control: no-cache). */
  readonly fresh: boolean
  /** Of the host whose TLS is opened: PEM text trusted for it, or certificates not checked. */
  readonly ca?: string
  readonly insecure?: boolean
  readonly signal: AbortSignal
}

/** What peer/downloads.ts opens, as far as it is needed here. */
export interface ForwardedFile {
  readonly head: { readonly length?: number; readonly contentType?: string; readonly contentEncoding?: string; readonly etag?: string; readonly lastModified?: string }
  readonly length?: number
  /** `to` is exclusive. Verified; ends with an error, never short. */
  read(range?: { from?: number; to?: number }, options?: { signal?: AbortSignal }): AsyncIterable<Buffer>
  release(): void
}

/** Rejects when the swarm cannot give it: then the request goes to the server itself, whose answer the client gets. */
export type OpenFile = (request: FileRequest) => Promise<ForwardedFile>
