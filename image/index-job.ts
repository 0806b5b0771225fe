// One layer on its way through the indexer, seen from the main thread: takes its blob in, says what is to be done next, gives its blocks out.
import { hasCode, SkimmerError } from '../oci/errors.ts'
import { packedBlocks } from './block-packer.ts'
import type { PackedSpan } from './block-packer.ts'
import { BlockTableBuilder } from './block-table-builder.ts'
import type { BlockTable } from './block-table.ts'
import type { IndexMemory } from './index-memory.ts'
import { PIECE_LENGTH } from './index-memory.ts'
import { errorFromNote } from './index-messages.ts'
import type { Answer, Task } from './index-messages.ts'
import { DEFAULT_LEVEL, indexedLayer } from './indexer.ts'
import type { IndexedLayer, IndexOptions } from './indexer.ts'
import { layerBlob } from './layer-blob.ts'

interface Span {
  readonly span: number
  readonly rawLengths: number[]
  blocks?: PackedSpan
}

export class IndexJob {
  readonly id: number
  readonly options: IndexOptions
  readonly #memory: IndexMemory
  readonly #blob: AsyncGenerator<Uint8Array>
  /** There may be something new to do, or nothing any more. */
  readonly #changed: () => void
  readonly #result = Promise.withResolvers<IndexedLayer>()
  readonly #freePieces: number[]
  readonly #pieces: { position: number; length: number }[] = []
  #onPiece: (() => void) | undefined
  /** The piece that the unpacker has; its memory is free again when it is hungry. */
  #unpacking: number | undefined
  #blobEnded = false
  #endTold = false
  readonly #freeSpans: number[]
  /** Spans that the unpacker has. */
  #lent = 0
  readonly #toPack: Span[] = []
  /** Spans in stream order until the sink has taken them. */
  readonly #toSink: Span[] = []
  #sinking = false
  readonly #table = new BlockTableBuilder()
  #blocks: BlockTable | undefined
  #state: 'hungry' | 'full' | 'unpacking' | 'unpacked' | 'assembling' = 'full'
  /** Tasks in threads. */
  #tasks = 0
  #ended = false
  /** Why the layer is broken, while the rest of its blob may still say more. */
  #broken: SkimmerError | undefined

  constructor(id: number, memory: IndexMemory, input: AsyncIterable<Uint8Array>, options: IndexOptions, changed: () => void) {
    this.id = id
    this.options = options
    this.#memory = memory
    this.#freePieces = memory.pieces.map((_, position) => position)
    this.#freeSpans = memory.raws.map((_, position) => position)
    this.#changed = changed
    this.#blob = layerBlob(input, options)
  }

  /** Nothing of it is under way any more: its memory can be another's. */
  get left(): boolean {
    return this.#ended && this.#tasks === 0 && !this.#sinking
  }

  async run(): Promise<IndexedLayer> {
    const { signal } = this.options
    const onAbort = (): void => this.fail(new SkimmerError('ABORTED', 'indexing the layer was given up', { cause: signal?.reason }))
    signal?.addEventListener('abort', onAbort, { once: true })
    if (signal?.aborted === true) onAbort()
    void this.#feed()
    try {
      return await this.#result.promise
    } finally {
      signal?.removeEventListener('abort', onAbort)
    }
  }

  fail(error: unknown): void {
    if (!this.#ended) this.#end(() => this.#result.reject(error))
  }

  /** What the thread that this layer is bound to can do for it now. */
  boundTask(): Task | undefined {
    if (this.#ended || this.#broken !== undefined) return undefined
    if (this.#state === 'unpacked' && this.#blocks !== undefined) {
      this.#state = 'assembling'
      return this.#task({ type: 'assemble', blocks: this.#blocks })
    }
    const hasMemory = this.#freeSpans.length > 0 || (this.#state === 'hungry' && this.#lent > 0)
    const hasInput = this.#state === 'full' ? this.#unpacking !== undefined || this.#endTold : false
    const hasMore = this.#unpacking === undefined && !this.#endTold && (this.#pieces.length > 0 || this.#blobEnded)
    if ((this.#state !== 'hungry' && this.#state !== 'full') || !hasMemory || (!hasInput && !hasMore)) return undefined
    const piece = hasMore ? this.#pieces.shift() : undefined
    const end = hasMore && piece === undefined
    if (piece !== undefined) this.#unpacking = piece.position
    if (end) this.#endTold = true
    const spans = this.#freeSpans.splice(0)
    this.#lent += spans.length
    this.#state = 'unpacking'
    return this.#task({ type: 'unpack', piece, end, spans })
  }

  get spansToPack(): number {
    return this.#ended ? 0 : this.#toPack.length
  }

  packTask(): Task | undefined {
    const next = this.#ended ? undefined : this.#toPack.shift()
    return next === undefined ? undefined : this.#task({ type: 'pack', span: next.span, rawLengths: next.rawLengths, level: this.options.level ?? DEFAULT_LEVEL })
  }

  answer(answer: Answer): void {
    this.#tasks--
    if (this.#ended) return
    if (answer.type === 'failed') this.#failed(errorFromNote(answer.error))
    else if (answer.type === 'unpacked') this.#unpacked(answer)
    else if (answer.type === 'packed') {
      const span = this.#toSink.find(({ span: number }) => number === answer.span) as Span
      span.blocks = answer.blocks
      void this.#sink()
    } else {
      const { layerDigest, layerSize } = this.options
      const encoded = Buffer.from(answer.encoded.buffer)
      this.#end(() => this.#result.resolve(indexedLayer({ diffId: answer.diffId, layerDigest, layerSize, blocks: this.#blocks as BlockTable, fileCount: answer.fileCount }, encoded)))
    }
  }

  /** A thread that had tasks of this layer is no more. */
  lost(tasks: number, why: unknown): void {
    this.#tasks -= tasks
    this.fail(new SkimmerError('INTERNAL', 'an indexer thread died', { cause: why }))
  }

  #task(task: Task): Task {
    this.#tasks++
    return task
  }

  #end(settle: () => void): void {
    this.#ended = true
    settle()
    this.#onPiece?.()
    void this.#blob.return(undefined).catch(() => {})
    this.#changed()
  }

  #unpacked({ state, spans }: Answer & { type: 'unpacked' }): void {
    for (const span of spans) {
      this.#lent--
      this.#toSink.push({ ...span })
      if (span.rawLengths.length > 0) this.#toPack.push(this.#toSink.at(-1) as Span)
      else (this.#toSink.at(-1) as Span).blocks = { rawLengths: [], packedLengths: [], codecs: [], hashes: new Uint8Array(0) }
    }
    this.#state = state === 'ended' ? 'unpacked' : state
    if (state === 'hungry' && this.#unpacking !== undefined) {
      this.#freePieces.push(this.#unpacking)
      this.#unpacking = undefined
      this.#onPiece?.()
    }
    if (state === 'ended') void this.#sink()
  }

  /** A layer that is broken may be the network's work: that it is not the promised blob at all says more. */
  #failed(error: SkimmerError): void {
    if (!hasCode(error, 'INVALID_DATA') || this.#blobEnded) return this.fail(error)
    this.#broken ??= error
    this.#onPiece?.()
  }

  async #feed(): Promise<void> {
    try {
      let piece: { position: number; length: number } | undefined
      for await (const bytes of this.#blob) {
        for (let at = 0; at < bytes.length && this.#broken === undefined; ) {
          if (piece === undefined) {
            const position = this.#freePieces.pop() ?? (await this.#freePiece())
            if (position === undefined) break
            piece = { position, length: 0 }
          }
          const used = Math.min(bytes.length - at, PIECE_LENGTH - piece.length)
          this.#memory.pieces[piece.position].set(bytes.subarray(at, at + used), piece.length)
          piece.length += used
          at += used
          if (piece.length < PIECE_LENGTH) continue
          this.#pieces.push(piece)
          piece = undefined
          this.#changed()
        }
        if (this.#ended) return
      }
      if (this.#broken !== undefined) throw this.#broken
      if (piece !== undefined) this.#pieces.push(piece)
      this.#blobEnded = true
      this.#changed()
    } catch (error) {
      this.fail(error)
    }
  }

  /** Waits for memory for a piece; undefined when none is wanted any more. */
  async #freePiece(): Promise<number | undefined> {
    while (this.#freePieces.length === 0) {
      if (this.#ended || this.#broken !== undefined) return undefined
      await new Promise<void>((resolve) => (this.#onPiece = resolve))
    }
    return this.#freePieces.pop()
  }

  /** Gives the sink what is packed, in stream order. */
  async #sink(): Promise<void> {
    if (this.#sinking) return
    this.#sinking = true
    try {
      for (let next = this.#toSink.at(0); next?.blocks !== undefined && !this.#ended; next = this.#toSink.at(0)) {
        this.#toSink.shift()
        this.#table.add(next.blocks)
        if (next.rawLengths.length > 0) {
          const taken = this.options.sink.blocks(packedBlocks(next.blocks, this.#memory.packs[next.span]))
          if (taken !== undefined) await taken
        }
        this.#freeSpans.push(next.span)
        this.#changed()
      }
    } catch (error) {
      this.fail(error)
    } finally {
      this.#sinking = false
    }
    if (this.#state === 'unpacked' && this.#toSink.length === 0) this.#blocks ??= this.#table.finish()
    this.#changed()
  }
}
