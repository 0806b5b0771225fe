// For the tests of downloads: files at a source that a test opens and shuts, and the supernode's side of `file.open` and `blob.open` in its plainest form.
import { createHash } from 'node:crypto'
import { EventEmitter, once } from 'node:events'
import { fixedBlockTable } from '../../image/block-table.ts'
import { SkimmerError } from '../../oci/errors.ts'
import type { ControlProgress } from '../../peer/control.ts'
import type { DownloadRequest, SourceAnswer, SourceFrom } from '../../peer/download-request.ts'
import type { Resource } from '../../peer/resource.ts'
import type { ControlCall } from '../../peer/serve-control.ts'
import { StreamFill } from '../../peer/stream-fill.ts'
import type { TestSupernode } from './lab.ts'

export const sha256 = (bytes: Uint8Array | string): string => createHash('sha256').update(bytes).digest('hex')

export interface FileOptions { version?: string; blockBytes?: number; partBytes?: number; lengthKnown?: boolean; blob?: boolean }

/** What a URL answers. Emits 'change'. */
export class TestFile extends EventEmitter<{ change: [] }> {
  readonly url: string
  bytes: Buffer
  version: string
  readonly blockBytes: number
  readonly partBytes: number
  readonly lengthKnown: boolean
  readonly blob: boolean
  /** The source gives so many bytes and then waits. */
  available = Infinity
  /** The source breaks off with this, at `available`. */
  broken: SkimmerError | undefined
  #breaksOnce = false
  /** Bytes that the source gave to the supernode, and to nodes. */
  givenToSupernode = 0
  givenToNodes = 0
  /** Requests of nodes, by offset. */
  readonly opened: number[] = []
  asks = 0

  constructor(url: string, bytes: Buffer, options: FileOptions = {}) {
    super()
    this.setMaxListeners(0)
    this.url = url
    this.bytes = bytes
    this.version = options.version ?? '1'
    this.blockBytes = options.blockBytes ?? 65_536
    this.partBytes = options.partBytes ?? 8 * 1024 * 1024
    this.lengthKnown = options.lengthKnown ?? true
    this.blob = options.blob ?? false
  }

  id(part: number): string {
    if (this.blob) return `blob:sha256:${sha256(this.bytes)}`
    const hex = sha256(`${this.url}\n${this.version}`)
    return part === 0 ? `file:${hex}` : `file:${hex}.${part}`
  }

  get length(): number | undefined {
    return this.lengthKnown ? this.bytes.length : undefined
  }

  /** Lets the source give more, or all. */
  give(bytes = Infinity): void {
    this.available = bytes
    this.emit('change')
  }

  break(error = new SkimmerError('UNAVAILABLE', 'the source broke off'), options: { once?: boolean } = {}): void {
    this.broken = error
    this.#breaksOnce = options.once === true
    this.emit('change')
  }

  async *read(offset: number, signal: AbortSignal, given: (bytes: number) => void): AsyncGenerator<Buffer> {
    const { bytes } = this
    for (let at = offset; at < bytes.length;) {
      signal.throwIfAborted()
      const end = Math.min(bytes.length, at + 50_000, this.available)
      if (end <= at) {
        if (this.broken !== undefined) {
          const error = this.broken
          if (this.#breaksOnce) this.broken = undefined
          throw error
        }
        await once(this, 'change', { signal })
        continue
      }
      await new Promise(resolve => { setImmediate(resolve) })
      given(end - at)
      yield bytes.subarray(at, end)
      at = end
    }
  }

  /** What a node's way back to source is. */
  readonly source: NonNullable<DownloadRequest['source']> = async ({ offset, version, signal }: SourceFrom): Promise<SourceAnswer> => {
    this.opened.push(offset)
    if (version !== undefined && version !== this.version && !this.blob) throw new SkimmerError('CONFLICT', `${this.url} has changed`)
    if (this.broken !== undefined && this.available <= offset) throw this.broken
    return {
      version: this.version, length: this.length, resourceId: part => this.id(part), blockBytes: this.blockBytes,
      body: this.read(offset, signal, bytes => { this.givenToNodes += bytes }),
    }
  }
}

interface Job { version: string; parts: { resource: Resource; offset: number; length: number; last: boolean }[]; length: number | undefined; ended: boolean; failure: SkimmerError | undefined; news: EventEmitter; abort: AbortController }

/** One download a file and version, told to all who follow it. */
export class FileSupernode {
  readonly files = new Map<string, TestFile>()
  readonly #supernode: TestSupernode
  readonly #jobs = new Map<string, Job>()

  constructor(supernode: TestSupernode) {
    this.#supernode = supernode
    supernode.handlers['file.open'] = (request, call) => this.#serve(request.url!, call)
    supernode.handlers['blob.open'] = (request, call) => this.#serve(request.digest, call as unknown as ControlCall<'file.open'>)
  }

  publish(file: TestFile): TestFile {
    this.files.set(file.blob ? `sha256:${sha256(file.bytes)}` : file.url, file)
    return file
  }

  stop(): void {
    for (const job of this.#jobs.values()) job.abort.abort()
  }

  async #serve(name: string, call: ControlCall<'file.open'>): Promise<{ length: number; parts: number }> {
    const file = this.files.get(name)
    if (file === undefined) throw new SkimmerError('NOT_FOUND', `${name}: the source answers 404`)
    file.asks++
    const key = `${name} ${file.version}`
    let job = this.#jobs.get(key)
    if (job === undefined || job.failure !== undefined) {
      job = { version: file.version, parts: [], length: file.length, ended: false, failure: undefined, news: new EventEmitter().setMaxListeners(0), abort: new AbortController() }
      this.#jobs.set(key, job)
      void this.#download(file, job)
    }
    return await this.#follow(file, job, call)
  }

  async #follow(file: TestFile, job: Job, call: ControlCall<'file.open'>): Promise<{ length: number; parts: number }> {
    const send = (progress: ControlProgress<'file.open'>): void => call.progress(progress)
    send({ head: { version: job.version, length: job.length, contentType: 'text/plain' } })
    const told: number[] = []
    for (;;) {
      for (const [index, { resource, offset, length, last }] of job.parts.entries()) {
        if (told[index] === undefined) {
          told[index] = 0
          send({ part: { resource: resource.id, offset, length, blockBytes: file.blockBytes, last, grant: this.#supernode.grant(call.remote, [resource.id]) } })
        }
        const until = resource.knownUntil(told[index])
        if (until === told[index]) continue
        send({ hashes: { resource: resource.id, from: told[index], hashes: Buffer.from(resource.table.hashes.slice(told[index] * 32, until * 32)).toString('base64') } })
        told[index] = until
      }
      if (job.failure !== undefined) throw job.failure
      if (job.ended) return { length: job.parts.at(-1) === undefined ? 0 : job.parts.at(-1)!.offset + job.parts.at(-1)!.length, parts: job.parts.length }
      await once(job.news, 'news', { signal: call.signal })
    }
  }

  async #add(file: TestFile, job: Job, length: number, last: boolean): Promise<Resource> {
    const { store } = this.#supernode.node
    const resource = await store.add(file.id(job.parts.length), fixedBlockTable(length, file.blockBytes), { open: true })
    resource.pin('test')
    resource.on('learnt', () => job.news.emit('news'))
    job.parts.push({ resource, offset: job.parts.reduce((sum, part) => sum + part.length, 0), length, last })
    job.news.emit('news')
    return resource
  }

  async #download(file: TestFile, job: Job): Promise<void> {
    try {
      const body = file.read(0, job.abort.signal, bytes => { file.givenToSupernode += bytes })
      if (file.length !== undefined) {
        if (file.length > 0) {
          const fill = new StreamFill(await this.#add(file, job, file.length, true))
          for await (const chunk of body) await fill.write(chunk)
          await fill.finish()
        }
      } else {
        let rest = Buffer.alloc(0)
        const cut = async (bytes: Buffer): Promise<void> => {
          const fill = new StreamFill(await this.#add(file, job, bytes.length, false))
          await fill.write(bytes)
          await fill.finish()
        }
        for await (const chunk of body) {
          rest = Buffer.concat([rest, chunk])
          for (; rest.length >= file.partBytes; rest = rest.subarray(file.partBytes)) await cut(rest.subarray(0, file.partBytes))
        }
        if (rest.length > 0) await cut(rest)
      }
      job.ended = true
    } catch (error) {
      job.failure = error instanceof SkimmerError ? error : new SkimmerError('UNAVAILABLE', `the source is gone: ${(error as Error).message}`)
    }
    job.news.emit('news')
  }
}
