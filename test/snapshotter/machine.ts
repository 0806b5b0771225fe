// What a test with real containerd needs from the machine, and the snapshotter it drives.
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import type { LabContainerd } from '../../bench/lab/containerd.ts'
import { MemoryLevel } from 'memory-level'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import type { LazyImages } from '../../snapshotter/lazy-images.ts'
import { Snapshotter } from '../../snapshotter/service.ts'
import type { SnapshotDatabase } from '../../snapshotter/snapshot-store.ts'

/** '' when all is there; otherwise what is missing, for the name of the skipped tests. */
export function missingForContainers(...tools: string[]): string {
  if (process.getuid?.() !== 0) return 'needs root'
  const missing = tools.filter(tool => spawnSync('sh', ['-c', `command -v ${tool}`]).status !== 0)
  if (missing.length > 0) return `needs ${missing.join(', ')}`
  return existsSync('/sys/module/overlay') ? '' : 'needs overlayfs'
}

export interface TestSnapshotter {
  readonly snapshotter: Snapshotter
  readonly metrics: Registry
  readonly db: SnapshotDatabase
}

/** `db` may come from an earlier one: that is a restart of the daemon. */
export async function startSnapshotter(options: { root: string; socketPath: string; lazy?: LazyImages; db?: SnapshotDatabase; unavailableWaitMs?: number; claimTimeoutMs?: number }): Promise<TestSnapshotter> {
  const metrics = new Registry()
  const db: SnapshotDatabase = options.db ?? new MemoryLevel<string, string>()
  const logger = pino({ level: process.env['SKIMMER_TEST_LOG'] ?? 'silent' })
  const { root, lazy, unavailableWaitMs, claimTimeoutMs } = options
  const snapshotter = new Snapshotter({ db, lazy, logger, metrics }, { root, unavailableWaitMs, claimTimeoutMs })
  await snapshotter.start({ socketPath: options.socketPath })
  return { snapshotter, metrics, db }
}

/** Waits until `look` sees what it should: containerd collects garbage a moment after it answered. */
export async function eventually(look: () => Promise<void> | void, timeoutMs = 20_000): Promise<void> {
  const deadline = performance.now() + timeoutMs
  for (;;) {
    try {
      await look()
      return
    } catch (error) {
      if (performance.now() > deadline) throw error
    }
    await new Promise(resolve => {
      setTimeout(resolve, 20)
    })
  }
}

/**
 * The mount command of a new view or active snapshot. A running garbage collection may take a snapshot that nothing refers to
 * between two commands, so it is made again until a label keeps it.
 */
export async function keptMounts(containerd: LabContainerd, snapshotter: string, command: 'view' | 'prepare', key: string, parent: string, target: string): Promise<string> {
  let mounts = ''
  await eventually(async () => {
    mounts = (await containerd.ctr(['snapshots', '--snapshotter', snapshotter, command, '--target', target, key, parent])).stdout
    await containerd.ctr(['snapshots', '--snapshotter', snapshotter, 'label', key, 'containerd.io/gc.root=kept'])
  })
  return mounts
}
