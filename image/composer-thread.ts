// A thread that composes images: decoding indexes, merging trees and writing EROFS would stop the daemon's main thread for a tenth of a second or more.
import { Worker } from 'node:worker_threads'
import { SkimmerError, type ErrorCode } from '../oci/errors.ts'
import type { WrittenErofs } from './erofs-writer.ts'

export interface ComposeRequest {
  readonly number: number
  /** Encoded layer indexes, bottom first. */
  readonly indexes: readonly Uint8Array[]
  readonly path: string
}
export type ComposeReply = { readonly number: number } & ({ readonly written: WrittenErofs; readonly inodes: number } | { readonly code: ErrorCode; readonly message: string })

export class ComposerThread {
  readonly #worker: Worker
  readonly #waiting = new Map<number, { resolve: (composed: { written: WrittenErofs; inodes: number }) => void; reject: (error: Error) => void }>()
  #number = 0

  constructor() {
    this.#worker = new Worker(new URL(import.meta.url.endsWith('.ts') ? './compose-worker.ts' : './compose-worker.js', import.meta.url), { name: 'composer' })
    this.#worker.unref()
    this.#worker.on('message', (reply: ComposeReply) => {
      const waiter = this.#waiting.get(reply.number)
      this.#waiting.delete(reply.number)
      if ('written' in reply) waiter?.resolve(reply)
      else waiter?.reject(new SkimmerError(reply.code, reply.message))
    })
    this.#worker.on('error', (cause) => {
      for (const { reject } of this.#waiting.values()) reject(new SkimmerError('INTERNAL', `the composer thread died: ${cause instanceof Error ? cause.message : String(cause)}`, { cause }))
      this.#waiting.clear()
    })
  }

  /** Writes the image's EROFS metadata to `path`. INVALID_DATA for an index that lies, UNSUPPORTED for an image that must be unpacked the ordinary way. */
  compose(indexes: readonly Uint8Array[], path: string): Promise<{ written: WrittenErofs; inodes: number }> {
    const number = this.#number++
    return new Promise((resolve, reject) => {
      this.#waiting.set(number, { resolve, reject })
      this.#worker.postMessage({ number, indexes, path } satisfies ComposeRequest)
    })
  }

  async close(): Promise<void> {
    await this.#worker.terminate()
  }
}
