// Every tunable of this room with its default, in one place. Times in milliseconds, sizes in bytes.

/** A registry across the world answers a SYN well within this. */
export const DEFAULT_CONNECT_TIMEOUT_MS = 10_000
/** A mirror is near, or it is not worth waiting for. */
export const DEFAULT_MIRROR_CONNECT_TIMEOUT_MS = 2_000
/** Pull-through caches fetch before they answer, so this is generous. */
export const DEFAULT_HEADERS_TIMEOUT_MS = 60_000
/** The longest silence in the middle of a body; the blob is then resumed on a new connection. */
export const DEFAULT_BODY_IDLE_TIMEOUT_MS = 30_000
/** Connections to one host. Registries throttle a connection, so several in parallel are faster than one. */
export const DEFAULT_CONNECTIONS = 16
export const DEFAULT_KEEP_ALIVE_MS = 30_000

/** Tries of one request at one host, the first included. */
export const DEFAULT_ATTEMPTS = 4
export const DEFAULT_BACKOFF_MS = 250
export const DEFAULT_MAX_BACKOFF_MS = 8_000
/** A `Retry-After` beyond this is not waited for: the error says how long the registry wants. */
export const DEFAULT_MAX_RETRY_AFTER_MS = 30_000
/** Blob reads: how many broken connections in a row, each without real progress, end the read. */
export const DEFAULT_RESUMES = 5
/** What counts as progress; less would let a dripping server hold a reader for ever. */
export const RESUME_PROGRESS_BYTES = 64 * 1024

export const MAX_REDIRECTS = 5
/** How long a mirror that failed is passed over. */
export const DEFAULT_MIRROR_PAUSE_MS = 30_000

/** The token spec's own default when a server does not say `expires_in`. */
export const DEFAULT_TOKEN_SECONDS = 60
export const MAX_TOKEN_SECONDS = 24 * 3600
/** Tokens are renewed this long before they expire, so that none expires on the way. */
export const TOKEN_MARGIN_MS = 5_000
export const MAX_TOKEN_BYTES = 1024 * 1024
export const TOKEN_TIMEOUT_MS = 60_000
export const MAX_CACHED_TOKENS = 4096

export const CREDENTIAL_HELPER_TIMEOUT_MS = 30_000
export const MAX_CREDENTIAL_HELPER_BYTES = 1024 * 1024
export const MAX_DOCKER_CONFIG_BYTES = 4 * 1024 * 1024

export const MAX_ERROR_BODY_BYTES = 16 * 1024
export const MAX_TAG_PAGES = 10_000
export const MAX_REFERRER_PAGES = 100

export interface RegistryClientOptions {
  readonly connectTimeoutMs?: number
  readonly mirrorConnectTimeoutMs?: number
  readonly headersTimeoutMs?: number
  readonly bodyIdleTimeoutMs?: number
  readonly connections?: number
  readonly attempts?: number
  readonly backoffMs?: number
  readonly maxRetryAfterMs?: number
  readonly resumes?: number
  readonly mirrorPauseMs?: number
  /** Whether HTTP_PROXY, HTTPS_PROXY and NO_PROXY are honoured (loopback never goes through a proxy). Default true. */
  readonly proxyFromEnvironment?: boolean
  readonly userAgent?: string
  readonly maxRedirects?: number
  /**
   * Asked for each address before a connection goes there, after DNS, redirects included; IPv4 in an IPv6 dress is shown as
   * IPv4. Behind a proxy only addresses that stand in the URL are checked: names are the proxy's to resolve and to judge.
   */
  readonly allow?: (address: string) => boolean
  /**
   * Redirects to another host may not lead to this machine, its link or a cloud's metadata, unless the host that was asked first is at such
   * an address itself. Private networks may be led to: storage is there. Default false.
   */
  readonly guardRedirects?: boolean
}
