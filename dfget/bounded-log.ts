// A log file that never grows beyond its bound: when it is full it becomes `FILE.1`, and the one before that goes.
import { closeSync, fstatSync, openSync, renameSync, writeSync } from 'node:fs'

const MOST_BYTES = 1024 * 1024

/** A destination for pino. Lines are written at once; what cannot be written is lost, and nothing else happens. */
export class BoundedLog {
  readonly #file: string
  readonly #most: number
  #fd: number | undefined
  #bytes = 0

  constructor(file: string, options: { mostBytes?: number } = {}) {
    this.#file = file
    this.#most = options.mostBytes ?? MOST_BYTES
    this.#open()
  }

  write(line: string): void {
    if (this.#bytes + line.length > this.#most) this.#turn()
    if (this.#fd === undefined) return
    try {
      this.#bytes += writeSync(this.#fd, line)
    } catch {
      // A full disk must not end the downloads that could still be passed through.
    }
  }

  close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd)
    this.#fd = undefined
  }

  #turn(): void {
    this.close()
    try {
      renameSync(this.#file, `${this.#file}.1`)
    } catch {
      // Somebody took it away.
    }
    this.#open()
  }

  #open(): void {
    try {
      this.#fd = openSync(this.#file, 'a', 0o600)
      this.#bytes = fstatSync(this.#fd).size
    } catch {
      this.#fd = undefined
      this.#bytes = 0
    }
  }
}
