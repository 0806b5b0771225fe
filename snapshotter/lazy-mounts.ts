// The lazily mounted trees that snapshots stand on: each active or view snapshot holds one use of its tree until it is removed.
import { LRUCache } from 'lru-cache'
import type { Logger } from 'pino'
import { runChild } from '../blockdev/mount.ts'
import { SkimmerError } from '../oci/errors.ts'
import type { LazyImages } from './lazy-images.ts'
import type { Owner } from './snapshot-directories.ts'

export const DEFAULT_MOUNT_TIMEOUT_MS = 60_000
const RESTORE_AT_ONCE = 4

export interface LazyUser {
  readonly id: number
  readonly name: string
  /** Bottom first, never empty. */
  readonly diffIds: readonly string[]
}

export class LazyMounts {
  readonly #lazy: LazyImages
  readonly #logger: Logger
  readonly #timeoutMs: number
  readonly #held = new Map<number, Promise<string>>()
  /** Releases that failed; the next cleanup tries them again. */
  readonly #unreleased = new Map<number, LazyUser>()
  /** By diffIDs: a tree never changes. */
  readonly #rootOwners = new LRUCache<string, Owner>({ max: 1000 })

  constructor(components: { lazy: LazyImages; logger: Logger }, options: { mountTimeoutMs?: number } = {}) {
    this.#lazy = components.lazy
    this.#logger = components.logger
    this.#timeoutMs = options.mountTimeoutMs ?? DEFAULT_MOUNT_TIMEOUT_MS
  }

  /** The mount point of the user's tree, mounted if need be. @throws TIMEOUT, or why it cannot be mounted; the next call tries again. */
  acquire(user: LazyUser): Promise<string> {
    const held = this.#held.get(user.id)
    if (held !== undefined) return held
    const mounting = bounded(this.#lazy.mount([...user.diffIds], userName(user)), this.#timeoutMs, `mounting the image of snapshot ${user.name}`)
    this.#held.set(user.id, mounting)
    mounting.catch(() => {
      if (this.#held.get(user.id) === mounting) this.#held.delete(user.id)
    })
    return mounting
  }

  /** Never fails: a tree that is still busy is released by a later cleanup. */
  async release(user: LazyUser): Promise<void> {
    this.#held.delete(user.id)
    try {
      await bounded(this.#lazy.unmount([...user.diffIds], userName(user)), this.#timeoutMs, `unmounting the image of snapshot ${user.name}`)
      this.#unreleased.delete(user.id)
    } catch (error) {
      this.#unreleased.set(user.id, user)
      this.#logger.warn({ snapshot: user.name, err: error }, 'the image of a removed snapshot could not be unmounted; the next cleanup tries again')
    }
  }

  async retryReleases(): Promise<void> {
    for (const user of this.#unreleased.values()) await this.release(user)
  }

  /** After a start: mounts again what snapshots stand on. Running containers keep their own mounts; this is for what comes after. */
  async restore(users: readonly LazyUser[], stopped: AbortSignal): Promise<void> {
    const waiting = [...users]
    const worker = async (): Promise<void> => {
      for (let user = waiting.shift(); user !== undefined && !stopped.aborted; user = waiting.shift()) {
        const { name } = user
        await this.acquire(user).catch((error: unknown) => this.#logger.warn({ snapshot: name, err: error }, 'the image of a snapshot could not be mounted again; the next use tries again'))
      }
    }
    await Promise.all(Array.from({ length: RESTORE_AT_ONCE }, worker))
  }

  /** Owner of the tree's root directory, asked by a child: whatever touches a lazy mount may wait for this very process. */
  async rootOwner(user: LazyUser, mountPoint: string): Promise<Owner> {
    const image = user.diffIds.join()
    const known = this.#rootOwners.get(image)
    if (known !== undefined) return known
    const { status, stdout, stderr } = await runChild('stat', ['--format=%u %g', '--', mountPoint], this.#timeoutMs)
    if (status !== 0) throw new SkimmerError(status === 'timeout' ? 'TIMEOUT' : 'INTERNAL', `the owner of ${mountPoint} cannot be read: ${stderr}`)
    const [uid, gid] = stdout.split(' ').map(Number)
    this.#rootOwners.set(image, { uid, gid })
    return { uid, gid }
  }
}

/** Ids are never used twice, so a release that comes late cannot hit a newer snapshot of the same name. */
export const userName = (user: Pick<LazyUser, 'id' | 'name'>): string => `${user.name}#${user.id}`

async function bounded<T>(work: Promise<T>, timeoutMs: number, what: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const expiry = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new SkimmerError('TIMEOUT', `${what} took longer than ${timeoutMs / 1000} s`)), timeoutMs)
  })
  try {
    return await Promise.race([work, expiry])
  } finally {
    clearTimeout(timer)
  }
}
