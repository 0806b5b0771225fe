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

/** A thread that has nothing to do costs memory (15 MB): it goes after so long, and comes again with the next image. */
const IDLE_MS = 30_000

export class ComposerThread {
  readonly #waiting = new Map<number, { resolve: (composed: { written: WrittenErofs; inodes: number }) => void; reject: (error: Error) => void }>()
  #worker: Worker | undefined
  #idle: NodeJS.Timeout | undefined
  #number = 0

  /** Writes the image's EROFS metadata to `path`. INVALID_DATA for an index that lies, UNSUPPORTED for an image that must be unpacked the ordinary way. */
  compose(indexes: readonly Uint8Array[], path: string): Promise<{ written: WrittenErofs; inodes: number }> {
    clearTimeout(this.#idle)
    const worker = this.#worker ??= this.#start()
    const number = this.#number++
    return new Promise((resolve, reject) => {
      this.#waiting.set(number, { resolve, reject })
      worker.postMessage({ number, indexes, path } satisfies ComposeRequest)
    })
  }

  async close(): Promise<void> {
    clearTimeout(this.#idle)
    await this.#worker?.terminate()
  }

  #start(): Worker {
    const worker = new Worker(new URL(import.meta.url.endsWith('.ts') ? './compose-worker.ts' : './compose-worker.js', import.meta.url), { name: 'composer' })
    worker.unref()
    worker.on('message', (reply: ComposeReply) => {
      const waiter = this.#waiting.get(reply.number)
      this.#waiting.delete(reply.number)
      if ('written' in reply) waiter?.resolve(reply)
      else waiter?.reject(new SkimmerError(reply.code, reply.message))
      if (this.#waiting.size === 0) this.#endWhenIdle(worker)
    })
    worker.on('error', (cause) => {
      if (this.#worker === worker) this.#worker = undefined
      for (const { reject } of this.#waiting.values()) reject(new SkimmerError('INTERNAL', `the composer thread died: ${cause instanceof Error ? cause.message : String(cause)}`, { cause }))
      this.#waiting.clear()
    })
    return worker
  }

  #endWhenIdle(worker: Worker): void {
    clearTimeout(this.#idle)
    this.#idle = setTimeout(() => {
      this.#worker = undefined
      void worker.terminate()
    }, IDLE_MS).unref()
  }
}
