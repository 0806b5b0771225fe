// What a peer process's exit code tells whoever started it.

/** Another process has the store: it is starting, serving or ending. */
export const PEER_EXIT_TAKEN = 75
