// How processes that run for months are started, so that they stay small: words for Node and for glibc.

/**
 * Node's young generation may grow to 48 MiB of pages that are never given back. Transfers collect it themselves (see peer/buffer-garbage.ts), and little else
 * makes garbage: 2 MiB for each half are plenty.
 */
export const SMALL_PROCESS_FLAGS: readonly string[] = ['--max-semi-space-size=2', '--disable-warning=ExperimentalWarning']

/** One pool of memory for all threads: each of its own would keep what a burst left in it. What is set already is left. */
export const SMALL_PROCESS_ENVIRONMENT: Readonly<Record<string, string>> = { MALLOC_ARENA_MAX: '1' }
