// The asking half of the exchange: one peer as a source of blocks, what it has, how fast it is, and when it lies.
import type { Stream } from '@libp2p/interface'
import { z } from 'zod'
import type { BlockTable } from '../image/block-table.ts'
import { ERROR_CODES, SkimmerError } from '../oci/errors.ts'
import { noteTransfer } from './buffer-garbage.ts'
import {
  FRAME_BLOCK, FRAME_CANCEL, FRAME_DONE, FRAME_ERROR, FRAME_GRANT, FRAME_HAVE, FRAME_INTEREST, FRAME_OBJECT, FRAME_OBJECT_REQUEST, FRAME_PROMOTE,
  FRAME_REQUEST, HAVE_BITMAP, HAVE_WHOLE, MAX_SERVED_FRAME, PRIORITY_BACKGROUND, PRIORITY_DEMAND, frame, readFrame, readHave, requestBody, toRanges,
} from './exchange-wire.ts'
import { FrameCutter } from './frames.ts'
import { LinkSpeed } from './link-speed.ts'
import { readAll } from './short-cuts.ts'

const errorSchema = z.object({ code: z.enum(ERROR_CODES), message: z.string().max(65536), resource: z.string().max(300).optional() })

/** Who is told what a request brings. `block` must not throw. */
export interface RequestSink {
  block(block: number, packed: Buffer, from: RemotePeer): void
  /** No more blocks come: all are there, or `error` says why not. `left` are those that did not come. */
  end(left: ReadonlySet<number>, from: RemotePeer, error?: SkimmerError): void
}

interface OpenRequest {
  readonly resource: string
  readonly table: BlockTable
  readonly left: Set<number>
  readonly sink: RequestSink
  readonly sentAt: number
  priority: number
  bytesLeft: number
  first: boolean
}

interface OpenObject { readonly parts: Buffer[]; bytes: number; resolve(bytes: Buffer): void; reject(error: Error): void }

export interface Holdings {
  whole: boolean
  readonly bitmap: Uint8Array
  /** How often it has said something new. */
  changes: number
}

export const holds = (holdings: Holdings | undefined, block: number): boolean => holdings !== undefined && (holdings.whole || (holdings.bitmap[block >>> 3] & (1 << (block & 7))) !== 0)

export interface RemotePeerOptions {
  id: string
  supernode: boolean
  /** Opens the exchange stream; rejects when the peer cannot be reached. */
  open: () => Promise<Stream>
  /** The stream is open: it can be asked. */
  onOpen: () => void
  /** The token to show for a resource. */
  grantFor: (resource: string) => string | undefined
  /** It broke the protocol: it must not be asked again. */
  onViolation: (peer: RemotePeer, error: Error) => void
  /** It has come to have blocks of a resource: newly known ones, or undefined for "look again at all". */
  onHave: (peer: RemotePeer, resource: string, blocks: number[] | undefined) => void
  /** It refused an interest. */
  onRefused: (peer: RemotePeer, resource: string, error: SkimmerError) => void
  /** Its stream ended; requests have been told already. */
  onGone: (peer: RemotePeer) => void
}

/** The largest object accepted, bytes: the index of a layer with millions of files. */
const MAX_OBJECT = 512 * 1024 * 1024
/** Blocks that come although their request was cancelled: what was under way, and a little. */
const STALE_ALLOWANCE = 1024 * 1024

export class RemotePeer {
  readonly id: string
  readonly supernode: boolean
  readonly speed = new LinkSpeed()
  /** Packed bytes asked for and not yet here. */
  outstandingBytes = 0
  /** When bytes came from it last, whatever they were, performance.now(): a large block is on its way long before it is here. */
  receivedAt = -Infinity
  readonly #options: RemotePeerOptions
  readonly #requests = new Map<number, OpenRequest>()
  readonly #objects = new Map<number, OpenObject>()
  readonly #holdings = new Map<string, Holdings>()
  readonly #tables = new Map<string, BlockTable>()
  readonly #granted = new Map<string, string>()
  #stream: Stream | undefined
  #opening: Promise<void> | undefined
  #next = 1
  #stale = STALE_ALLOWANCE

  constructor(options: RemotePeerOptions) {
    this.id = options.id
    this.supernode = options.supernode
    this.#options = options
  }

  get connected(): boolean {
    return this.#stream !== undefined
  }

  /** Open the stream if it is not open. UNAVAILABLE when the peer cannot be reached. */
  connect(): Promise<void> {
    if (this.#stream !== undefined) return Promise.resolve()
    this.#opening ??= this.#open().finally(() => { this.#opening = undefined })
    return this.#opening
  }

  close(reason = 'closed here'): void {
    this.#stream?.abort(new SkimmerError('ABORTED', reason))
  }

  /** Blocks of a resource that it says it has, or undefined when it has said nothing yet. */
  holdings(resource: string): Holdings | undefined {
    return this.#holdings.get(resource)
  }

  has(resource: string, block: number): boolean {
    return holds(this.#holdings.get(resource), block)
  }

  /** It is asked to say what it has of a resource, now and later. Needs the stream. */
  interest(resource: string, table: BlockTable): void {
    if (this.#stream === undefined || this.#tables.has(resource)) return
    this.#tables.set(resource, table)
    this.#showGrant(resource)
    this.#send(frame(FRAME_INTEREST, 0, Buffer.concat([Buffer.of(1), Buffer.from(resource, 'latin1')])))
  }

  /** There is a new grant for a resource: an interest that was refused is taken again. */
  renewInterest(resource: string): void {
    if (this.#stream === undefined || !this.#tables.has(resource)) return
    this.#showGrant(resource)
    this.#send(frame(FRAME_INTEREST, 0, Buffer.concat([Buffer.of(1), Buffer.from(resource, 'latin1')])))
  }

  loseInterest(resource: string): void {
    if (!this.#tables.delete(resource)) return
    this.#holdings.delete(resource)
    if (this.#stream !== undefined) this.#send(frame(FRAME_INTEREST, 0, Buffer.concat([Buffer.of(0), Buffer.from(resource, 'latin1')])))
  }

  /** Ask for sorted, distinct blocks. Returns the request's number, for promote and cancel. The stream must be open. */
  request(resource: string, table: BlockTable, blocks: readonly number[], priority: 'demand' | 'background', sink: RequestSink): number {
    if (this.#stream === undefined) throw new SkimmerError('UNAVAILABLE', `peer ${this.id} is not connected`)
    const number = this.#number()
    let bytesLeft = 0
    for (const block of blocks) bytesLeft += table.packedOffsets[block + 1] - table.packedOffsets[block]
    const level = priority === 'demand' ? PRIORITY_DEMAND : PRIORITY_BACKGROUND
    this.#requests.set(number, { resource, table, left: new Set(blocks), sink, sentAt: performance.now(), priority: level, bytesLeft, first: true })
    this.outstandingBytes += bytesLeft
    this.speed.begin()
    this.#showGrant(resource)
    this.#send(frame(FRAME_REQUEST, number, requestBody(resource, toRanges(blocks), level)))
    return number
  }

  /** A reader waits for one of its blocks now. */
  promote(number: number): void {
    const request = this.#requests.get(number)
    if (request === undefined || request.priority === PRIORITY_DEMAND) return
    request.priority = PRIORITY_DEMAND
    this.#send(frame(FRAME_PROMOTE, number))
  }

  /** Nobody needs the rest of it. Its sink hears no more. */
  cancel(number: number): void {
    const request = this.#requests.get(number)
    if (request === undefined) return
    this.#forget(number, request)
    this.#stale += request.bytesLeft
    this.#send(frame(FRAME_CANCEL, number))
  }

  /** A small content-addressed byte string. The caller checks its digest. NOT_FOUND, FORBIDDEN or UNAVAILABLE otherwise. */
  async object(digest: string, signal?: AbortSignal): Promise<Buffer> {
    await this.connect()
    signal?.throwIfAborted()
    const number = this.#number()
    return await new Promise<Buffer>((resolve, reject) => {
      const settle = (): void => {
        this.#objects.delete(number)
        signal?.removeEventListener('abort', onAbort)
      }
      const onAbort = (): void => {
        settle()
        reject(new SkimmerError('ABORTED', `object ${digest}: given up`, { cause: signal?.reason }))
      }
      signal?.addEventListener('abort', onAbort, { once: true })
      this.#objects.set(number, { parts: [], bytes: 0, resolve: bytes => { settle(); resolve(bytes) }, reject: error => { settle(); reject(error) } })
      this.#showGrant(`layer:${digest}`)
      this.#send(frame(FRAME_OBJECT_REQUEST, number, Buffer.from(digest, 'latin1')))
    })
  }

  #number(): number {
    const number = this.#next
    this.#next = this.#next === 0xffffffff ? 1 : this.#next + 1
    return number
  }

  async #open(): Promise<void> {
    const stream = await this.#options.open()
    const cutter = new FrameCutter(MAX_SERVED_FRAME, body => this.#onFrame(body))
    this.#stream = stream
    this.#stale = STALE_ALLOWANCE
    readAll(stream, data => {
      this.receivedAt = performance.now()
      try {
        cutter.push(data)
      } catch (error) {
        stream.abort(error as Error)
        this.#options.onViolation(this, error as Error)
      }
    })
    const gone = (): void => {
      if (this.#stream !== stream) return
      this.#stream = undefined
      this.#lose()
    }
    stream.addEventListener('close', gone)
    stream.addEventListener('remoteCloseWrite', () => stream.abort(new SkimmerError('UNAVAILABLE', `peer ${this.id} ended the exchange`)))
    if (stream.status !== 'open') gone()
    if (this.#stream === undefined) throw new SkimmerError('UNAVAILABLE', `peer ${this.id} hung up`)
    this.#options.onOpen()
  }

  #lose(): void {
    this.#holdings.clear()
    this.#tables.clear()
    this.#granted.clear()
    const error = new SkimmerError('UNAVAILABLE', `the connection to peer ${this.id} is lost`)
    for (const [number, request] of this.#requests) {
      this.#forget(number, request)
      request.sink.end(request.left, this, error)
    }
    for (const object of this.#objects.values()) object.reject(error)
    this.#options.onGone(this)
  }

  #forget(number: number, request: OpenRequest): void {
    this.#requests.delete(number)
    this.outstandingBytes -= request.bytesLeft
    this.speed.end()
  }

  /** The grant goes ahead of the first frame that needs it, once a stream, and again when it was renewed. */
  #showGrant(resource: string): void {
    const token = this.#options.grantFor(resource)
    if (token === undefined || this.#granted.get(resource) === token) return
    const known = [...this.#granted.values()].includes(token)
    this.#granted.set(resource, token)
    if (!known) this.#send(frame(FRAME_GRANT, 0, Buffer.from(token, 'latin1')))
  }

  #onFrame(bytes: Buffer): void {
    const { type, request: number, body } = readFrame(bytes)
    switch (type) {
      case FRAME_BLOCK: return this.#onBlock(number, body)
      case FRAME_DONE: {
        const object = this.#objects.get(number)
        if (object !== undefined) return object.resolve(object.parts.length === 1 ? object.parts[0] : Buffer.concat(object.parts))
        const request = this.#requests.get(number)
        if (request === undefined) return
        if (request.left.size > 0) throw new SkimmerError('INVALID_DATA', `request ${number} is called done, but ${request.left.size} blocks did not come`)
        this.#forget(number, request)
        return request.sink.end(request.left, this)
      }
      case FRAME_ERROR: return this.#onError(number, body)
      case FRAME_OBJECT: {
        const object = this.#objects.get(number)
        if (object === undefined) return this.#onStale(body.length)
        object.bytes += body.length
        if (object.bytes > MAX_OBJECT) throw new SkimmerError('LIMIT_EXCEEDED', `an object of more than ${MAX_OBJECT} bytes`)
        object.parts.push(body)
        return
      }
      case FRAME_HAVE: return this.#onHave(body)
      default: throw new SkimmerError('INVALID_DATA', `unknown frame type ${type}`)
    }
  }

  #onBlock(number: number, body: Buffer): void {
    if (body.length < 4) throw new SkimmerError('INVALID_DATA', 'block: too short')
    const request = this.#requests.get(number)
    if (request === undefined) return this.#onStale(body.length)
    const block = body.readUInt32BE(0)
    const packed = body.subarray(4)
    if (!request.left.delete(block)) throw new SkimmerError('INVALID_DATA', `block ${block} was not asked for, or came twice`)
    const expected = request.table.packedOffsets[block + 1] - request.table.packedOffsets[block]
    if (packed.length !== expected) throw new SkimmerError('INVALID_DATA', `block ${block} has ${packed.length} bytes instead of ${expected}`)
    request.bytesLeft -= expected
    this.outstandingBytes -= expected
    this.speed.received(expected)
    noteTransfer(expected)
    if (request.first) {
      request.first = false
      if (request.priority === PRIORITY_DEMAND) this.speed.answered(performance.now() - request.sentAt)
    }
    request.sink.block(block, packed, this)
  }

  #onError(number: number, body: Buffer): void {
    let parsed: z.infer<typeof errorSchema>
    try {
      parsed = errorSchema.parse(JSON.parse(body.toString('utf8')))
    } catch (cause) {
      throw new SkimmerError('INVALID_DATA', 'error: malformed', { cause })
    }
    const error = new SkimmerError(parsed.code, `peer ${this.id}: ${parsed.message}`)
    if (number === 0 && parsed.resource !== undefined) return this.#options.onRefused(this, parsed.resource, error)
    this.#objects.get(number)?.reject(error)
    const request = this.#requests.get(number)
    if (request === undefined) return
    this.#forget(number, request)
    request.sink.end(request.left, this, error)
  }

  #onHave(body: Buffer): void {
    const { resource, kind, payload } = readHave(body)
    const table = this.#tables.get(resource)
    if (table === undefined) return // interest was just lost
    let holdings = this.#holdings.get(resource)
    if (holdings === undefined) {
      holdings = { whole: false, bitmap: new Uint8Array(Math.ceil(table.count / 8)), changes: 0 }
      this.#holdings.set(resource, holdings)
    }
    holdings.changes++
    if (kind === HAVE_WHOLE) holdings.whole = true
    else if (kind === HAVE_BITMAP) {
      if (payload.length !== holdings.bitmap.length) throw new SkimmerError('INVALID_DATA', `have: a bitmap of ${payload.length} bytes for ${table.count} blocks`)
      holdings.whole = false
      holdings.bitmap.set(payload)
    } else {
      const blocks: number[] = []
      for (let at = 0; at < payload.length; at += 4) {
        const block = payload.readUInt32BE(at)
        if (block >= table.count) throw new SkimmerError('INVALID_DATA', `have: block ${block} of ${table.count}`)
        holdings.bitmap[block >>> 3] |= 1 << (block & 7)
        blocks.push(block)
      }
      return this.#options.onHave(this, resource, blocks)
    }
    this.#options.onHave(this, resource, undefined)
  }

  #onStale(bytes: number): void {
    this.#stale -= bytes
    if (this.#stale < 0) throw new SkimmerError('INVALID_DATA', 'it sends what nobody asked for')
  }

  #send(bytes: Uint8Array): void {
    if (this.#stream?.writeStatus !== 'writable') return
    this.#stream.send(bytes)
  }
}
