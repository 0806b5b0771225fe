// The directories of ordinary snapshots: made, measured, thrown away. Slow work on them runs in child processes, never on the event loop.
import { execFile } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { chmod, lchown, mkdir, readdir, rename, rm, stat, symlink } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import type { Logger } from 'pino'
import { SkimmerError } from '../oci/errors.ts'

const run = promisify(execFile)
const TRASH = 'trash-'
/** A command line holds 2 MiB; a path here has about 100 bytes. */
const TRASH_AT_ONCE = 1000
/** du on an upper directory of millions of files takes minutes; longer means a hung disk. */
const MEASURE_TIMEOUT_MS = 10 * 60_000

export interface Owner {
  readonly uid: number
  readonly gid: number
}

export class SnapshotDirectories {
  readonly #directory: string
  readonly #logger: Logger
  /** Emptying of the trash, one after another: deleting is never urgent. */
  #emptying: Promise<void> = Promise.resolve()
  readonly #closed = new AbortController()

  /** Paths are kept short (`<root>/s/<id>/fs`): all lower directories of an overlay must fit into one page. */
  constructor(components: { logger: Logger }, options: { root: string }) {
    this.#directory = join(options.root, 's')
    this.#logger = components.logger
  }

  fs(id: number): string {
    return join(this.#directory, String(id), 'fs')
  }

  work(id: number): string {
    return join(this.#directory, String(id), 'work')
  }

  async open(): Promise<void> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 })
  }

  /** `fs` (mode 0755, given to `owner`) and, if it will be written to, `work`. */
  async create(id: number, options: { writable: boolean; owner?: Owner }): Promise<void> {
    const fs = this.fs(id)
    await mkdir(join(this.#directory, String(id)), { mode: 0o700 })
    await mkdir(fs)
    await chmod(fs, 0o755)
    if (options.owner !== undefined) await lchown(fs, options.owner.uid, options.owner.gid)
    if (options.writable) await mkdir(this.work(id), { mode: 0o711 })
  }

  /** A symbolic link beside the snapshot's own directories to a lower directory elsewhere; resolves with its path. */
  async link(id: number, target: string): Promise<string> {
    const link = join(this.#directory, String(id), 'l')
    await mkdir(dirname(link), { recursive: true, mode: 0o700 })
    await rm(link, { force: true })
    await symlink(target, link)
    return link
  }

  async owner(id: number): Promise<Owner> {
    const { uid, gid } = await stat(this.fs(id))
    return { uid, gid }
  }

  /** Out of sight at once, deleted later. A snapshot without a directory is fine. */
  async discard(id: number): Promise<void> {
    try {
      await rename(join(this.#directory, String(id)), join(this.#directory, `${TRASH}${id}-${randomUUID()}`))
    } catch (error) {
      if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return
      throw error
    }
    void this.emptyTrash()
  }

  /** Discards every directory that belongs to no snapshot: left by a crash between directory and metadata. */
  async sweep(known: ReadonlySet<number>): Promise<void> {
    for (const name of await readdir(this.#directory)) {
      if (!/^[1-9]\d*$/.test(name) || known.has(Number(name))) continue
      this.#logger.info({ directory: join(this.#directory, name) }, 'a directory belongs to no snapshot: deleting it')
      await this.discard(Number(name))
    }
  }

  /** Deletes what was discarded; resolves when the trash was empty once. Failures are logged and tried again the next time. */
  emptyTrash(): Promise<void> {
    const before = this.#emptying
    const empty = async (): Promise<void> => {
      await before
      try {
        const discarded = (await readdir(this.#directory)).filter(name => name.startsWith(TRASH))
        if (discarded.length === 0) return
        // One file system: if something is still mounted inside, its files are not ours to delete.
        await run('rm', ['-rf', '--one-file-system', '--', ...discarded.slice(0, TRASH_AT_ONCE).map(name => join(this.#directory, name))], { signal: this.#closed.signal })
      } catch (error) {
        if (this.#closed.signal.aborted) return
        this.#logger.warn({ err: error }, 'some discarded snapshot directories could not be deleted; the next cleanup tries again')
      }
    }
    this.#emptying = empty()
    return this.#emptying
  }

  /** Ends deleting, however much is left; the next start goes on. */
  async close(): Promise<void> {
    this.#closed.abort()
    await this.#emptying
  }

  /** What the snapshot's own files take on disk: allocated bytes and inodes, each hardlinked file once, as containerd counts. */
  async usage(id: number, signal?: AbortSignal): Promise<{ size: number; inodes: number }> {
    const [size, inodes] = await Promise.all([this.#du('--block-size=1', id, signal), this.#du('--inodes', id, signal)])
    return { size, inodes }
  }

  async #du(what: string, id: number, signal?: AbortSignal): Promise<number> {
    const command = ['--summarize', '--one-file-system', what, '--', this.fs(id)]
    // A running container changes its files while we count: du then complains, exits with 1 and still prints the sum.
    const { stdout } = await run('du', command, { signal, timeout: MEASURE_TIMEOUT_MS }).catch((error: unknown) => {
      if (error instanceof Error && 'stdout' in error && typeof error.stdout === 'string' && error.stdout !== '') return { stdout: error.stdout }
      throw new SkimmerError('INTERNAL', `the disk usage of ${this.fs(id)} cannot be measured: ${error instanceof Error ? error.message : String(error)}`, { cause: error })
    })
    return Number.parseInt(stdout, 10)
  }
}
