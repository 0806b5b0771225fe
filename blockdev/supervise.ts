// Becomes the supervisor: this process turns into the shim, the shim into the supervisor, which starts the daemon.
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { SkimmerError } from '../oci/errors.ts'
import { mountsUnder } from './mount-table.ts'
import type { SupervisorOptions } from './supervisor.ts'
import { isAlive, readSupervisorState } from './supervisor-state.ts'

export interface SuperviseOptions {
  /** Where the node's FUSE mount goes, e.g. /run/skimmer/fs. */
  readonly mountPoint: string
  /** The daemon's command: the file first, absolute. */
  readonly command: readonly string[]
  /** Directory for the state file; must outlive a restart, not a reboot (/run/skimmer). */
  readonly stateDirectory: string
  /** Sockets to keep through restarts: `unix:/PATH` or `tcp:HOST:PORT`. */
  readonly listen?: readonly string[]
  readonly readAheadKiB?: number
}

export const stateFileIn = (directory: string): string => path.join(directory, 'supervisor.json')

/** The command line that becomes the supervisor. CONFLICT when one runs already. */
export function superviseCommand(options: SuperviseOptions): string[] {
  fs.mkdirSync(options.stateDirectory, { recursive: true })
  fs.mkdirSync(options.mountPoint, { recursive: true })
  for (const address of options.listen ?? []) if (address.startsWith('unix:')) fs.mkdirSync(path.dirname(address.slice('unix:'.length)), { recursive: true })
  const mountPoint = fs.realpathSync(path.dirname(options.mountPoint)) + '/' + path.basename(options.mountPoint)
  const stateFile = stateFileIn(options.stateDirectory)
  const state = readSupervisorState(stateFile)
  if (state !== undefined && isAlive(state.supervisor)) {
    throw new SkimmerError('CONFLICT', `a supervisor runs already (pid ${state.supervisor.pid}) and serves ${state.mountPoint}: stop it, or send it SIGHUP to upgrade`)
  }
  // Its supervisor died, but the daemon holds the same fds: nobody who reads notices when we take them over.
  const orphan = state !== undefined && isAlive(state.daemon) && state.mountPoint === mountPoint &&
    mountsUnder(mountPoint).some((mount) => mount.mountPoint === mountPoint && mount.device === state.device) ? state : undefined
  const adopted = orphan === undefined ? [] : orphan.fds.filter(({ name }) => name === 'fuse' || options.listen?.includes(name))
  const fresh = (options.listen ?? []).filter((name) => !adopted.some((one) => one.name === name))
  const supervisor: SupervisorOptions = { mountPoint, command: options.command, stateFile, readAheadKiB: options.readAheadKiB, orphan: orphan?.daemon?.pid }
  return [
    'perl', besides('./supervisor-shim.pl'),
    ...adopted.flatMap(({ fd, name }) => ['--adopt', String(orphan?.daemon?.pid), String(fd), name]),
    ...fresh.flatMap((name) => ['--listen', name]),
    '--', process.execPath, besides(import.meta.url.endsWith('.ts') ? './supervisor.ts' : './supervisor.js'), JSON.stringify(supervisor),
  ]
}

/** Replaces this process. Never returns. */
export function supervise(options: SuperviseOptions): never {
  const [command, ...words] = superviseCommand(options)
  const file = ['/usr/bin', '/bin', '/usr/local/bin'].map((directory) => `${directory}/${command}`).find((candidate) => fs.existsSync(candidate))
  if (file === undefined) throw new SkimmerError('UNSUPPORTED', 'perl is not installed: install perl-base')
  if (process.execve === undefined) throw new SkimmerError('UNSUPPORTED', 'this Node has no process.execve: Node 24 or newer is needed')
  const env = Object.fromEntries(Object.entries(process.env).filter((entry): entry is [string, string] => entry[1] !== undefined))
  return process.execve(file, [command, ...words], env)
}

const besides = (name: string): string => fileURLToPath(new URL(name, import.meta.url))
