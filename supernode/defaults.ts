// Every tunable default of the supernode in one place, with where the number comes from.

/** How often a node says that it is alive, and after how long a silence it is not asked any more (three missed heartbeats and a bit). */
export const DEFAULT_HEARTBEAT_MS = 5_000
export const DEFAULT_DEAD_AFTER_MS = 17_000

/** Children that hang on one parent in a resource's tree: DADI uses 2; 3 keeps the tree shallower while a 3-way split of an upload still flows. */
export const DEFAULT_FAN_OUT = 3
/** All that may be pointed at one parent for one resource, tree and mesh together: Kraken's 10 connections approximate a random regular graph. */
export const DEFAULT_MAX_FAN_OUT = 10
/** How long a child counts against its parent without asking or reporting again: DADI's one minute. */
export const DEFAULT_LEASE_MS = 60_000
/** Candidates looked at for one answer: enough to find near and free ones, and independent of the number of peers. */
export const DEFAULT_SAMPLE = 48
/** A parent slower than this share of what the asker gets from the supernode is not offered to it for a while. */
export const DEFAULT_SLOW_FACTOR = 0.3
/** A throughput measured over less says nothing. */
export const DEFAULT_MINIMUM_MEASURED_BYTES = 1 << 20
/** How long a slow or failing parent is left alone before it gets another chance. */
export const DEFAULT_PENALTY_MS = 60_000
/** How long a peer that lied stays banned. */
export const DEFAULT_BAN_MS = 3_600_000
export const DEFAULT_MAX_PEERS = 50_000
export const DEFAULT_MAX_RESOURCES_PER_PEER = 8_192
/** Upload slots a peer has that does not say. */
export const DEFAULT_UPLOAD_SLOTS = 32

/** Layers whose blocks are asked of registries at the same time; indexing itself is bounded by the threads of the indexer. */
export const DEFAULT_PARALLEL_LAYERS = 4
/** How long a failure is remembered, so that a broken layer is not downloaded again by every node that starts it. */
export const DEFAULT_LASTING_FAILURE_MS = 6 * 3_600_000
export const DEFAULT_PASSING_FAILURE_MS = 5_000
export const DEFAULT_MAX_FAILURES = 10_000

/** How long a tag's manifest is believed without asking the registry, and how long "these credentials may read it" is. */
export const DEFAULT_TAG_TTL_MS = 10_000
export const DEFAULT_ACCESS_TTL_MS = 5 * 60_000
/** A registry that does not answer a revalidation within this is treated as gone, and the last known manifest is used. */
export const DEFAULT_REVALIDATE_MS = 5_000

export const DEFAULT_GRANT_MS = 3_600_000
export const DEFAULT_MAX_TRACE_BLOCKS = 65_536
export const DEFAULT_MAX_TRACES = 2_000

export const DEFAULT_MAX_JOBS = 1_000
export const DEFAULT_PARALLEL_JOBS = 2
/** How long a silent peer is remembered with what it holds: a short break of the network must not cost a new announcement. */
export const DEFAULT_FORGET_AFTER_MS = 10 * 60_000
/** How long a peer that asked for a resource, and holds none of it, is offered to others as one that will. */
export const DEFAULT_INTEREST_MS = 10 * 60_000
/** How long a registry's earlier yes outlives its later no for the same credentials: tokens of cloud registries expire every 12 hours, and starts must go on. */
export const DEFAULT_REFUSED_GRACE_MS = 24 * 3_600_000
/** How long a peer that resolved an image may name it by its chainID alone. */
export const DEFAULT_PEER_ACCESS_MS = 30 * 24 * 3_600_000
/** How long an image that nobody asks for is remembered. */
export const DEFAULT_IMAGE_MEMORY_MS = 90 * 24 * 3_600_000
/** How long nodes may take to hold a preheated image. */
export const DEFAULT_PUSH_MS = 3_600_000

export const DEFAULT_LISTEN = '/ip4/0.0.0.0/tcp/4980'
export const DEFAULT_HTTP_PORT = 4981
export const DEFAULT_CACHE_BYTES = 200 * 2 ** 30
/** Layers that no node asked for in a month were replaced by newer ones. */
export const DEFAULT_CACHE_TTL_MS = 30 * 24 * 3_600_000

/** How long a source's answer about a file is believed without asking again: Dragonfly's dfget says 3 minutes. */
export const DEFAULT_FILE_EXPIRE_MS = 3 * 60_000
/** Files and blobs brought from their sources at the same time. */
export const DEFAULT_PARALLEL_FILES = 32
export const DEFAULT_MAX_FILE_BYTES = 2 ** 40
/** How long a file that nobody opens is remembered, and how many are. */
export const DEFAULT_FILE_MEMORY_MS = 30 * 24 * 3_600_000
export const DEFAULT_MAX_FILE_RECORDS = 50_000
/** Calls of one peer that follow files and blobs at the same time: the control protocol allows 256 calls a connection. */
export const DEFAULT_OPEN_CALLS = 192
/** A caller that takes nothing for so long is hung up on. */
export const DEFAULT_SLOW_CALLER_MS = 60_000
