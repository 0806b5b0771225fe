// Where a user's own peer lives: its store, socket and log, by user, home and the supernodes it trusts.
import { hash } from 'node:crypto'
import { lstatSync, mkdirSync } from 'node:fs'
import { homedir } from 'node:os'
import { join, resolve } from 'node:path'
import { SkimmerError } from '../oci/errors.ts'

/** Paths of unix sockets are short: 107 bytes on Linux. */
const MAX_SOCKET_PATH = 107

export interface PeerPlace {
  /** Store, identity and log. */
  readonly directory: string
  readonly socket: string
  /** Where processes of this user agree on limits for the whole host. */
  readonly rates: string
}

/**
 * A peer trusts its supernodes, so another list of them is another peer with a store of its own. `home` is `--home`, else
 * `$XDG_CACHE_HOME/skimmer` or `~/.cache/skimmer`. Makes the directories, for this user alone. FORBIDDEN: one of them is somebody else's.
 */
export function peerPlace(supernodes: readonly string[], options: { home?: string; environment?: NodeJS.ProcessEnv } = {}): PeerPlace {
  const environment = options.environment ?? process.env
  const home = resolve(options.home ?? join(environment.XDG_CACHE_HOME || join(homedir(), '.cache'), 'skimmer'))
  const id = hash('sha256', JSON.stringify([process.getuid?.(), home, [...new Set(supernodes)].toSorted()]), 'hex').slice(0, 12)
  const runtime = runtimeDirectory(environment)
  const directory = join(home, `peer-${id}`)
  makePrivate(directory)
  const socket = join(runtime, `${id}.sock`)
  if (Buffer.byteLength(socket) > MAX_SOCKET_PATH) throw new SkimmerError('INVALID_ARGUMENT', `${socket} is too long for the path of a unix socket: set XDG_RUNTIME_DIR to a shorter directory`)
  return { directory, socket, rates: join(runtime, 'rates') }
}

/** Gone after a restart of the machine, readable by this user alone. */
export function runtimeDirectory(environment: NodeJS.ProcessEnv = process.env): string {
  const uid = process.getuid?.() ?? 0
  const given = environment.XDG_RUNTIME_DIR
  // A job of cron and a login session of the same user meet in the same directory.
  const session = given || (ownedBy(`/run/user/${uid}`, uid) ? `/run/user/${uid}` : undefined)
  const directory = session ? join(session, 'skimmer-dfget') : uid === 0 ? '/run/skimmer-dfget' : `/tmp/skimmer-dfget-${uid}`
  makePrivate(directory)
  return directory
}

function ownedBy(directory: string, uid: number): boolean {
  const found = lstatSync(directory, { throwIfNoEntry: false })
  return found !== undefined && found.isDirectory() && found.uid === uid && (found.mode & 0o077) === 0
}

function makePrivate(directory: string): void {
  try {
    mkdirSync(directory, { recursive: true, mode: 0o700 })
  } catch (cause) {
    throw new SkimmerError('FORBIDDEN', `${directory} cannot be made (${(cause as NodeJS.ErrnoException).code}): name another place by --home or XDG_RUNTIME_DIR`, { cause })
  }
  const found = lstatSync(directory)
  if (!found.isDirectory() || found.uid !== (process.getuid?.() ?? found.uid) || (found.mode & 0o077) !== 0) {
    throw new SkimmerError('FORBIDDEN', `${directory} must be a directory of user ${process.getuid?.()} that nobody else may enter (chmod 700)`)
  }
}
