// A FUSE connection as /sys/fs/fuse/connections shows it: how many requests wait, and the way out when it hangs.
import fs from 'node:fs'
import path from 'node:path'
import { SkimmerError } from '../oci/errors.ts'
import { mountTable } from './mount-table.ts'
import { runChild } from './mount.ts'

const CONNECTIONS = '/sys/fs/fuse/connections'
const TIMEOUT_MS = 10_000

/** `device` is the mount's `major:minor`; the kernel names a connection by its own form of it, 20 bits of minor. */
export class FuseControl {
  readonly #directory: string

  constructor(device: string) {
    const [major, minor] = device.split(':').map(Number)
    this.#directory = path.join(CONNECTIONS, String(major * 2 ** 20 + minor))
  }

  /** Mounts fusectl unless it is. Root only; throws UNSUPPORTED. */
  static async enable(): Promise<void> {
    if (mountTable().some((mount) => mount.mountPoint === CONNECTIONS)) return
    const { status, stderr } = await runChild('mount', ['-i', '-t', 'fusectl', 'fusectl', CONNECTIONS], TIMEOUT_MS)
    if (status !== 0) throw new SkimmerError('UNSUPPORTED', `mounting fusectl at ${CONNECTIONS} failed: ${stderr}`)
  }

  /** Requests that the kernel has not got an answer to yet; undefined when the connection is gone or fusectl is not mounted. */
  waiting(): number | undefined {
    try {
      return Number(fs.readFileSync(path.join(this.#directory, 'waiting'), 'latin1'))
    } catch {
      return undefined
    }
  }

  /** Ends the connection: every request, waiting or new, fails with ECONNABORTED or ENOTCONN. The last resort. */
  async abort(): Promise<void> {
    await FuseControl.enable()
    try {
      fs.writeFileSync(path.join(this.#directory, 'abort'), '1')
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    }
  }
}
