// Proofs: a whole resource's stream must hash to its diffID. One worker thread does all of them, one after another.
import { Worker } from 'node:worker_threads'
import { SkimmerError } from '../oci/errors.ts'
import type { BlockTable } from '../image/block-table.ts'

export interface ProofTask {
  readonly number: number
  readonly id: string
  readonly table: BlockTable
  readonly packFd: number
  /** `sha256:<hex>` the raw stream must have. */
  readonly digest: string
  /** Where to write the raw file, if one is wanted. */
  readonly rawPath: string | undefined
}
export type ProofAnswer = { readonly number: number } & (
  | { readonly result: 'proved'; readonly raw: boolean } // raw: the raw file is complete and on disk
  | { readonly result: 'damaged'; readonly blocks: readonly number[] } // these are not on disk as they were verified
  | { readonly result: 'false'; readonly reason: string } // every block is right by the table and yet the stream is not
  | { readonly result: 'failed'; readonly reason: string } // nothing is known
)

// In `dist` the worker is a .js file, under Node's type stripping a .ts one.
const workerFile = new URL(`./proof-worker.${import.meta.url.endsWith('.ts') ? 'ts' : 'js'}`, import.meta.url)

export class Prover {
  #worker: Worker | undefined
  #number = 0
  #closed = false
  readonly #waiting = new Map<number, { resolve: (answer: ProofAnswer) => void; reject: (error: Error) => void }>()

  prove(task: Omit<ProofTask, 'number'>): Promise<ProofAnswer> {
    if (this.#closed) return Promise.reject(new SkimmerError('ABORTED', `${task.id}: not proved, the block store is closing`))
    const number = this.#number++
    return new Promise((resolve, reject) => {
      this.#waiting.set(number, { resolve, reject })
      const worker = this.#running()
      worker.ref()
      worker.postMessage({ number, ...task } satisfies ProofTask)
    })
  }

  /** Ends the thread; proofs under way are given up with ABORTED. Resolves when it no longer uses any fd. */
  async close(): Promise<void> {
    this.#closed = true
    await this.#worker?.terminate()
  }

  #running(): Worker {
    if (this.#worker !== undefined) return this.#worker
    const worker = new Worker(workerFile, { name: 'skimmer-proof', execArgv: [] })
    this.#worker = worker
    worker.on('message', (answer: ProofAnswer) => {
      this.#waiting.get(answer.number)?.resolve(answer)
      this.#waiting.delete(answer.number)
      // An idle thread does not keep the process alive.
      if (this.#waiting.size === 0) worker.unref()
    })
    const fail = (error: Error): void => {
      if (this.#worker === worker) this.#worker = undefined
      const waiting = [...this.#waiting.values()]
      this.#waiting.clear()
      for (const { reject } of waiting) reject(error)
    }
    worker.on('error', (error) => fail(new SkimmerError('INTERNAL', `the proof thread failed: ${(error as Error).message}`, { cause: error })))
    worker.on('exit', () => fail(new SkimmerError('ABORTED', 'the proof thread ended')))
    return worker
  }
}
