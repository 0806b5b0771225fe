// What the store leaves free on the disk, and a small reserve file it gives up when it must open on a full one.
import * as fs from 'node:fs'
import * as path from 'node:path'

/** LevelDB needs this much at most to open: its log (4 MiB) becomes a table, and a manifest. */
const RESERVE_BYTES = 8 * 1024 * 1024
/** The file system is asked again after so many bytes or milliseconds: asking costs 2 µs, being wrong a little is harmless. */
const ASK_EVERY_BYTES = 4 * 1024 * 1024
const ASK_EVERY_MS = 250

export class DiskReserve {
  readonly #directory: string
  readonly #minFreeBytes: number
  #free = 0
  #askedAt = -Infinity
  #taken = 0

  constructor(options: { directory: string; minFreeBytes: number }) {
    this.#directory = options.directory
    this.#minFreeBytes = options.minFreeBytes
  }

  /** How many bytes are missing on the disk for taking `bytes` more; 0 when there is room. */
  shortfall(bytes: number, options: { now?: boolean } = {}): number {
    const time = performance.now()
    if (options.now === true || this.#taken > ASK_EVERY_BYTES || time - this.#askedAt > ASK_EVERY_MS) {
      const { bavail, bsize } = fs.statfsSync(this.#directory)
      this.#free = bavail * bsize
      this.#taken = 0
      this.#askedAt = time
    }
    this.#taken += bytes
    return Math.max(0, this.#minFreeBytes + this.#taken - this.#free)
  }

  /** Sets the reserve file aside if the disk has room for it; real bytes, not a hole. */
  keep(): boolean {
    const file = this.#file
    if (fs.statSync(file, { throwIfNoEntry: false })?.size === RESERVE_BYTES) return true
    try {
      fs.writeFileSync(file, Buffer.alloc(RESERVE_BYTES), { mode: 0o600 })
      return true
    } catch {
      fs.rmSync(file, { force: true })
      return false
    }
  }

  /** Gives the reserve file up; false when there was none. */
  spend(): boolean {
    if (!fs.existsSync(this.#file)) return false
    fs.rmSync(this.#file, { force: true })
    return true
  }

  get #file(): string {
    return path.join(this.#directory, 'reserve')
  }
}
