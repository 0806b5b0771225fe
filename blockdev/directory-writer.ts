// Fills one READDIR or READDIRPLUS reply: `.` and `..` first, then entries from where the kernel left off.
import { direntSize, ENTRY_SIZE, writeDirent, writeEntry } from './fuse-protocol.ts'
import type { Attributes } from './fuse-protocol.ts'

const DOT = Buffer.from('.')
const DOT_DOT = Buffer.from('..')
const DOTS = 2

export class DirectoryWriter {
  /** Bytes written. */
  length = 0
  /** Index of the first entry (dots not counted) that this reply must hold. */
  readonly first: number
  readonly #out: Buffer
  readonly #start: number
  readonly #room: number
  readonly #position: number
  readonly #plus: boolean

  /** `position` counts entries, dots included, as the kernel got them from `writeDirent`'s `next`. */
  constructor(out: Buffer, start: number, room: number, position: number, plus: boolean) {
    this.#out = out
    this.#start = start
    this.#room = room
    this.#position = position
    this.#plus = plus
    this.first = Math.max(0, position - DOTS)
  }

  dots(self: Attributes, parent: Attributes): void {
    if (this.#position <= 0) this.#put(0, DOT, self, 0, 0)
    if (this.#position <= 1) this.#put(1, DOT_DOT, parent, 0, 0)
  }

  /** False when the reply is full. */
  entry(index: number, name: Uint8Array, attributes: Attributes, validSeconds: number, attributeSeconds: number): boolean {
    return this.#put(index + DOTS, name, attributes, validSeconds, attributeSeconds)
  }

  #put(position: number, name: Uint8Array, attributes: Attributes, validSeconds: number, attributeSeconds: number): boolean {
    const size = direntSize(name.length) + (this.#plus ? ENTRY_SIZE : 0)
    if (this.length + size > this.#room) return false
    let at = this.#start + this.length
    if (this.#plus) at += writeEntry(this.#out, attributes, at, validSeconds, attributeSeconds)
    writeDirent(this.#out, attributes.node, position + 1, attributes.mode, name, at)
    this.length += size
    return true
  }
}
