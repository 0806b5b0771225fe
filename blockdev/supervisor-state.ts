// What the supervisor writes down about itself, so that doctor can tell and a new supervisor can take over an orphaned daemon.
import fs from 'node:fs'
import type { Negotiated } from './fuse-init.ts'

export interface ProcessMark {
  readonly pid: number
  /** Clock ticks since boot when it started: tells a process from a later one with the same pid. */
  readonly started: string
}

export interface SupervisorState {
  readonly supervisor: ProcessMark
  readonly daemon?: ProcessMark
  readonly mountPoint: string
  /** `major:minor` of the FUSE mount. */
  readonly device: string
  readonly negotiated: Negotiated
  /** Numbers of the kept fds inside the daemon, and their names: `fuse`, `unix:…`, `tcp:…`. */
  readonly fds: readonly { readonly fd: number; readonly name: string }[]
}

/** Field 22 of /proc/PID/stat, counted behind the command name, which may hold anything. */
export function markOf(pid: number): ProcessMark | undefined {
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, 'latin1')
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    // A zombie serves nobody.
    return fields[0] === 'Z' ? undefined : { pid, started: fields[19] }
  } catch {
    return undefined
  }
}

export const isAlive = (mark: ProcessMark | undefined): boolean => mark !== undefined && markOf(mark.pid)?.started === mark.started

export function readSupervisorState(file: string): SupervisorState | undefined {
  try {
    const state = JSON.parse(fs.readFileSync(file, 'utf8')) as SupervisorState
    return typeof state.mountPoint === 'string' && typeof state.device === 'string' && Array.isArray(state.fds) ? state : undefined
  } catch {
    return undefined
  }
}

/** Whole or not at all. */
export function writeSupervisorState(file: string, state: SupervisorState): void {
  fs.writeFileSync(`${file}.new`, JSON.stringify(state), { mode: 0o600 })
  fs.renameSync(`${file}.new`, file)
}
