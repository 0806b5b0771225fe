// Opens /dev/fuse and mounts it: the fd stays with the caller, the handshake is done. Nothing but Node's own modules: the supervisor uses it.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import { negotiate } from './fuse-init.ts'
import type { Negotiated } from './fuse-init.ts'
import { mountsUnder } from './mount-table.ts'

export interface FuseMount {
  readonly fd: number
  readonly mountPoint: string
  /** `major:minor` of the mount; the minor number names the connection under /sys/fs/fuse/connections. */
  readonly device: string
  readonly negotiated: Negotiated
}

export interface FuseMountOptions {
  /** What `mount` and `df` show; default `skimmer`. */
  readonly name?: string
  /** Readahead of the mount in KiB; default 1024, a whole request. 0 leaves the kernel's. */
  readonly readAheadKiB?: number
}

/**
 * Mount a FUSE connection read-only at `mountPoint` (created when missing). The kernel checks permissions (`default_permissions`), and
 * all users may enter (`allow_other`): containers run as anyone. Throws plain errors that say what mount(8) said.
 */
export function mountFuse(mountPoint: string, options: FuseMountOptions = {}): FuseMount {
  fs.mkdirSync(mountPoint, { recursive: true, mode: 0o755 })
  // Resolved before mounting: afterwards a look at it could wait for an answer that nobody gives yet.
  const resolved = fs.realpathSync.native(mountPoint)
  const fd = fs.openSync('/dev/fuse', 'r+')
  try {
    const flags = 'ro,nosuid,nodev,fd=3,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions'
    const mounted = spawnSync('mount', ['-i', '-t', 'fuse', '-o', flags, options.name ?? 'skimmer', resolved], { stdio: ['ignore', 'pipe', 'pipe', fd], encoding: 'utf8', timeout: 20_000 })
    if (mounted.status !== 0) {
      const reason = mounted.error?.message ?? mounted.stderr.trim()
      throw new Error(`mounting FUSE at ${mountPoint} failed: ${reason}. It needs root (CAP_SYS_ADMIN) and /dev/fuse`)
    }
    const negotiated = negotiate(fd)
    const device = mountsUnder(resolved).findLast((mount) => mount.mountPoint === resolved)?.device
    if (device === undefined) throw new Error(`${mountPoint} was mounted but /proc/self/mountinfo does not show it`)
    setReadAhead(device, options.readAheadKiB ?? 1024)
    return { fd, mountPoint: resolved, device, negotiated }
  } catch (error) {
    fs.closeSync(fd)
    throw error
  }
}

/** Best effort: a kernel without the file serves smaller reads, nothing else. */
function setReadAhead(device: string, kib: number): void {
  if (kib === 0) return
  try {
    fs.writeFileSync(`/sys/class/bdi/${device}/read_ahead_kb`, String(kib))
  } catch {
    // Read-only /sys, as in some containers.
  }
}
