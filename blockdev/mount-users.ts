// Who uses which mounted image, on disk as it changes: the next daemon must know when the last one leaves.
import fs from 'node:fs'
import { z } from 'zod'

const schema = z.object({ connection: z.string(), images: z.record(z.string(), z.array(z.string())) })

export class MountUsers {
  /** False when the file speaks of another FUSE connection (or there is none): its mounts are dead. */
  readonly sameConnection: boolean
  readonly #file: string
  readonly #connection: string
  #images = new Map<string, Set<string>>()

  constructor(file: string, connection: string) {
    this.#file = file
    this.#connection = connection
    const before = read(file)
    this.sameConnection = before?.connection === connection
    for (const [image, users] of Object.entries(before?.images ?? {})) this.#images.set(image, new Set(users))
  }

  of(image: string): string[] {
    return [...(this.#images.get(image) ?? [])]
  }

  images(): string[] {
    return [...this.#images.keys()]
  }

  add(image: string, user: string): void {
    const users = this.#images.get(image) ?? new Set()
    if (users.has(user)) return
    this.#images.set(image, users.add(user))
    this.#write()
  }

  /** Whether the user was there. */
  remove(image: string, user: string): boolean {
    const users = this.#images.get(image)
    if (users?.delete(user) !== true) return false
    if (users.size === 0) this.#images.delete(image)
    this.#write()
    return true
  }

  forget(image: string): void {
    if (this.#images.delete(image)) this.#write()
  }

  clear(): void {
    this.#images = new Map()
    this.#write()
  }

  #write(): void {
    const images = Object.fromEntries([...this.#images].map(([image, users]) => [image, [...users]]))
    fs.writeFileSync(`${this.#file}.new`, JSON.stringify({ connection: this.#connection, images }), { mode: 0o600 })
    fs.renameSync(`${this.#file}.new`, this.#file)
  }
}

/** A torn or foreign file is as good as none. */
function read(file: string): z.infer<typeof schema> | undefined {
  try {
    return schema.parse(JSON.parse(fs.readFileSync(file, 'utf8')))
  } catch {
    return undefined
  }
}
