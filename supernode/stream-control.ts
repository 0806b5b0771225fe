// The supernode's answers to file.open and blob.open: head, parts and hashes of a stream, told to each caller while they become known.
import type { Logger } from 'pino'
import { SkimmerError } from '../oci/errors.ts'
import { HASH_LENGTH } from '../image/block-table.ts'
import type { ControlRequest } from '../peer/control.ts'
import { MAX_HASHES_A_FRAME } from '../peer/control-streams.ts'
import type { StreamAnswer } from '../peer/control-streams.ts'
import type { ControlCall, ControlHandlers } from '../peer/serve-control.ts'
import type { BlobOrigin } from './blob-origin.ts'
import { DEFAULT_OPEN_CALLS, DEFAULT_SLOW_CALLER_MS } from './defaults.ts'
import type { FileOrigin, FileRequest } from './file-origin.ts'
import type { Granter } from './granter.ts'
import type { StreamOrigin } from './stream-origin.ts'
import type { StreamWork } from './stream-work.ts'

export interface StreamControlOptions {
  /** Calls of one peer at the same time. */
  maxCalls?: number
  /** A caller that takes nothing for so long is hung up on, milliseconds. */
  slowCallerMs?: number
}

type Call = Pick<ControlCall<'file.open'>, 'remote' | 'signal' | 'progress' | 'drained'>

/** How often a caller hears how far the source has been read, milliseconds. */
const FETCHED_MS = 500

export class StreamControl {
  readonly handlers: Pick<ControlHandlers, 'file.open' | 'blob.open'>
  readonly #components: { streams: StreamOrigin; files: FileOrigin; blobs: BlobOrigin; granter: Granter; admitted: (peer: string) => boolean; logger: Logger }
  readonly #options: Required<StreamControlOptions>
  /** Peer -> calls open now. */
  readonly #calls = new Map<string, number>()

  constructor(components: { streams: StreamOrigin; files: FileOrigin; blobs: BlobOrigin; granter: Granter; admitted: (peer: string) => boolean; logger: Logger }, options: StreamControlOptions = {}) {
    this.#components = components
    this.#options = { maxCalls: DEFAULT_OPEN_CALLS, slowCallerMs: DEFAULT_SLOW_CALLER_MS, ...options }
    this.handlers = {
      'file.open': (request, call) => this.#serve(call, () => this.#openFile(request, call)),
      'blob.open': (request, call) => this.#serve(call, () => components.blobs.open(request)),
    }
  }

  /** Who follows gets a grant for each part: he was let to have it when this opened it. */
  async #serve(call: Call, open: () => Promise<StreamWork>): Promise<StreamAnswer> {
    const { remote } = call
    if (!this.#components.admitted(remote)) throw new SkimmerError('FORBIDDEN', 'say hello to this supernode first')
    const calls = this.#calls.get(remote) ?? 0
    if (calls >= this.#options.maxCalls) throw new SkimmerError('LIMIT_EXCEEDED', `this node follows ${calls} files and blobs already; wait until some have come`)
    this.#calls.set(remote, calls + 1)
    try {
      const work = await unlessGone(open(), call.signal)
      const leave = work.follow()
      try {
        return await this.#follow(work, call)
      } finally {
        leave()
      }
    } finally {
      const left = this.#calls.get(remote)! - 1
      if (left === 0) this.#calls.delete(remote)
      else this.#calls.set(remote, left)
    }
  }

  async #openFile(request: ControlRequest<'file.open'>, call: Call): Promise<StreamWork> {
    const { files, streams, granter } = this.#components
    if (request.resource !== undefined) {
      const allowed = request.resource.startsWith('file:') && await granter.mayRead(call.remote, request.resource)
      const work = allowed ? await streams.byResource(request.resource) : undefined
      if (work !== undefined) return work
      if (request.url === undefined) throw new SkimmerError('NOT_FOUND', `${request.resource} is not here, or not for this node: open it by its URL`)
    }
    return await files.open(request as FileRequest, call.signal)
  }

  /** Remembers a position only: hashes are read from the table when the caller takes them, however slow he is. */
  async #follow(work: StreamWork, call: Call): Promise<StreamAnswer> {
    const { granter } = this.#components
    call.progress({ head: work.record.head })
    let index = 0
    let told = false
    let block = 0
    let fetched = 0
    let fetchedAt = -Infinity
    for (;;) {
      const seen = work.changes
      // First looked at, then told: what ended has told everything before.
      const { ended, failure } = work
      while (index < work.parts.length) {
        const { resource, offset } = work.parts[index]
        const { count, rawOffsets } = resource.table
        if (!told) {
          const last = work.record.head.length !== undefined || (ended && index === work.parts.length - 1)
          const grant = await granter.grant(call.remote, [resource.id])
          call.progress({ part: { resource: resource.id, offset, length: rawOffsets[count], blockBytes: work.record.blockBytes, grant, ...(last && { last }) } })
          told = true
        }
        for (const front = work.front(index); block < front;) {
          const to = Math.min(front, block + MAX_HASHES_A_FRAME)
          const { hashes } = resource.table
          call.progress({ hashes: { resource: resource.id, from: block, hashes: Buffer.from(hashes.buffer, hashes.byteOffset + block * HASH_LENGTH, (to - block) * HASH_LENGTH).toString('base64') } })
          block = to
          await this.#drained(call)
        }
        if (block < count) break
        index++
        block = 0
        told = false
      }
      if (work.fetched !== fetched && (ended || performance.now() - fetchedAt >= FETCHED_MS)) {
        fetched = work.fetched
        fetchedAt = performance.now()
        call.progress({ fetched })
      }
      if (failure !== undefined) throw failure
      if (ended) return this.#answer(work)
      await this.#drained(call)
      await work.changed(seen, call.signal)
    }
  }

  #answer({ parts, record }: StreamWork): StreamAnswer {
    const last = parts.at(-1)
    return { length: last === undefined ? 0 : last.offset + last.resource.table.rawOffsets[last.resource.table.count], parts: parts.length, ...(record.digest !== undefined && { digest: record.digest }) }
  }

  async #drained(call: Call): Promise<void> {
    const drained = call.drained()
    if (drained === undefined) return
    let timer: NodeJS.Timeout | undefined
    try {
      await Promise.race([drained, new Promise<never>((_, reject) => {
        timer = setTimeout(() => { reject(new SkimmerError('TIMEOUT', 'this caller takes nothing of what it asked for')) }, this.#options.slowCallerMs)
      })])
    } finally {
      clearTimeout(timer)
    }
  }
}

/** The work goes on for others, or to its end; who hung up is not waited for. */
async function unlessGone<Result>(work: Promise<Result>, signal: AbortSignal): Promise<Result> {
  const { promise: gone, reject } = Promise.withResolvers<never>()
  const leave = (): void => { reject(signal.reason as Error) }
  signal.addEventListener('abort', leave, { once: true })
  if (signal.aborted) leave()
  try {
    return await Promise.race([work, gone])
  } finally {
    signal.removeEventListener('abort', leave)
  }
}
