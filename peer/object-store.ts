// Objects: small content-addressed byte strings (layer indexes), one file each, verified whenever they are read.
import * as crypto from 'node:crypto'
import * as fs from 'node:fs'
import * as path from 'node:path'
import type { Logger } from 'pino'
import { SkimmerError } from '../oci/errors.ts'
import { sha256 } from './block-codec.ts'
import { writeError } from './pack-file.ts'

export const MAX_OBJECT_BYTES = 256 * 1024 * 1024
const DIGEST = /^sha256:([0-9a-f]{64})$/
/** A last use is noted on disk (as the file's time) at most this often. */
const NOTE_USE_EVERY_MS = 60_000

interface Entry { readonly bytes: number; lastUse: number }

export class ObjectStore {
  readonly #directory: string
  readonly #logger: Logger
  readonly #now: () => number
  readonly #makeRoom: (bytes: number) => Promise<void>
  readonly #freed: (bytes: number) => void
  readonly #entries = new Map<string, Entry>()

  constructor(components: { logger: Logger; makeRoom: (bytes: number) => Promise<void>; freed: (bytes: number) => void; now: () => number }, options: { directory: string }) {
    this.#directory = options.directory
    this.#logger = components.logger
    this.#makeRoom = components.makeRoom
    this.#freed = components.freed
    this.#now = components.now
  }

  /** Takes stock of what is on disk and clears away what a crash left half-written. Answers the bytes found. */
  open(): number {
    fs.mkdirSync(this.#directory, { recursive: true, mode: 0o700 })
    let total = 0
    for (const name of fs.readdirSync(this.#directory)) {
      const file = path.join(this.#directory, name)
      if (!DIGEST.test(`sha256:${name}`)) {
        fs.rmSync(file, { force: true, recursive: true })
        continue
      }
      const { size, mtimeMs } = fs.statSync(file)
      this.#entries.set(`sha256:${name}`, { bytes: size, lastUse: mtimeMs })
      total += size
    }
    return total
  }

  has(digest: string): boolean {
    return this.#entries.has(digest)
  }

  /** For eviction: digest, bytes, last use in ms. */
  *list(): Generator<{ digest: string; bytes: number; lastUse: number }> {
    for (const [digest, { bytes, lastUse }] of this.#entries) yield { digest, bytes, lastUse }
  }

  /** Answers the digest. LIMIT_EXCEEDED over 256 MiB, NO_SPACE when the cap or the disk is full. */
  async put(bytes: Uint8Array): Promise<string> {
    if (bytes.length > MAX_OBJECT_BYTES) throw new SkimmerError('LIMIT_EXCEEDED', `an object of ${bytes.length} bytes is over the bound of ${MAX_OBJECT_BYTES}`)
    const digest = `sha256:${sha256(bytes).toString('hex')}`
    const known = this.#entries.get(digest)
    if (known !== undefined) {
      known.lastUse = this.#now()
      return digest
    }
    await this.#makeRoom(bytes.length)
    const file = this.#path(digest)
    const half = `${file}.${crypto.randomBytes(6).toString('hex')}`
    try {
      await fs.promises.writeFile(half, bytes, { mode: 0o600, flag: 'wx' })
      await fs.promises.rename(half, file)
    } catch (error) {
      this.#freed(bytes.length)
      fs.rmSync(half, { force: true })
      throw writeError(error, file)
    }
    // Two at once: the second file took the place of the first.
    if (this.#entries.has(digest)) this.#freed(bytes.length)
    this.#entries.set(digest, { bytes: bytes.length, lastUse: this.#now() })
    return digest
  }

  /** The bytes, or undefined when it is not here; one that is damaged on disk is dropped and not here. */
  async get(digest: string): Promise<Buffer | undefined> {
    const entry = this.#entries.get(digest)
    if (entry === undefined) return undefined
    const bytes = await fs.promises.readFile(this.#path(digest)).catch(() => undefined)
    if (bytes === undefined || `sha256:${sha256(bytes).toString('hex')}` !== digest) {
      if (this.#entries.get(digest) === entry) {
        this.#logger.warn({ digest }, 'dropped an object that is damaged on disk')
        this.delete(digest)
      }
      return undefined
    }
    const now = this.#now()
    if (now - entry.lastUse > NOTE_USE_EVERY_MS) fs.utimes(this.#path(digest), now / 1000, now / 1000, () => {})
    entry.lastUse = now
    return bytes
  }

  delete(digest: string): boolean {
    const entry = this.#entries.get(digest)
    if (entry === undefined) return false
    this.#entries.delete(digest)
    fs.rmSync(this.#path(digest), { force: true })
    this.#freed(entry.bytes)
    return true
  }

  #path(digest: string): string {
    const hex = DIGEST.exec(digest)?.[1]
    if (hex === undefined) throw new SkimmerError('INVALID_ARGUMENT', `${JSON.stringify(digest)} is not a sha256 digest`)
    return path.join(this.#directory, hex)
  }
}
