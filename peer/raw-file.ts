// The raw file of a resource: published to threads through a shared cell, and taken away again without pulling an fd from under a read.
import * as fs from 'node:fs'
import * as timers from 'node:timers/promises'
import { RAW_FD, READERS } from './shared-resource.ts'

/** How often to look whether readers have left: a read takes a millisecond at most. */
const LOOK_EVERY_MS = 5

export class RawFile {
  readonly path: string
  /** See SharedResource.rawFdCell. */
  readonly cell = new Int32Array(new SharedArrayBuffer(8))
  /** Plain packs are their own raw file: the fd is the pack's and not ours to close. */
  #borrowed = false
  constructor(path: string) {
    this.path = path
    this.cell[RAW_FD] = -1
  }

  get fd(): number {
    return Atomics.load(this.cell, RAW_FD)
  }

  /** Opens the file if it is there with exactly this size, and shows it to the threads. */
  publish(size: number): boolean {
    let fd = -1
    try {
      fd = fs.openSync(this.path, 'r')
      if (fs.fstatSync(fd).size !== size) throw new Error('wrong size')
    } catch {
      if (fd >= 0) fs.closeSync(fd)
      return false
    }
    Atomics.store(this.cell, RAW_FD, fd)
    return true
  }

  borrow(fd: number): void {
    this.#borrowed = true
    Atomics.store(this.cell, RAW_FD, fd)
  }

  /**
   * Shows the fd to nobody any more, and closes it when the last read that may have seen it is over. A thread counts itself in before it
   * looks at the cell, so after the cell says -1 and the count was once seen at zero, no one has the fd. Resolves then; false when `signal`
   * fired before: the fd is then left open, because closing it could hand another file to a reader.
   */
  async retire(signal?: AbortSignal): Promise<boolean> {
    const fd = Atomics.exchange(this.cell, RAW_FD, -1)
    const gone = await this.unread(signal)
    if (gone && fd >= 0 && !this.#borrowed) fs.closeSync(fd)
    return gone
  }

  /** Resolves when no thread is inside a read of this resource; false when `signal` fired before. */
  async unread(signal?: AbortSignal): Promise<boolean> {
    while (Atomics.load(this.cell, READERS) > 0) {
      if (signal?.aborted === true) return false
      await timers.setTimeout(LOOK_EVERY_MS)
    }
    return true
  }

  unlink(): void {
    fs.rmSync(this.path, { force: true })
  }
}
