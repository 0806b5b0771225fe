// FILE: written beside its place under a name of its own, and put there by rename when it is whole and right; or not at all.
import { constants } from 'node:fs'
import { lstat, open, readdir, realpath, rename, stat, statfs, unlink, type FileHandle } from 'node:fs/promises'
import { hash, randomBytes } from 'node:crypto'
import { basename, dirname, join, resolve } from 'node:path'
import { SkimmerError } from '../oci/errors.ts'
import { formatSize } from '../command-line/units.ts'
import { alive, OWNER, ownerOf } from './file-owner.ts'
import type { Output } from './output.ts'

/** So many bytes are sent to the disk at a time, while more come: the sync at the end is then short. */
const SYNC_BYTES = 16 * 1024 * 1024
/** Names of files end at 255 bytes; ours are longer than FILE's. */
const MAX_NAME = 180

export interface OutputFileOptions {
  /** Permission bits; undefined: as the umask says. */
  readonly mode?: number
  readonly overwrite?: boolean
}

/** Where FILE will be in the end: the place a symbolic link points to, so that links stay links. CONFLICT: it is there and may not be replaced. */
export async function outputPlace(path: string, { overwrite = true }: OutputFileOptions): Promise<{ path: string; special: boolean }> {
  const found = await lstat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined
    throw fileError(error, path)
  })
  if (found === undefined) return { path: resolve(path), special: false }
  const target = found.isSymbolicLink() ? await realpath(path).catch(() => undefined) : resolve(path)
  if (target === undefined) throw new SkimmerError('INVALID_ARGUMENT', `${path} is a symbolic link to nothing: remove it, or name another file`)
  const there = await stat(target)
  if (there.isDirectory()) throw new SkimmerError('INVALID_ARGUMENT', `${path} is a directory: name a file in it`)
  const special = !there.isFile()
  if (!special && !overwrite) throw new SkimmerError('CONFLICT', `${path} is there already; without --no-overwrite it is replaced`)
  return { path: target, special }
}

/** Names beside FILE. `kind` says what for. */
export const besideName = (path: string, kind: string): string => join(dirname(path), `.${shortened(basename(path))}.${kind}`)

function shortened(name: string): string {
  if (Buffer.byteLength(name) <= MAX_NAME) return name
  const whole = Buffer.from(name).subarray(0, MAX_NAME - 10).toString('utf8').replace(/\ufffd+$/, '')
  return `${whole}~${hash('sha256', name, 'hex').slice(0, 8)}`
}

/** Words for people; the disk is full by any of its names. */
export function fileError(error: unknown, path: string): SkimmerError {
  if (error instanceof SkimmerError) return error
  const { code, message } = error as NodeJS.ErrnoException
  if (code === 'ENOSPC' || code === 'EDQUOT' || code === 'EFBIG') return new SkimmerError('NO_SPACE', `no space for ${path} (${code}): free some, or name another place by -O`, { cause: error })
  if (code === 'ENOENT' || code === 'ENOTDIR') return new SkimmerError('INVALID_ARGUMENT', `${path} cannot be written: ${dirname(path)} is no directory`, { cause: error })
  if (code === 'EACCES' || code === 'EPERM' || code === 'EROFS') return new SkimmerError('FORBIDDEN', `${path} may not be written (${code})`, { cause: error })
  return new SkimmerError('INTERNAL', `${path} cannot be written: ${message}`, { cause: error })
}

/** NO_SPACE before a byte was asked for in vain. Quotas show only when they are hit. */
export async function checkRoom(path: string, bytes: number): Promise<void> {
  const { bavail, bsize } = await statfs(dirname(path)).catch(() => ({ bavail: Number.POSITIVE_INFINITY, bsize: 1 }))
  if (bytes > bavail * bsize) throw new SkimmerError('NO_SPACE', `no space for ${path}: it has ${formatSize(bytes)}, and ${dirname(path)} has room for ${formatSize(bavail * bsize)}`)
}

/** Makes what was written last, whatever happens to the machine, and gives it its name. */
export async function intoPlace(handle: FileHandle, from: string, to: string, { mode, overwrite = true }: OutputFileOptions): Promise<void> {
  if (mode !== undefined) await handle.chmod(mode)
  await handle.sync()
  if (!overwrite && (await lstat(to).catch(() => undefined)) !== undefined) throw new SkimmerError('CONFLICT', `${to} appeared meanwhile; without --no-overwrite it is replaced`, { details: { exists: true } })
  await rename(from, to)
  const directory = await open(dirname(to), constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    await directory.sync()
  } catch {
    // Some network filesystems know no such thing.
  } finally {
    await directory.close()
  }
}

/** Made so that nobody may read it before its time; who may in the end is set in the end. */
export const creationMode = (mode: number | undefined): number => (mode === undefined ? 0o666 : (mode & 0o666) | 0o600)

const swept = new Set<string>()

/** What dfgets that were killed left in a directory; looked for once. */
async function sweep(directory: string): Promise<void> {
  if (swept.has(directory)) return
  swept.add(directory)
  for (const name of await readdir(directory).catch(() => [])) {
    const [, written] = /^\..+\.dfget-([0-9a-f-]+)-[0-9a-f]{8}$/.exec(name) ?? []
    const owner = written === undefined ? undefined : ownerOf(written)
    if (owner?.here === true && !alive(owner)) await unlink(join(directory, name)).catch(() => {})
  }
}

export class OutputFile implements Output {
  readonly name: string
  readonly restartable = true
  readonly #target: string
  readonly #temporary: string
  readonly #handle: FileHandle
  readonly #options: OutputFileOptions
  #written = 0
  #syncing: Promise<void> | undefined
  #synced = 0

  private constructor(name: string, target: string, temporary: string, handle: FileHandle, options: OutputFileOptions) {
    this.name = name
    this.#target = target
    this.#temporary = temporary
    this.#handle = handle
    this.#options = options
  }

  /** `target` is of outputPlace. */
  static async create(name: string, target: string, options: OutputFileOptions = {}): Promise<OutputFile> {
    await sweep(dirname(target))
    const temporary = besideName(target, `dfget-${OWNER}-${randomBytes(4).toString('hex')}`)
    const handle = await open(temporary, 'wx', creationMode(options.mode)).catch((error: unknown) => {
      throw fileError(error, name)
    })
    return new OutputFile(name, target, temporary, handle, options)
  }

  get position(): number {
    return this.#written
  }

  async expect(bytes: number): Promise<void> {
    await checkRoom(this.#target, bytes)
  }

  async write(chunks: readonly Buffer[]): Promise<void> {
    try {
      for (let left = chunks; left.length > 0;) {
        const { bytesWritten } = await this.#handle.writev(left, this.#written)
        this.#written += bytesWritten
        left = after(left, bytesWritten)
      }
    } catch (error) {
      throw fileError(error, this.name)
    }
    this.#sync()
  }

  async restart(): Promise<void> {
    this.#written = this.#synced = 0
    await this.#handle.truncate(0)
  }

  async finish(): Promise<void> {
    try {
      await this.#syncing
      await intoPlace(this.#handle, this.#temporary, this.#target, this.#options)
      await this.#handle.close()
    } catch (error) {
      await this.discard()
      throw fileError(error, this.name)
    }
  }

  async discard(): Promise<void> {
    await unlink(this.#temporary).catch(() => {})
    await this.#syncing
    await this.#handle.close().catch(() => {})
  }

  #sync(): void {
    if (this.#written - this.#synced < SYNC_BYTES || this.#syncing !== undefined) return
    this.#synced = this.#written
    this.#syncing = this.#handle.datasync().catch(() => {}).finally(() => (this.#syncing = undefined))
  }
}

/** What is left of chunks of which the first `bytes` were written. */
function after(chunks: readonly Buffer[], bytes: number): Buffer[] {
  let index = 0
  while (index < chunks.length && bytes >= chunks[index].length) bytes -= chunks[index++].length
  const left = chunks.slice(index)
  if (bytes > 0) left[0] = left[0].subarray(bytes)
  return left
}
