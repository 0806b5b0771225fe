// One indexer thread: runs the jobs that the pool gives it, several at once, each with credit in both directions.
import { parentPort } from 'node:worker_threads'
import type { MessagePort } from 'node:worker_threads'
import { SkimmerError } from '../oci/errors.ts'
import type { PackedBlock } from './block-packer.ts'
import { INPUT_CREDIT, noteError, OUTPUT_BATCH, OUTPUT_CREDIT } from './index-messages.ts'
import type { BlockNote, FromWorker, JobOptions, ToWorker } from './index-messages.ts'
import { indexLayer } from './indexer.ts'

class IndexJob {
  readonly #job: number
  readonly #port: MessagePort
  readonly #pieces: (Uint8Array | 'end' | 'fail')[] = []
  #arrived: (() => void) | undefined
  #batch: PackedBlock[] = []
  #batchLength = 0
  /** Packed bytes that were sent and not yet taken. */
  #underWay = 0
  #taken: (() => void) | undefined

  constructor(job: number, port: MessagePort) {
    this.#job = job
    this.#port = port
  }

  async run(options: JobOptions): Promise<void> {
    try {
      const { encoded } = await indexLayer(this.#input(), { ...options, sink: { block: (block) => this.#block(block) } })
      this.#flush()
      const own = Uint8Array.from(encoded)
      this.#send({ type: 'done', job: this.#job, encoded: own }, own.buffer)
    } catch (error) {
      this.#send({ type: 'failed', job: this.#job, error: noteError(error) })
    }
  }

  arrive(piece: Uint8Array | 'end' | 'fail'): void {
    this.#pieces.push(piece)
    this.#arrived?.()
  }

  taken(bytes: number): void {
    this.#underWay -= bytes
    this.#taken?.()
  }

  async *#input(): AsyncGenerator<Uint8Array> {
    for (let i = 0; i < INPUT_CREDIT; i++) this.#send({ type: 'want', job: this.#job })
    for (;;) {
      while (this.#pieces.length === 0) await new Promise<void>((resolve) => (this.#arrived = resolve))
      const piece = this.#pieces.shift()
      if (piece === 'end') return
      if (piece === 'fail' || piece === undefined) throw new SkimmerError('ABORTED', 'the layer stopped coming')
      this.#send({ type: 'want', job: this.#job })
      yield piece
    }
  }

  #block(block: PackedBlock): void | Promise<void> {
    this.#batch.push(block)
    this.#batchLength += block.packed.length
    if (this.#batchLength < OUTPUT_BATCH) return
    this.#flush()
    if (this.#underWay >= OUTPUT_CREDIT) return this.#room()
  }

  async #room(): Promise<void> {
    while (this.#underWay >= OUTPUT_CREDIT) {
      if (this.#pieces.includes('fail')) throw new SkimmerError('ABORTED', 'the blocks are not wanted any more')
      await new Promise<void>((resolve) => (this.#taken = resolve))
    }
  }

  /** Several blocks go in one message: their bytes are copied together once, as frames share zstd's output buffers. */
  #flush(): void {
    if (this.#batch.length === 0) return
    const packed = new Uint8Array(this.#batchLength)
    const blocks: BlockNote[] = []
    let at = 0
    for (const block of this.#batch) {
      packed.set(block.packed, at)
      at += block.packed.length
      blocks.push({ packedLength: block.packed.length, rawLength: block.rawLength, codec: block.codec, hash: Uint8Array.from(block.hash) })
    }
    this.#batch = []
    this.#batchLength = 0
    this.#underWay += at
    this.#send({ type: 'blocks', job: this.#job, packed, blocks }, packed.buffer)
  }

  #send(message: FromWorker, ...transfer: ArrayBuffer[]): void {
    this.#port.postMessage(message, transfer)
  }
}

function serve(port: MessagePort): void {
  const jobs = new Map<number, IndexJob>()
  port.on('message', (message: ToWorker) => {
    if (message.type === 'start') {
      const job = new IndexJob(message.job, port)
      jobs.set(message.job, job)
      void job.run(message.options).finally(() => jobs.delete(message.job))
      return
    }
    const job = jobs.get(message.job) // a job that has failed may still be spoken to
    if (message.type === 'piece') job?.arrive(message.bytes)
    else if (message.type === 'taken') job?.taken(message.bytes)
    else job?.arrive(message.type)
    if (message.type === 'fail') job?.taken(0)
  })
}

if (parentPort !== null) serve(parentPort)
