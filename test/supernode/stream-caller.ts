// A node as the supernode sees it when it opens a file or blob: what it is told, in order, and the bytes fetched by what it was told.
import { createHash } from 'node:crypto'
import { expect } from '@jest/globals'
import type { ControlClient } from '../../peer/control-client.ts'
import type { ControlProgress, ControlRequest } from '../../peer/control.ts'
import type { StreamAnswer } from '../../peer/control-streams.ts'
import type { Supernode } from '../../supernode/supernode.ts'

type Told = ControlProgress<'file.open'>
export type Head = Extract<Told, { head: unknown }>['head']
export type Part = Extract<Told, { part: unknown }>['part']

/** One call of `file.open` or `blob.open` that keeps everything it is told. */
export class StreamCall {
  head: Head | undefined
  readonly parts: Part[] = []
  readonly hashes = new Map<string, Buffer[]>()
  readonly fetched: number[] = []
  readonly answer: Promise<StreamAnswer>
  /** Kinds of frames, in order. */
  readonly order: string[] = []
  readonly #stop = new AbortController()

  constructor(control: ControlClient, operation: 'file.open', request: ControlRequest<'file.open'>)
  constructor(control: ControlClient, operation: 'blob.open', request: ControlRequest<'blob.open'>)
  constructor(control: ControlClient, operation: 'file.open' | 'blob.open', request: object) {
    this.answer = control.call(operation, request as ControlRequest<'file.open'>, { signal: this.#stop.signal, silenceMs: 10_000, onProgress: told => { this.#take(told) } })
    this.answer.catch(() => {})
  }

  /** Hashes told so far, of all parts. */
  get told(): number {
    return [...this.hashes.values()].reduce((sum, list) => sum + list.length, 0)
  }

  hangUp(): void {
    this.#stop.abort()
  }

  #take(told: Told): void {
    this.order.push(Object.keys(told)[0])
    if ('head' in told) this.head = told.head
    else if ('part' in told) {
      this.parts.push(told.part)
      this.hashes.set(told.part.resource, [])
    } else if ('fetched' in told) this.fetched.push(told.fetched)
    else {
      const known = this.hashes.get(told.hashes.resource)!
      // In order, without gaps, after their part.
      expect(known.length).toBe(told.hashes.from)
      const bytes = Buffer.from(told.hashes.hashes, 'base64')
      for (let at = 0; at < bytes.length; at += 32) known.push(bytes.subarray(at, at + 32))
    }
  }
}

/** The stream as the supernode holds it, each block checked against what the caller was told of it. */
export async function contentOf(supernode: Supernode, call: StreamCall): Promise<Buffer> {
  const pieces: Buffer[] = []
  let end = 0
  for (const part of call.parts) {
    expect(part.offset).toBe(end)
    const resource = supernode.parts.store.get(part.resource)!
    const bytes = await resource.readRaw(0, part.length)
    const hashes = call.hashes.get(part.resource)!
    expect(hashes).toHaveLength(Math.ceil(part.length / part.blockBytes))
    for (const [block, hash] of hashes.entries()) expect(sha256(bytes.subarray(block * part.blockBytes, (block + 1) * part.blockBytes))).toBe(hash.toString('hex'))
    pieces.push(bytes)
    end += part.length
  }
  return Buffer.concat(pieces)
}

export const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')
