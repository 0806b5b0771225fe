// Starts the process that serves an image's tree through the fuse-native package. The mount outlives the daemon, as the process does.
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import { fileURLToPath } from 'node:url'
import { serialize } from 'node:v8'
import type { ImageTree } from '../image/tree.ts'
import { SkimmerError } from '../oci/errors.ts'
import { mountTable } from './mount-table.ts'
import { buildTreeTable } from './tree-table.ts'

export interface FuseNativeMount {
  readonly tree: ImageTree
  readonly mountPoint: string
  /** Where the tree is put for the process to read; removed again. */
  readonly treeFile: string
  /** The published layers: `<FUSE mount>/layers`. */
  readonly layersDirectory: string
  readonly timeoutMs: number
}

/** Resolves when the mount is there. It ends with `unmount`. UNSUPPORTED with the reason when the process dies, TIMEOUT when it hangs. */
export async function mountByFuseNative(mount: FuseNativeMount): Promise<void> {
  const table = buildTreeTable(mount.tree, (diffId) => diffId.replace(/^sha256:/, ''))
  // Shared memory is not for another process: its arrays are copied.
  const copy = {
    ...table, numbers: Uint32Array.from(table.numbers), wide: Float64Array.from(table.wide), extents: Float64Array.from(table.extents),
    entries: Uint32Array.from(table.entries), xattrs: Uint32Array.from(table.xattrs), bytes: Uint8Array.from(table.bytes),
  }
  fs.writeFileSync(mount.treeFile, serialize(copy), { mode: 0o600 })
  const script = fileURLToPath(new URL(import.meta.url.endsWith('.ts') ? './fuse-native-process.ts' : './fuse-native-process.js', import.meta.url))
  const child = spawn(process.execPath, [script, mount.treeFile, mount.layersDirectory, mount.mountPoint], { detached: true, stdio: ['ignore', 'ignore', 'pipe'] })
  let said = ''
  child.stderr.on('data', (data: Buffer) => { said = (said + data.toString()).slice(-2000) })
  const ended = new Promise<void>((resolve) => {
    child.once('exit', () => resolve())
    child.once('error', (error) => { said = error.message; resolve() })
  })
  try {
    const deadline = Date.now() + mount.timeoutMs
    while (!mountTable().some((entry) => entry.mountPoint === mount.mountPoint)) {
      const died = await Promise.race([ended.then(() => true), new Promise<false>((resolve) => setTimeout(resolve, 10, false))])
      if (died) throw new SkimmerError('UNSUPPORTED', `fuse-native could not mount ${mount.mountPoint}: ${said.trim()}`)
      if (Date.now() > deadline) {
        child.kill('SIGKILL')
        throw new SkimmerError('TIMEOUT', `fuse-native did not mount ${mount.mountPoint} within ${mount.timeoutMs} ms`)
      }
    }
  } finally {
    fs.rmSync(mount.treeFile, { force: true })
    child.stderr.destroy()
    child.unref()
  }
}

/** Ends the process of an unmounted image, which may still hold layers open. `pid` is what its mount's source named. */
export async function endFuseNative(pid: number, timeoutMs: number): Promise<void> {
  const deadline = Date.now() + timeoutMs
  // Only if it is still that process: pids come again.
  while (isOurs(pid) && Date.now() < deadline) {
    process.kill(pid, 'SIGKILL')
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
}

function isOurs(pid: number): boolean {
  try {
    return fs.readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes('fuse-native-process')
  } catch {
    return false
  }
}
