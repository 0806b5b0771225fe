// file://: a file of this machine. Only where the URL is the user's own.
import { open, readdir } from 'node:fs/promises'
import type { FileHandle } from 'node:fs/promises'
import type { BigIntStats } from 'node:fs'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { join } from 'node:path'
import { SkimmerError } from '../oci/errors.ts'
import { abortedError } from '../oci/network-errors.ts'
import type { ListedEntry } from './index-page.ts'
import type { Source, SourceAnswer, SourceBody, SourceOpenOptions } from './source.ts'
import { formatVersion } from './version.ts'

const READ_BYTES = 1024 * 1024

export class FileSource implements Source {
  readonly url: URL
  readonly #path: string

  /** Throws INVALID_ARGUMENT for a URL of another host. */
  constructor(url: URL) {
    this.url = url
    this.#path = pathOf(url)
  }

  async close(): Promise<void> {}

  async open(options: SourceOpenOptions = {}): Promise<SourceAnswer> {
    const { offset = 0, version, ifNot, signal } = options
    signal?.throwIfAborted()
    const handle = await open(this.#path).catch((error: NodeJS.ErrnoException) => {
      throw fileError(error, this.#path)
    })
    try {
      const stats = await handle.stat({ bigint: true })
      if (!stats.isFile()) throw new SkimmerError('UNSUPPORTED', `${this.#path} is ${stats.isDirectory() ? 'a directory; list it instead' : 'no regular file'}`)
      const length = Number(stats.size)
      const head = { version: versionOf(stats), length, ranges: true, lastModified: stats.mtime.toUTCString(), validated: true }
      if (version !== undefined && version !== head.version) throw changed(this.#path)
      if (offset > length) throw new SkimmerError('INVALID_ARGUMENT', `${this.#path} has no byte ${offset}, it has ${length}`)
      if (ifNot === head.version) {
        await handle.close()
        return { head, unchanged: true }
      }
      const end = Math.min(length, offset + (options.length ?? length))
      return { head, offset, bodyLength: end - offset, body: new FileBody(handle, { path: this.#path, version: head.version, position: offset, end, signal }) }
    } catch (error) {
      await handle.close()
      throw error
    }
  }
}

interface FileRange {
  readonly path: string
  readonly version: string
  readonly position: number
  readonly end: number
  readonly signal?: AbortSignal
}

/** Ends with CONFLICT when the file changed while it was read. */
class FileBody implements SourceBody {
  readonly #handle: FileHandle
  readonly #range: FileRange
  #position: number
  #closed = false

  constructor(handle: FileHandle, range: FileRange) {
    this.#handle = handle
    this.#range = range
    this.#position = range.position
  }

  async next(): Promise<IteratorResult<Buffer, undefined>> {
    const { path, version, end, signal } = this.#range
    if (this.#closed) return { value: undefined, done: true }
    try {
      if (signal?.aborted) throw abortedError(`reading ${path}`, signal.reason)
      if (this.#position === end) {
        if (versionOf(await this.#handle.stat({ bigint: true })) !== version) throw changed(path)
        return await this.return()
      }
      const buffer = Buffer.allocUnsafeSlow(Math.min(READ_BYTES, end - this.#position))
      const { bytesRead } = await this.#handle.read(buffer, 0, buffer.length, this.#position)
      if (bytesRead === 0) throw changed(path)
      this.#position += bytesRead
      return { value: bytesRead === buffer.length ? buffer : buffer.subarray(0, bytesRead), done: false }
    } catch (error) {
      await this.return()
      throw error instanceof SkimmerError ? error : fileError(error as NodeJS.ErrnoException, path)
    }
  }

  async return(): Promise<IteratorResult<Buffer, undefined>> {
    if (!this.#closed) {
      this.#closed = true
      await this.#handle.close()
    }
    return { value: undefined, done: true }
  }

  [Symbol.asyncIterator](): this {
    return this
  }
}

/** One level of a directory; what is neither a file nor a directory is left out. */
export async function listDirectory(url: URL, maxEntries: number): Promise<ListedEntry[]> {
  const path = pathOf(url)
  const found = await readdir(path, { withFileTypes: true }).catch((error: NodeJS.ErrnoException) => {
    throw fileError(error, path)
  })
  const wanted = found.filter((entry) => entry.isFile() || entry.isDirectory())
  if (wanted.length > maxEntries) throw new SkimmerError('LIMIT_EXCEEDED', `${path} has more than the ${maxEntries} entries that are allowed`)
  return wanted.map((entry) => {
    const directory = entry.isDirectory()
    return { url: `${pathToFileURL(join(path, entry.name)).href}${directory ? '/' : ''}`, name: `${entry.name}${directory ? '/' : ''}`, directory }
  })
}

function pathOf(url: URL): string {
  try {
    return fileURLToPath(url)
  } catch (cause) {
    throw new SkimmerError('INVALID_ARGUMENT', `${url.href} is no file of this machine; write it like file:///path`, { cause })
  }
}

const versionOf = (stats: BigIntStats): string => formatVersion({ kind: 'strong', etag: `"${stats.dev}-${stats.ino}-${stats.size}-${stats.mtimeNs}"` })

const changed = (path: string): SkimmerError => new SkimmerError('CONFLICT', `${path} changed while it was read; ask again from the start`)

function fileError(error: NodeJS.ErrnoException, path: string): SkimmerError {
  const code = error.code === 'ENOENT' || error.code === 'ENOTDIR' ? 'NOT_FOUND' : error.code === 'EACCES' || error.code === 'EPERM' ? 'FORBIDDEN' : 'UNAVAILABLE'
  return new SkimmerError(code, `${path} cannot be read: ${error.code ?? error.message}`, { cause: error })
}
