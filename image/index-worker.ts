// One indexer thread: unpacks the layers that are bound to it and packs spans of any layer, one task after the other, never waiting.
import { parentPort } from 'node:worker_threads'
import type { MessagePort } from 'node:worker_threads'
import { SkimmerError } from '../oci/errors.ts'
import { BlockPacker } from './block-packer.ts'
import { IndexMemory } from './index-memory.ts'
import { noteError } from './index-messages.ts'
import type { Answer, FromWorker, Task, ToWorker } from './index-messages.ts'
import { LayerUnpacker } from './layer-unpacker.ts'
import type { UnpackOptions } from './layer-unpacker.ts'

/** A layer that is bound to this thread. */
class BoundLayer {
  readonly #memory: IndexMemory
  readonly unpacker: LayerUnpacker
  #spans: { span: number; rawLengths: number[] }[] = []

  constructor(memory: IndexMemory, options: UnpackOptions) {
    this.#memory = memory
    this.unpacker = new LayerUnpacker(options, (raw, rawLengths) => this.#spans.push({ span: memory.raws.indexOf(raw), rawLengths }))
  }

  unpack({ piece, end, spans }: Task & { type: 'unpack' }): Answer {
    for (const span of spans) this.unpacker.lend(this.#memory.raws[span])
    if (piece !== undefined) this.unpacker.push(this.#memory.pieces[piece.position].subarray(0, piece.length))
    if (end) this.unpacker.end()
    const state = this.unpacker.run()
    const done = this.#spans
    this.#spans = []
    return { type: 'unpacked', state, spans: done }
  }
}

class IndexThread {
  readonly #port: MessagePort
  readonly #memories = new Map<number, IndexMemory>()
  readonly #layers = new Map<number, BoundLayer>()
  readonly #packers = new Map<number, BlockPacker>()

  constructor(port: MessagePort) {
    this.#port = port
  }

  serve(): void {
    this.#port.on('message', (message: ToWorker) => this.#receive(message))
  }

  #receive(message: ToWorker): void {
    if (message.type === 'memory') this.#memories.set(message.memory, new IndexMemory(message.shared))
    else if (message.type === 'start') this.#layers.set(message.job, new BoundLayer(this.#memory(message.memory), message.options))
    else if (message.type === 'drop') this.#drop(message.job)
    else this.#perform(message)
  }

  #perform({ job, memory, task }: ToWorker & { type: 'task' }): void {
    try {
      const answer = this.#answer(job, memory, task)
      this.#send({ job, answer }, answer.type === 'assembled' ? [answer.encoded.buffer] : [])
    } catch (error) {
      this.#drop(job)
      this.#send({ job, answer: { type: 'failed', error: noteError(error) } })
    }
  }

  #answer(job: number, memory: number, task: Task): Answer {
    if (task.type === 'pack') {
      const { raws, packs } = this.#memory(memory)
      return { type: 'packed', span: task.span, blocks: this.#packer(task.level).pack(raws[task.span], task.rawLengths, packs[task.span]) }
    }
    const layer = this.#layers.get(job)
    if (layer === undefined) throw new SkimmerError('ABORTED', 'the layer was given up')
    if (task.type === 'unpack') return layer.unpack(task)
    const { diffId, fileCount, encoded } = layer.unpacker.index(task.blocks)
    return { type: 'assembled', diffId, fileCount, encoded: Uint8Array.from(encoded) }
  }

  #memory(number: number): IndexMemory {
    const memory = this.#memories.get(number)
    if (memory === undefined) throw new SkimmerError('INTERNAL', `an indexer thread does not know memory ${number}`)
    return memory
  }

  #packer(level: number): BlockPacker {
    let packer = this.#packers.get(level)
    if (packer === undefined) this.#packers.set(level, (packer = new BlockPacker({ level })))
    return packer
  }

  #drop(job: number): void {
    this.#layers.get(job)?.unpacker.close()
    this.#layers.delete(job)
  }

  #send(message: FromWorker, transfer: ArrayBuffer[] = []): void {
    this.#port.postMessage(message, transfer)
  }
}

if (parentPort !== null) new IndexThread(parentPort).serve()
