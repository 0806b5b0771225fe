// A pack on disk: blocks one after another in a sparse file, and beside it one byte a block that says which were written.
import * as fs from 'node:fs'
import { SkimmerError } from '../oci/errors.ts'
import { borrowBuffer } from './lent-buffers.ts'

/** What the operating system says when there is no room, or no more for us. */
const NO_ROOM = new Set(['ENOSPC', 'EDQUOT', 'EFBIG'])

/** Turns an error of a write into ours: NO_SPACE when the disk is full, UNAVAILABLE else. */
export function writeError(error: unknown, path: string): SkimmerError {
  const code = (error as NodeJS.ErrnoException).code ?? ''
  if (NO_ROOM.has(code)) return new SkimmerError('NO_SPACE', `${path}: the disk is full (${code}); free space or lower the cap`, { cause: error })
  return new SkimmerError('UNAVAILABLE', `${path}: cannot be written (${code}); check the disk`, { cause: error })
}

export class PackFile {
  readonly path: string
  readonly statePath: string
  #fd = -1
  #stateFd = -1
  #count: number
  readonly #oneByte = new Uint8Array(1)
  constructor(path: string, count: number) {
    this.path = path
    this.statePath = `${path}.state`
    this.#count = count
  }

  /** The pack's fd. Opened when first needed, so that a store of thousands of resources does not hold thousands of fds. */
  get fd(): number {
    if (this.#fd < 0) this.#fd = fs.openSync(this.path, fs.constants.O_RDWR | fs.constants.O_CREAT, 0o600)
    return this.#fd
  }

  /** Makes room for the notes before there is anything to note: a full disk must not keep us from saying what it holds. */
  prepare(): void {
    try {
      if (this.#stateFd < 0) this.#stateFd = this.#openState()
    } catch (error) {
      throw writeError(error, this.statePath)
    }
  }

  /** Writes all of `bytes`. A write to the page cache is quick but may stall when the disk is behind: hence the thread pool. */
  write(position: number, bytes: Uint8Array): Promise<void> {
    return new Promise((resolve, reject) => {
      const step = (done: number): void => {
        fs.write(this.fd, bytes, done, bytes.length - done, position + done, (error, written) => {
          if (error !== null) reject(writeError(error, this.path))
          else if (done + written >= bytes.length) resolve()
          else step(done + written)
        })
      }
      try {
        step(0)
      } catch (error) {
        reject(writeError(error, this.path))
      }
    })
  }

  /** Writes buffers one behind the other in as few calls as the system allows. */
  writeAll(position: number, buffers: readonly Uint8Array[]): Promise<void> {
    return new Promise((resolve, reject) => {
      const step = (from: number, rest: readonly Uint8Array[]): void => {
        fs.writev(this.fd, rest, from, (error, written) => {
          if (error !== null) return reject(writeError(error, this.path))
          let left = written
          let index = 0
          while (index < rest.length && left >= rest[index].length) left -= rest[index++].length
          if (index === rest.length) return resolve()
          step(from + written, [rest[index].subarray(left), ...rest.slice(index + 1)])
        })
      }
      try {
        step(position, buffers)
      } catch (error) {
        reject(writeError(error, this.path))
      }
    })
  }

  /** Resolves when all that was written is on the disk. */
  sync(): Promise<void> {
    return new Promise((resolve, reject) => {
      fs.fsync(this.fd, (error) => (error === null ? resolve() : reject(writeError(error, this.path))))
    })
  }

  /** Reads exactly `length` bytes, or answers undefined when the file ends before or the disk fails. */
  read(position: number, length: number): Promise<Buffer | undefined> {
    return readExactly(this.fd, position, length)
  }

  /**
   * Notes on disk that a block is there (or no more). One byte to a page that is in memory already: 1.2 µs, so there is
   * nothing to gain by batching. Not synced: after a power loss "there" is only a claim that the hash must confirm.
   */
  note(block: number, there: boolean): void {
    this.prepare()
    try {
      this.#oneByte[0] = there ? 1 : 0
      fs.writeSync(this.#stateFd, this.#oneByte, 0, 1, block)
    } catch (error) {
      throw writeError(error, this.statePath)
    }
  }

  /** The file has all its bytes from the start, so that noting a block never has to find room on a full disk. */
  #openState(): number {
    const fd = fs.openSync(this.statePath, fs.constants.O_RDWR | fs.constants.O_CREAT, 0o600)
    try {
      const size = fs.fstatSync(fd).size
      if (size < this.#count) fs.writeSync(fd, new Uint8Array(this.#count - size), 0, this.#count - size, size)
    } catch (error) {
      fs.closeSync(fd)
      throw error
    }
    return fd
  }

  /** Notes all blocks at once: what was made here is complete when it gets its name. */
  noteAll(count: number): void {
    this.#count = count
    try {
      fs.writeFileSync(this.statePath, new Uint8Array(count).fill(1), { mode: 0o600 })
    } catch (error) {
      throw writeError(error, this.statePath)
    }
  }

  /** The notes as they were left, or undefined when there are none that fit. */
  readNotes(): Buffer | undefined {
    try {
      const notes = fs.readFileSync(this.statePath)
      return notes.length === this.#count ? notes : undefined
    } catch {
      return undefined
    }
  }

  /** Bytes from the start to the end of the file, holes counted; -1 when there is no file. */
  size(): number {
    return fs.statSync(this.path, { throwIfNoEntry: false })?.size ?? -1
  }

  unlink(): void {
    fs.rmSync(this.path, { force: true })
    fs.rmSync(this.statePath, { force: true })
  }

  /** Only when no thread can use the fd any more. */
  close(): void {
    if (this.#fd >= 0) fs.closeSync(this.#fd)
    if (this.#stateFd >= 0) fs.closeSync(this.#stateFd)
    this.#fd = -1
    this.#stateFd = -1
  }
}

/** Reads exactly `length` bytes from an fd, or answers undefined when there are fewer or the disk fails. Who is done with them early may give them back. */
export function readExactly(fd: number, position: number, length: number): Promise<Buffer | undefined> {
  const into = borrowBuffer(length)
  return new Promise((resolve) => {
    const step = (done: number): void => {
      if (done === length) return resolve(into)
      fs.read(fd, into, done, length - done, position + done, (error, got) => {
        if (error !== null || got === 0) resolve(undefined)
        else step(done + got)
      })
    }
    step(0)
  })
}
