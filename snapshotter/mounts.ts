// What containerd must mount to see a snapshot: the same answers as its own overlay snapshotter, with a lazily mounted tree at the bottom if there is one.
import { readFileSync, statSync } from 'node:fs'
import { SkimmerError } from '../oci/errors.ts'

export interface Mount {
  readonly type: string
  readonly source: string
  readonly target: string
  readonly options: readonly string[]
}

/** Overlay options that depend on the kernel and on where we run. */
export interface OverlayFeatures {
  /** The kernel knows `index`: it is turned off, so that a lower directory may be shared by several mounts and change its device. */
  readonly indexOff: boolean
  /** In a user namespace overlayfs keeps its marks in `user.*` attributes. */
  readonly userxattr: boolean
}

/** mount(2) takes one page of options; containerd shortens lower directories by itself only if all are below one directory. */
export const MAX_OPTIONS_BYTES = 4096 - 512
/** The kernel's limit on lower directories (OVL_MAX_STACK). */
const MAX_LOWER_DIRECTORIES = 500

export interface SnapshotView {
  readonly kind: 'view' | 'active'
  /** The snapshot's own directories; a view on parents has none. */
  readonly fs: string
  readonly work: string
  /** What lies below, nearest first: `fs` directories of ordinary parents, then at most one lazily mounted tree. */
  readonly lower: readonly string[]
}

/** @throws LIMIT_EXCEEDED when the chain is longer than overlayfs can stack. */
export function mountsOf(view: SnapshotView, features: OverlayFeatures): Mount[] {
  const { kind, lower } = view
  if (lower.length === 0) return [bind(view.fs, kind === 'active' ? 'rw' : 'ro')]
  if (kind === 'view' && lower.length === 1) return [bind(lower[0], 'ro')]
  if (lower.length > MAX_LOWER_DIRECTORIES) throw new SkimmerError('LIMIT_EXCEEDED', `the snapshot has ${lower.length} layers; overlayfs can stack at most ${MAX_LOWER_DIRECTORIES}`)
  const options: string[] = []
  if (features.indexOff) options.push('index=off')
  if (features.userxattr) options.push('userxattr')
  if (kind === 'active') options.push(`workdir=${view.work}`, `upperdir=${view.fs}`)
  options.push(`lowerdir=${lower.join(':')}`)
  return [{ type: 'overlay', source: 'overlay', target: '', options }]
}

export const optionsBytes = (mounts: readonly Mount[]): number => mounts.reduce((sum, mount) => sum + Buffer.byteLength(mount.options.join(',')), 0)

const bind = (source: string, access: 'rw' | 'ro'): Mount => ({ type: 'bind', source, target: '', options: [access, 'rbind'] })

/** Commas and colons separate overlay's options and directories; a backslash quotes them. @throws INVALID_ARGUMENT */
export function checkMountablePath(path: string): void {
  if (!path.startsWith('/') || /[,:\\\s]/.test(path)) throw new SkimmerError('INVALID_ARGUMENT', `${JSON.stringify(path)} cannot hold snapshots: give an absolute path without commas, colons, backslashes and white space`)
}

export function detectOverlayFeatures(): OverlayFeatures {
  return { indexOff: statSync('/sys/module/overlay/parameters/index', { throwIfNoEntry: false }) !== undefined, userxattr: inUserNamespace() }
}

/** The initial user namespace maps all ids to themselves. */
function inUserNamespace(): boolean {
  return readFileSync('/proc/self/uid_map', 'utf8').trim().split(/\s+/).join(' ') !== '0 0 4294967295'
}
