// One peer being served: its queue of requests, demand before background, blocks read in runs and sent as they are.
import type { Stream } from '@libp2p/interface'
import { SkimmerError, hasCode } from '../oci/errors.ts'
import { noteTransfer } from './buffer-garbage.ts'
import { readBlocks, takeBlocks } from './block-run.ts'
import type { Job, Part } from './block-run.ts'
import type { ExchangeServer } from './exchange-server.ts'
import {
  BLOCK_HEADER, FRAME_CANCEL, FRAME_DONE, FRAME_ERROR, FRAME_GRANT, FRAME_INTEREST, FRAME_OBJECT, FRAME_OBJECT_REQUEST, FRAME_PROMOTE, FRAME_REQUEST,
  FRAME_HEADER, MAX_ASKED_FRAME, OBJECT_PART, PRIORITY_DEMAND, frame, readFrame, readRequest, writeHeader,
} from './exchange-wire.ts'
import type { BlockRange } from './exchange-wire.ts'
import { FrameCutter, drained } from './frames.ts'
import { borrowBuffer, giveBack } from './lent-buffers.ts'
import type { Resource } from './resource.ts'
import { readAll } from './short-cuts.ts'
import { whenSpent } from './spent-buffers.ts'

/** Bytes read and sent in one piece: large enough for the system calls not to matter, small enough for a demand to get past. */
const RUN_BYTES = 512 * 1024
/** A remote with this many unanswered requests or interests is flooding. */
const MAX_JOBS = 2048
const MAX_INTERESTS = 8192
/** `have` frames are held back while this much waits to be sent. */
const HAVE_BACKLOG = 4 * 1024 * 1024
/** How long a stream without work keeps its upload slot, milliseconds. */
const SLOT_LINGER = 500

export class ServedStream {
  readonly #server: ExchangeServer
  readonly #stream: Stream
  readonly #remote: string
  /** Resources this remote was granted, and until when. */
  readonly #granted = new Map<string, number>()
  readonly #interests = new Set<string>()
  readonly #jobs = new Map<number, Job>()
  /** Jobs with something to send, by priority. */
  readonly #queues: [background: Job[], demand: Job[]] = [[], []]
  readonly #abort = new AbortController()
  readonly #pinName: string
  #objects = 0
  #pumping = false
  #linger: NodeJS.Timeout | undefined

  constructor(server: ExchangeServer, stream: Stream, remote: string) {
    this.#server = server
    this.#stream = stream
    this.#remote = remote
    this.#pinName = `serving:${remote}:${stream.id}`
    const cutter = new FrameCutter(MAX_ASKED_FRAME, body => this.#onFrame(body))
    readAll(stream, data => {
      try {
        cutter.push(data)
      } catch (error) {
        server.onViolation?.(remote, error as Error)
        this.close(error as Error)
      }
    })
  }

  close(error: Error): void {
    this.#stream.abort(error)
    this.closed()
  }

  /** The stream is gone: let go of all it held. */
  closed(): void {
    if (this.#abort.signal.aborted) return
    this.#abort.abort()
    clearTimeout(this.#linger)
    for (const job of this.#jobs.values()) this.#drop(job)
    for (const id of this.#interests) this.#server.haves.remove(id, this)
    this.#server.freeSlot(this)
  }

  sendHave(bytes: Uint8Array): boolean {
    if (this.#stream.writeStatus !== 'writable' || this.#stream.writeBufferLength > HAVE_BACKLOG) return false
    this.#send(bytes)
    return true
  }

  #onFrame(bytes: Buffer): void {
    const { type, request, body } = readFrame(bytes)
    switch (type) {
      case FRAME_REQUEST: return this.#onRequest(request, body)
      case FRAME_CANCEL: {
        const job = this.#jobs.get(request)
        if (job !== undefined) this.#drop(job)
        return
      }
      case FRAME_PROMOTE: {
        const job = this.#jobs.get(request)
        if (job === undefined || job.priority === PRIORITY_DEMAND) return
        const index = this.#queues[0].indexOf(job)
        if (index >= 0) this.#queues[0].splice(index, 1)
        job.priority = PRIORITY_DEMAND
        if (index >= 0) this.#queues[1].push(job)
        return
      }
      case FRAME_GRANT: return this.#onGrant(body)
      case FRAME_INTEREST: return this.#onInterest(body)
      case FRAME_OBJECT_REQUEST:
        if (this.#objects >= 64) throw new SkimmerError('LIMIT_EXCEEDED', 'too many objects asked for at once')
        this.#objects++
        void this.#onObject(request, body.toString('latin1')).finally(() => { this.#objects-- })
        return
      default: throw new SkimmerError('INVALID_DATA', `unknown frame type ${type}`)
    }
  }

  #onGrant(body: Buffer): void {
    try {
      const grant = this.#server.grants.check(body.toString('latin1'), this.#remote)
      for (const resource of grant.resources) this.#granted.set(resource, grant.expires)
    } catch (error) {
      // Not a violation: this node may not know the supernode yet, or clocks differ. The request that follows is refused.
      this.#server.logger.debug({ remote: this.#remote, err: error }, 'exchange: a grant was refused')
    }
  }

  #mayRead(resourceId: string): boolean {
    return this.#server.options.admit?.(this.#remote) === true || (this.#granted.get(resourceId) ?? 0) > Date.now()
  }

  #onInterest(body: Buffer): void {
    const id = body.toString('latin1', 1)
    if (body[0] === 0) {
      if (this.#interests.delete(id)) this.#server.haves.remove(id, this)
      return
    }
    if (!this.#mayRead(id)) return this.#refuse(0, new SkimmerError('FORBIDDEN', `${id}: no valid grant`), id)
    if (this.#interests.size >= MAX_INTERESTS) throw new SkimmerError('LIMIT_EXCEEDED', 'interest in too many resources')
    if (!this.#interests.has(id)) {
      this.#interests.add(id)
      this.#server.haves.add(id, this)
    }
    this.#server.onInterested?.(this.#remote, id)
  }

  #onRequest(request: number, body: Buffer): void {
    const asked = readRequest(body)
    if (this.#jobs.has(request)) throw new SkimmerError('INVALID_DATA', `request ${request} is already open`)
    if (this.#jobs.size >= MAX_JOBS) throw new SkimmerError('LIMIT_EXCEEDED', `more than ${MAX_JOBS} requests at once`)
    if (!this.#mayRead(asked.resource)) return this.#refuse(request, new SkimmerError('FORBIDDEN', `${asked.resource}: no valid grant`))
    if (asked.priority !== PRIORITY_DEMAND && !this.#server.takeSlot(this)) return this.#refuse(request, new SkimmerError('UNAVAILABLE', 'all upload slots are taken'))
    const resource = this.#server.store.get(asked.resource)
    if (resource !== undefined) return this.#begin(request, resource, asked.ranges, asked.priority)
    void this.#open(asked.resource).then(
      found => found === undefined ? this.#refuse(request, new SkimmerError('NOT_FOUND', `${asked.resource} is not here`)) : this.#begin(request, found, asked.ranges, asked.priority),
      error => this.#refuse(request, error),
    )
  }

  async #open(resourceId: string): Promise<Resource | undefined> {
    return await this.#server.options.open?.(resourceId)
  }

  #begin(request: number, resource: Resource, ranges: BlockRange[], priority: number): void {
    if (this.#abort.signal.aborted) return
    if (resource.quarantined) return this.#refuse(request, new SkimmerError('NOT_FOUND', `${resource.id} is quarantined`))
    if (ranges.at(-1)!.to > resource.table.count) return this.#refuse(request, new SkimmerError('INVALID_ARGUMENT', `${resource.id} has only ${resource.table.count} blocks`))
    const job: Job = { request, resource, ranges, priority, rangeIndex: 0, next: ranges[0].from, absent: new Set(), arrived: [] }
    this.#jobs.set(request, job)
    resource.pin(`${this.#pinName}:${request}`)
    clearTimeout(this.#linger)
    this.#enqueue(job)
  }

  #enqueue(job: Job): void {
    this.#queues[job.priority].push(job)
    if (!this.#pumping) void this.#pump()
  }

  #drop(job: Job): void {
    this.#jobs.delete(job.request)
    clearTimeout(job.late)
    if (job.onBlock !== undefined) job.resource.off('block', job.onBlock)
    const queue = this.#queues[job.priority]
    const index = queue.indexOf(job)
    if (index >= 0) queue.splice(index, 1)
    job.resource.unpin(`${this.#pinName}:${job.request}`)
    if (this.#jobs.size === 0 && !this.#abort.signal.aborted) this.#linger = setTimeout(() => { if (this.#jobs.size === 0) this.#server.freeSlot(this) }, SLOT_LINGER)
  }

  /** One loop a stream: the next run is read while the one before is on its way. */
  async #pump(): Promise<void> {
    this.#pumping = true
    try {
      let reading = this.#readRun()
      for (;;) {
        const run = await reading
        if (this.#abort.signal.aborted) return
        if (run === undefined) break
        const wait = this.#server.uploads.take(run.length)
        if (wait > 0) await new Promise(resolve => { setTimeout(resolve, wait) })
        this.#server.sentBytes.inc(run.length)
        noteTransfer(run.length)
        // Encrypted, which is copied, it may hold the next one.
        whenSpent(run, () => giveBack(run))
        const room = this.#send(run)
        reading = this.#readRun()
        if (!room) await drained(this.#stream, this.#abort.signal)
      }
    } catch (error) {
      if (!this.#abort.signal.aborted) {
        this.#server.logger.warn({ remote: this.#remote, err: error }, 'exchange: serving failed')
        this.close(error as Error)
      }
    } finally {
      this.#pumping = false
      if (!this.#abort.signal.aborted && (this.#queues[0].length > 0 || this.#queues[1].length > 0)) void this.#pump()
    }
  }

  /**
   * Frames of the next blocks to send, of as many requests as fit one run, in one buffer: a send costs the same for much as for
   * little. Undefined when there is nothing to send now.
   */
  async #readRun(): Promise<Buffer | undefined> {
    for (;;) {
      const parts: Part[] = []
      let bytes = 0
      while (bytes < RUN_BYTES) {
        const job = this.#queues[1][0] ?? this.#queues[0][0]
        if (job === undefined) break
        const part: Part = { job, blocks: takeBlocks(job, RUN_BYTES - bytes), done: false }
        const { packedOffsets } = job.resource.table
        for (const block of part.blocks) bytes += BLOCK_HEADER + packedOffsets[block + 1] - packedOffsets[block]
        parts.push(part)
        if (job.arrived.length > 0 || job.rangeIndex < job.ranges.length) continue
        // All that is here is on its way. What is not is waited for; then the job comes back to its queue.
        this.#queues[job.priority].splice(this.#queues[job.priority].indexOf(job), 1)
        if (job.absent.size > 0) this.#await(job)
        else part.done = true
      }
      if (parts.length === 0) return undefined
      const run = await this.#read(parts)
      if (run.length > 0) return run
    }
  }

  #await(job: Job): void {
    if (job.onBlock === undefined) {
      const onBlock = (block: number): void => {
        if (!job.absent.delete(block)) return
        job.arrived.push(block)
        if (job.arrived.length === 1) this.#enqueue(job)
      }
      job.onBlock = onBlock
      job.resource.on('block', onBlock)
      job.late = setTimeout(() => {
        this.#drop(job)
        this.#refuse(job.request, new SkimmerError('UNAVAILABLE', `${job.absent.size} blocks did not arrive here in time`))
      }, this.#server.waitMs)
      this.#server.options.onMiss?.(job.resource, [...job.absent])
    }
    // A block may have come between the look at its state and the listener.
    for (const block of job.absent) if (job.resource.state[block] !== 0) job.onBlock(block)
  }

  /** One buffer with the parts' frames. A part that cannot be read is refused, and left out. */
  async #read(parts: Part[]): Promise<Buffer> {
    for (const part of parts) {
      try {
        // Verifies what was stored before the last start.
        for (const block of part.blocks) if (!part.job.resource.isPackVerified(block)) await part.job.resource.readPacked(block)
      } catch (error) {
        this.#fail(part, error as Error)
      }
    }
    let length = 0
    for (const { job: { resource: { table } }, blocks, done } of parts) {
      for (const block of blocks) length += BLOCK_HEADER + table.packedOffsets[block + 1] - table.packedOffsets[block]
      if (done) length += FRAME_HEADER
    }
    const run = borrowBuffer(length)
    let end = 0
    for (const part of parts) {
      const start = end
      try {
        if (this.#jobs.has(part.job.request)) end = await readBlocks(part.job.resource, part.job.request, part.blocks, run, start)
      } catch (error) {
        this.#fail(part, error as Error)
        end = start
      }
      if (!part.done || !this.#jobs.has(part.job.request)) continue
      this.#drop(part.job)
      writeHeader(run, end, FRAME_DONE, part.job.request, 0)
      end += FRAME_HEADER
    }
    return run.subarray(0, end)
  }

  #fail(part: Part, error: Error): void {
    part.blocks = []
    part.done = false
    if (!this.#jobs.has(part.job.request)) return
    this.#drop(part.job)
    this.#refuse(part.job.request, error)
  }

  async #onObject(request: number, digest: string): Promise<void> {
    try {
      if (!this.#mayRead(`layer:${digest}`)) throw new SkimmerError('FORBIDDEN', `${digest}: no valid grant`)
      let bytes = await this.#server.store.getObject(digest)
      if (bytes === undefined) {
        await this.#open(`layer:${digest}`)
        bytes = await this.#server.store.getObject(digest)
      }
      if (bytes === undefined) throw new SkimmerError('NOT_FOUND', `object ${digest} is not here`)
      for (let at = 0; at < bytes.length; at += OBJECT_PART) if (!this.#send(frame(FRAME_OBJECT, request, bytes.subarray(at, at + OBJECT_PART)))) await drained(this.#stream, this.#abort.signal)
      this.#send(frame(FRAME_DONE, request))
    } catch (error) {
      this.#refuse(request, error as Error)
    }
  }

  #refuse(request: number, error: Error, resource?: string): void {
    if (this.#abort.signal.aborted) return
    const code = error instanceof SkimmerError ? error.code : 'INTERNAL'
    this.#server.refused.inc({ reason: code })
    if (!hasCode(error, 'FORBIDDEN', 'NOT_FOUND', 'UNAVAILABLE', 'INVALID_ARGUMENT')) this.#server.logger.warn({ remote: this.#remote, err: error }, 'exchange: a request failed')
    this.#send(frame(FRAME_ERROR, request, Buffer.from(JSON.stringify({ code, message: error instanceof SkimmerError ? error.message : 'this peer failed to read its store', resource }))))
  }

  #send(bytes: Uint8Array): boolean {
    if (this.#stream.writeStatus !== 'writable') return true
    return this.#stream.send(bytes)
  }
}
