// The supervisor: opens /dev/fuse once, mounts it, and keeps a daemon running with that fd and the listening sockets. Node's own modules only.
//
// Started by supervisor-shim.pl as `node supervisor.ts '<SupervisorOptions as JSON>'`. SIGTERM, SIGINT: stop the daemon, take the mount
// down. SIGHUP: hot upgrade: start the daemon's command again, wait until it is prepared, let the old one hand over, tell the new one to go.
import { spawn, spawnSync } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import fs from 'node:fs'
import { mountFuse } from './fuse-mount.ts'
import type { FuseMount } from './fuse-mount.ts'
import { mountsUnder } from './mount-table.ts'
import { markOf, readSupervisorState, writeSupervisorState } from './supervisor-state.ts'

export interface SupervisorOptions {
  readonly mountPoint: string
  /** The daemon's command and words. */
  readonly command: readonly string[]
  readonly stateFile: string
  readonly readAheadKiB?: number
  /** Process to end before the first daemon starts: an orphan whose fds were taken over. */
  readonly orphan?: number
}

/** Before the next start of a daemon that never came to serve. One that served is started again at once: readers wait. */
const BACKOFF_MS = [0, 100, 300, 1000, 3000, 5000]
/** Even so not in a busy loop, should it die whenever it serves. */
const SERVED_BACKOFF_MS = 100
/** A daemon that served this long starts the count of failures anew. */
const STABLE_MS = 1000
const STOP_MS = 30_000
const UMOUNT_MS = 20_000
const PREPARE_MS = 60_000
const HANDOVER_MS = 15_000

const options = JSON.parse(process.argv[2]) as SupervisorOptions
const kept = (process.env.SKIMMER_KEPT_FDS ?? '').split('\n').filter((line) => line !== '').map((line) => ({ fd: Number(line.slice(0, line.indexOf('='))), name: line.slice(line.indexOf('=') + 1) }))
const sockets = kept.filter(({ name }) => name !== 'fuse')

const say = (level: 30 | 40 | 50, msg: string, facts: object = {}): void => {
  process.stderr.write(`${JSON.stringify({ level, time: Date.now(), pid: process.pid, name: 'supervisor', ...facts, msg })}\n`)
}

const fuse = takeFuse()
let daemon: ChildProcess | undefined
let next: ChildProcess | undefined
let stopping = false
let failures = 0

function takeFuse(): FuseMount {
  const adopted = kept.find(({ name }) => name === 'fuse')
  const state = readSupervisorState(options.stateFile)
  if (adopted !== undefined && state !== undefined) return { fd: adopted.fd, mountPoint: state.mountPoint, device: state.device, negotiated: state.negotiated }
  // A mount whose daemon and supervisor both died answers nobody: away with it.
  for (const stale of mountsUnder(options.mountPoint).filter((mount) => mount.type === 'fuse' && mount.mountPoint === options.mountPoint)) {
    say(40, 'taking down a dead mount', { mountPoint: stale.mountPoint, device: stale.device })
    spawnSync('umount', ['-i', '-l', stale.mountPoint], { timeout: UMOUNT_MS })
  }
  return mountFuse(options.mountPoint, { readAheadKiB: options.readAheadKiB })
}

function start(handover: boolean): ChildProcess {
  const fds = [{ fd: fuse.fd, name: 'fuse' }, ...sockets]
  const child = spawn(options.command[0], options.command.slice(1), {
    stdio: ['inherit', 'inherit', 'inherit', ...fds.map(({ fd }) => fd), 'ipc'],
    env: {
      ...process.env,
      SKIMMER_KEPT_FDS: fds.map(({ name }, index) => `${index + 3}=${name}`).join('\n'),
      SKIMMER_FUSE_MOUNT: fuse.mountPoint,
      SKIMMER_FUSE_NEGOTIATED: JSON.stringify(fuse.negotiated),
      SKIMMER_HANDOVER: handover ? '1' : '',
    },
  })
  child.on('error', (error) => say(50, 'cannot start the daemon', { command: options.command[0], reason: error.message }))
  return child
}

function writeState(): void {
  try {
    writeSupervisorState(options.stateFile, {
      supervisor: markOf(process.pid) ?? { pid: process.pid, started: '' },
      daemon: daemon?.pid === undefined ? undefined : markOf(daemon.pid),
      mountPoint: fuse.mountPoint, device: fuse.device, negotiated: fuse.negotiated,
      fds: [{ fd: 3, name: 'fuse' }, ...sockets.map(({ name }, index) => ({ fd: index + 4, name }))],
    })
  } catch (error) {
    say(40, 'cannot write the state file: an orphaned daemon could not be taken over', { file: options.stateFile, reason: (error as Error).message })
  }
}

/** Keep this child as the daemon until it ends, then start the next. */
function keep(child: ChildProcess): void {
  daemon = child
  let over = false
  let served = false
  writeState()
  const ended = (code: number | null, signal: string | null): void => {
    // A command that cannot be started has an error and no exit.
    if (over || daemon !== child) return
    over = true
    daemon = undefined
    if (stopping) return finish()
    if (next !== undefined) return
    const delay = served ? Math.min(SERVED_BACKOFF_MS, failures * SERVED_BACKOFF_MS) : BACKOFF_MS[Math.min(failures, BACKOFF_MS.length - 1)]
    failures++
    say(50, 'the daemon died; starting it again', { code, signal, delay })
    setTimeout(() => { if (!stopping && daemon === undefined) keep(start(false)) }, delay)
  }
  child.on('message', (message) => {
    if ((message as { type?: string }).type !== 'serving') return
    served = true
    setTimeout(() => { if (daemon === child) failures = 0 }, STABLE_MS).unref()
  })
  child.once('exit', ended)
  child.once('error', () => ended(null, null))
}

/** Resolves when the child says `word`; false when it ends or is too slow. */
function hears(child: ChildProcess, word: string, milliseconds: number): Promise<boolean> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => resolve(false), milliseconds)
    const done = (answer: boolean): void => { clearTimeout(timer); resolve(answer) }
    child.on('message', (message) => { if ((message as { type?: string }).type === word) done(true) })
    child.once('exit', () => done(false))
    child.once('error', () => done(false))
  })
}

function ends(child: ChildProcess | undefined, milliseconds: number): Promise<void> {
  if (child === undefined || child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return Promise.resolve()
  return new Promise((resolve) => {
    const timer = setTimeout(() => child.kill('SIGKILL'), milliseconds)
    child.once('exit', () => { clearTimeout(timer); resolve() })
  })
}

/** A message to a child that may be gone already. */
function tell(child: ChildProcess, type: string): void {
  if (child.connected) child.send({ type }, () => undefined)
}

async function upgrade(): Promise<void> {
  if (next !== undefined || stopping) return say(40, 'an upgrade or a stop is under way already')
  say(30, 'upgrade: starting the new daemon')
  const candidate = start(true)
  next = candidate
  const prepared = await hears(candidate, 'prepared', PREPARE_MS)
  if (!prepared || stopping) {
    say(50, 'upgrade failed: the new daemon did not get ready; the old one goes on')
    candidate.kill('SIGKILL')
    next = undefined
    // The old one may have died meanwhile.
    if (daemon === undefined && !stopping) keep(start(false))
    return
  }
  const old = daemon
  if (old !== undefined) tell(old, 'handover')
  await ends(old, HANDOVER_MS)
  next = undefined
  keep(candidate)
  tell(candidate, 'go')
  say(30, 'upgrade: handed over')
}

function stop(): void {
  if (stopping) return
  stopping = true
  next?.kill('SIGKILL')
  if (daemon === undefined) return finish()
  const child = daemon
  tell(child, 'stop')
  child.kill('SIGTERM')
  void ends(child, STOP_MS)
}

function finish(): void {
  // The last fd closes the connection: whoever still reads gets an error, and umount(8), which looks at the mount first, does not hang.
  fs.closeSync(fuse.fd)
  const unmounted = spawnSync('umount', ['-i', fuse.mountPoint], { encoding: 'utf8', timeout: UMOUNT_MS })
  if (unmounted.status !== 0) {
    say(40, 'the mount is still in use; who uses it gets errors from now on', { mountPoint: fuse.mountPoint, reason: unmounted.stderr.trim() })
    spawnSync('umount', ['-i', '-l', fuse.mountPoint], { timeout: UMOUNT_MS })
  }
  for (const { name } of sockets) if (name.startsWith('unix:')) fs.rmSync(name.slice('unix:'.length), { force: true })
  fs.rmSync(options.stateFile, { force: true })
  process.exit(0)
}

/** The orphan serves until we are here to take its place. It is no child of ours, so look until it is gone. */
async function endOrphan(pid: number): Promise<void> {
  const mark = markOf(pid)
  if (mark === undefined) return
  say(30, 'taking over from an orphaned daemon', { orphan: pid })
  process.kill(pid, 'SIGKILL')
  while (markOf(pid)?.started === mark.started) await new Promise((resolve) => setTimeout(resolve, 5))
}

process.on('SIGTERM', stop)
process.on('SIGINT', stop)
process.on('SIGHUP', () => void upgrade())
process.on('SIGPIPE', () => undefined)
if (options.orphan !== undefined) await endOrphan(options.orphan)
keep(start(false))
