// What a registry proxy can be told, with its defaults in one place. Times in milliseconds, sizes in bytes.
import type { RegistryClientOptions } from '../oci/defaults.ts'

export interface RegistryProxyOptions {
  readonly listen: { readonly host: string; readonly port: number }
  /** PEM of a certificate chain and its key: the proxy then speaks TLS only. */
  readonly tls?: { readonly cert: string; readonly key: string }
  /** What is meant when a request names no registry; `docker.io`, which Docker's own mirror setting assumes. */
  readonly registry?: string
  /** Registries that may be asked; none named: any. */
  readonly registries?: readonly string[]
  /** Names under which clients reach this proxy (`Host` header, with or without port), and the registry that each stands for. */
  readonly hosts?: Readonly<Record<string, string>>
  /** How long a tag is believed without asking the registry. */
  readonly tagTtlMs?: number
  /** How old a tag may be when the registry cannot be asked; 0: then it is not served. */
  readonly staleTagsMs?: number
  /** How long a registry's yes to a client is believed without asking again. */
  readonly accessTtlMs?: number
  /** And how long when it cannot be asked. */
  readonly accessOfflineMs?: number
  /** Clients of this machine that bring no credentials are served with the proxy's own. */
  readonly ownCredentials?: boolean
  /** Connections of clients at the same time. */
  readonly connections?: number
  /** A client that takes nothing for so long loses its connection. */
  readonly clientIdleMs?: number
  /** Keys the hashes by which clients are remembered, so that they outlive a restart; random when left out. */
  readonly secret?: Buffer
  readonly upstream?: UpstreamOptions
}

export interface UpstreamOptions extends RegistryClientOptions {
  /** How long a registry may take to begin to answer what is not a blob. */
  readonly lookUpMs?: number
}

export const DEFAULT_PROXY_REGISTRY = 'docker.io'
export const DEFAULT_TAG_TTL_MS = 10_000
export const DEFAULT_STALE_TAGS_MS = 24 * 3600_000
export const DEFAULT_ACCESS_TTL_MS = 5 * 60_000
export const DEFAULT_ACCESS_OFFLINE_MS = 24 * 3600_000
export const DEFAULT_CLIENT_CONNECTIONS = 1000
export const DEFAULT_CLIENT_IDLE_MS = 120_000

/** Clients have another way, the registry itself: they had better learn soon that this one is closed. */
export const UPSTREAM_ATTEMPTS = 2
export const UPSTREAM_CONNECT_TIMEOUT_MS = 5_000
/** A registry's head of an answer to a question: what is no blob is small, and is soon there or not at all. */
export const LOOK_UP_MS = 15_000
/** The same, all in all, when an answer that is somewhat old could be given instead. */
export const STALE_LOOK_UP_MS = 5_000
/** A registry that could not be reached is not tried again for so long. */
export const UPSTREAM_PAUSE_MS = 3_000

/** Bearer tokens of some registries have more than 8 KiB. */
export const MAX_REQUEST_HEADER_BYTES = 64 * 1024
export const REQUEST_TIMEOUT_MS = 30_000
export const KEEP_ALIVE_MS = 75_000
/** Lists and refusals of registries that are passed on. */
export const MAX_LISTING_BYTES = 16 * 1024 * 1024
export const MAX_REFUSAL_BYTES = 64 * 1024
/** Proxies behind proxies; more is a loop that somebody hides. */
export const MAX_MIRROR_HOPS = 4
