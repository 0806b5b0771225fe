// How the bytes of a stream become resources: a stream of known length fills one that lies open from the start, another is cut into parts as it comes.
import { SkimmerError } from '../oci/errors.ts'
import { fixedBlockTable } from '../image/block-table.ts'
import type { BlockStore } from '../peer/block-store.ts'
import type { Resource } from '../peer/resource.ts'
import { StreamFill } from '../peer/stream-fill.ts'
import { partsOf } from './stream-record.ts'
import type { StreamRecord } from './stream-record.ts'
import type { StreamWork } from './stream-work.ts'

/** The stream's bytes from `offset` on, for `length` or to the end. Ends with an error, never short. */
export type StreamReader = (from: { offset: number; length?: number }) => AsyncIterable<Uint8Array>

/** Hashes the whole stream as it passes. */
export interface StreamCheck {
  update(chunk: Uint8Array): void
  /** Throws DIGEST_MISMATCH. */
  verify(): void
}

export interface StreamFillParts {
  readonly store: BlockStore
  readonly read: StreamReader
  /** What the whole must be. `all`: the reader gives all of it in one go, and may have a check of its own. */
  readonly check?: (all: boolean) => StreamCheck | undefined
  /** Called with the bytes of each chunk that came from the source. */
  readonly received: (bytes: number) => void
  /** More of a stream of unknown length is here: its record is to be kept. */
  readonly grown: (record: StreamRecord) => Promise<void>
  readonly partBytes: number
  readonly maxBytes: number
}

/** Brings what is missing. Resolves when all of it is here, and checked where there is a check. */
export async function fillStream(work: StreamWork, parts: StreamFillParts): Promise<void> {
  if (work.record.head.length === undefined) await fillParts(work, parts)
  else await fillWhole(work, parts, work.record.head.length)
}

/** The resource of a part, made when it is not here. */
export async function partResource(store: BlockStore, record: StreamRecord, place: { resource: string; length: number }): Promise<Resource> {
  return await store.add(place.resource, fixedBlockTable(place.length, record.blockBytes), {
    open: true, origin: { stream: record.name }, ...(record.kind === 'blob' && { diffId: record.resource.slice('blob:'.length) }),
  })
}

async function fillWhole(work: StreamWork, { store, read, check: checkOf, received }: StreamFillParts, length: number): Promise<void> {
  const { record } = work
  const resource = work.hold(await partResource(store, record, { resource: record.resource, length }))
  work.add({ resource, offset: 0 })
  const { from, to } = missing(resource)
  const check = checkOf?.(from === 0 && to === resource.table.count)
  const start = from * record.blockBytes
  if (check !== undefined) await checkStored(resource, check, 0, from)
  if (from < to) {
    const fill = new StreamFill(resource, { from })
    const end = Math.min(length, to * record.blockBytes)
    for await (const chunk of read({ offset: start, ...(end < length && { length: end - start }) })) {
      received(chunk.length)
      check?.update(chunk)
      const room = fill.write(chunk)
      if (room !== undefined) await room
    }
    await fill.finish()
    if (fill.position < end) throw new SkimmerError('INVALID_DATA', `${record.name}: the source ended before byte ${end}`)
    if (check !== undefined) await checkStored(resource, check, to, resource.table.count)
  }
  check?.verify()
}

/** From the first block that is not here to behind the last one. Blocks between them are compared as they come. */
function missing(resource: Resource): { from: number; to: number } {
  const here = (block: number): boolean => resource.knows(block) && resource.state[block] !== 0
  let from = 0
  while (from < resource.table.count && here(from)) from++
  let to = resource.table.count
  while (to > from && here(to - 1)) to--
  return { from, to }
}

/** What was stored before belongs to the whole that is checked. */
async function checkStored(resource: Resource, check: StreamCheck, from: number, to: number): Promise<void> {
  for (let block = from; block < to; block++) check.update(await resource.readPacked(block))
}

async function fillParts(work: StreamWork, { store, read, check: checkOf, received, grown, partBytes, maxBytes }: StreamFillParts): Promise<void> {
  const check = checkOf?.(work.record.length === 0)
  for (const place of partsOf(work.record, partBytes)) {
    const resource = work.hold(await partResource(store, work.record, place))
    // Something of it was dropped: what comes behind is read again too, one part after the other.
    if (!resource.whole) {
      work.record = { ...work.record, length: place.offset }
      break
    }
    if (check !== undefined) await checkStored(resource, check, 0, resource.table.count)
    work.add({ resource, offset: place.offset })
  }
  const cutter = new PartCutter(work, { store, grown, partBytes })
  for await (const chunk of read({ offset: work.record.length })) {
    received(chunk.length)
    check?.update(chunk)
    cutter.push(chunk)
    if (work.record.length + cutter.bytes > maxBytes) throw new SkimmerError('LIMIT_EXCEEDED', `${work.record.name}: it has more than the ${maxBytes} bytes that this supernode takes (files.max-size)`)
    // A full part is told when it is known not to be the last: the last one waits for the check.
    while (cutter.bytes > partBytes) await cutter.cut(partBytes)
  }
  check?.verify()
  if (cutter.bytes > 0) await cutter.cut(cutter.bytes)
}

/** Collects what has come behind the last part, and makes parts of it. */
class PartCutter {
  bytes = 0
  readonly #work: StreamWork
  readonly #parts: Pick<StreamFillParts, 'store' | 'grown' | 'partBytes'>
  readonly #chunks: Uint8Array[] = []

  constructor(work: StreamWork, parts: Pick<StreamFillParts, 'store' | 'grown' | 'partBytes'>) {
    this.#work = work
    this.#parts = parts
  }

  push(chunk: Uint8Array): void {
    this.#chunks.push(chunk)
    this.bytes += chunk.length
  }

  /** The next `length` bytes are a part from now on. */
  async cut(length: number): Promise<void> {
    const { store, grown, partBytes } = this.#parts
    const { record } = this.#work
    const offset = record.length
    const id = offset === 0 ? record.resource : `${record.resource}.${offset / partBytes}`
    const resource = this.#work.hold(await partResource(store, record, { resource: id, length }))
    const fill = new StreamFill(resource)
    while (fill.position < length) {
      const room = fill.write(this.#take(length - fill.position))
      if (room !== undefined) await room
    }
    await fill.finish()
    this.#work.record = { ...record, length: offset + length }
    await grown(this.#work.record)
    this.#work.add({ resource, offset })
  }

  /** At most so many bytes. */
  #take(most: number): Uint8Array {
    const chunk = this.#chunks[0]
    const taken = chunk.length <= most ? chunk : chunk.subarray(0, most)
    if (taken === chunk) this.#chunks.shift()
    else this.#chunks[0] = chunk.subarray(most)
    this.bytes -= taken.length
    return taken
  }
}
