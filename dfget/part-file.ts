// What a download straight from its source has so far: `.FILE.<key>.part`, and beside it a JSON file that says which parts of which version.
import { open, readFile, rename, stat, unlink, utimes, writeFile, type FileHandle } from 'node:fs/promises'
import { randomBytes } from 'node:crypto'
import { SkimmerError } from '../oci/errors.ts'
import type { PartsState } from '../source/parallel-ranges.ts'
import { alive, OWNER, ownerOf } from './file-owner.ts'
import { besideName, creationMode, fileError, intoPlace, type OutputFileOptions } from './output-file.ts'

/** What is on the disk is written down this often. */
const CHECKPOINT_MS = 1_000
/** The lock of a process on another host counts so long after it last did that. */
const LOCK_MS = 60_000
const MAX_STATE_BYTES = 16 * 1024 * 1024
const FORMAT = 1

export class PartFile {
  readonly path: string
  readonly handle: FileHandle
  /** Of an earlier attempt; undefined when this one begins. */
  readonly resume: PartsState | undefined
  readonly #name: string
  readonly #target: string
  readonly #state: string
  readonly #lock: string | undefined
  #now: PartsState | undefined
  #timer: NodeJS.Timeout | undefined
  #saving: Promise<void> = Promise.resolve()
  #failure: unknown

  private constructor(names: { name: string; target: string; path: string; state: string; lock?: string }, handle: FileHandle, resume: PartsState | undefined) {
    this.#name = names.name
    this.#target = names.target
    this.path = names.path
    this.#state = names.state
    this.#lock = names.lock
    this.handle = handle
    this.resume = resume
  }

  /** `key` names the task in names of files. When another process has this very download, this one goes on for itself and cannot be resumed. */
  static async open(name: string, target: string, key: string, { mode }: OutputFileOptions = {}): Promise<PartFile> {
    const lock = besideName(target, `${key}.lock`)
    try {
      const mine = await takeLock(lock)
      const path = besideName(target, mine ? `${key}.part` : `${key}.${randomBytes(4).toString('hex')}.part`)
      const state = besideName(target, `${key}.json`)
      const resume = mine ? await readState(state, path) : undefined
      const handle = await open(path, resume === undefined ? 'w+' : 'r+', creationMode(mode))
      return new PartFile({ name, target, path, state, ...(mine && { lock }) }, handle, resume)
    } catch (error) {
      throw fileError(error, name)
    }
  }

  /** Whether there is something that a later download can go on with. */
  get resumable(): boolean {
    return this.#lock !== undefined && this.#now !== undefined && this.#now.done.some((bits) => bits !== 0)
  }

  /** From now on what `state` says is written down, again and again: never more than what is on the disk. */
  keep(state: PartsState): void {
    this.#now = state
    this.#timer ??= setInterval(() => void this.#save(), CHECKPOINT_MS)
  }

  write(chunk: Buffer, position: number): Promise<void> {
    return this.#write(chunk, position)
  }

  /** Not whole, and not given up: the next dfget goes on. */
  async leave(): Promise<void> {
    clearInterval(this.#timer)
    await this.#save()
    await this.handle.close().catch(() => {})
    await this.#unlock()
  }

  async discard(): Promise<void> {
    clearInterval(this.#timer)
    await this.#saving
    await this.handle.close().catch(() => {})
    await unlink(this.path).catch(() => {})
    await this.#forget()
  }

  async finish(options: OutputFileOptions): Promise<void> {
    clearInterval(this.#timer)
    await this.#saving
    try {
      await intoPlace(this.handle, this.path, this.#target, options)
      await this.handle.close()
    } catch (error) {
      await this.handle.close().catch(() => {})
      await this.#unlock()
      throw fileError(error, this.#name)
    }
    await this.#forget()
  }

  async #write(chunk: Buffer, position: number): Promise<void> {
    if (this.#failure !== undefined) throw fileError(this.#failure, this.#name)
    try {
      for (let written = 0; written < chunk.length;) written += (await this.handle.write(chunk, written, chunk.length - written, position + written)).bytesWritten
    } catch (error) {
      this.#failure = error
      throw fileError(error, this.#name)
    }
  }

  #save(): Promise<void> {
    const state = this.#now
    if (state === undefined || this.#lock === undefined) return this.#saving
    const lock = this.#lock
    return (this.#saving = this.#saving.then(async () => {
      try {
        // First what it speaks of, then the word: what is written meanwhile is not in it.
        const text = JSON.stringify({ format: FORMAT, version: state.version, length: state.length, partBytes: state.partBytes, done: Buffer.from(state.done).toString('base64') })
        await this.handle.datasync()
        await writeFile(`${this.#state}.new`, text, { mode: 0o600 })
        await rename(`${this.#state}.new`, this.#state)
        await utimes(lock, new Date(), new Date())
      } catch {
        // Then less is gone on with.
        await unlink(`${this.#state}.new`).catch(() => {})
      }
    }))
  }

  async #forget(): Promise<void> {
    if (this.#lock !== undefined) await unlink(this.#state).catch(() => {})
    await this.#unlock()
  }

  async #unlock(): Promise<void> {
    if (this.#lock !== undefined) await unlink(this.#lock).catch(() => {})
  }
}

async function takeLock(lock: string): Promise<boolean> {
  for (let attempt = 0; attempt < 2; attempt++) {
    try {
      await writeFile(lock, OWNER, { flag: 'wx', mode: 0o600 })
      return true
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    }
    const owner = ownerOf(await readFile(lock, 'utf8').catch(() => ''))
    const age = Date.now() - (await stat(lock).catch(() => ({ mtimeMs: 0 }))).mtimeMs
    // A lock of this host whose process is gone is left from one that was killed; one that is empty was just made.
    if (owner === undefined ? age < LOCK_MS : owner.here ? alive(owner) : age < LOCK_MS) return false
    const stale = `${lock}.${randomBytes(4).toString('hex')}`
    await rename(lock, stale).then(() => unlink(stale)).catch(() => {})
  }
  return false
}

/** Undefined: nothing to go on with. */
async function readState(file: string, part: string): Promise<PartsState | undefined> {
  try {
    const [{ size }, there] = await Promise.all([stat(file), stat(part)])
    if (size > MAX_STATE_BYTES || !there.isFile()) return undefined
    const { format, version, length, partBytes, done } = JSON.parse(await readFile(file, 'utf8')) as Record<string, unknown>
    if (format !== FORMAT || typeof version !== 'string' || typeof length !== 'number' || typeof partBytes !== 'number' || typeof done !== 'string') return undefined
    if (!Number.isSafeInteger(length) || length < 0 || !Number.isSafeInteger(partBytes) || partBytes < 1) return undefined
    const bits = new Uint8Array(Buffer.from(done, 'base64'))
    return bits.length === Math.ceil(Math.ceil(length / partBytes) / 8) ? { version, length, partBytes, done: bits } : undefined
  } catch (error) {
    if (error instanceof SkimmerError) throw error
    return undefined
  }
}
