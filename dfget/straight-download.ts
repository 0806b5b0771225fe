// A file straight from its source: in parallel parts that an interrupted download goes on with, or in order where the output is no file.
import { hash } from 'node:crypto'
import { formatSize } from '../command-line/units.ts'
import { hasCode, SkimmerError } from '../oci/errors.ts'
import { doneBytes, parallelRanges, type PartsState } from '../source/parallel-ranges.ts'
import { resumable } from '../source/resumable.ts'
import type { Source, SourceHead } from '../source/source.ts'
import type { Sources } from '../source/sources.ts'
import { taskKey } from '../source/task-key.ts'
import { streamedDigest } from '../source/content-digest.ts'
import { Content } from './content.ts'
import { openOutput, STANDARD_OUTPUT } from './open-output.ts'
import { checkRoom, outputPlace } from './output-file.ts'
import { sourceRequestOf } from './own-sources.ts'
import { PartFile } from './part-file.ts'
import type { Arrived, FileJob } from './way.ts'

/** Slower than this, several connections only fill buffers ahead of the limit. */
const ONE_CONNECTION_BELOW = 8 * 1024 * 1024
/** A source that changes while it is read is begun again so often. */
const RESTARTS = 3
/** What an interrupted download has of a part is lost; several are asked for at once. */
const PART_BYTES = 1024 * 1024
const READ_BYTES = 1024 * 1024

/** Waits until so many bytes may be taken; undefined: no limit. */
export type Pay = ((bytes: number, signal: AbortSignal) => Promise<void>) | undefined

export async function downloadStraight(job: FileJob, { sources, pay }: { sources: Sources; pay: Pay }): Promise<Arrived> {
  const { values } = job.words
  const source = sources.open(job.url, sourceRequestOf(job.words))
  try {
    const place = job.output === STANDARD_OUTPUT ? undefined : await outputPlace(job.output, { overwrite: values.overwrite })
    return place === undefined || place.special ? await inOrder(source, job, pay) : await inParts(source, place.path, job, pay)
  } finally {
    await source.close()
  }
}

function arrived(job: FileJob, bytes: number, came: number, extra: { digest?: string; head?: SourceHead; resumedBytes?: number }): Arrived {
  const received = { local: bytes - came, peer: 0, supernode: 0, source: came }
  Object.assign(job.snapshot, { bytes, received })
  const { digest, head, resumedBytes } = extra
  return { route: 'straight', bytes, received, ...(digest !== undefined && { digest }), ...(head?.contentType !== undefined && { contentType: head.contentType }), ...(resumedBytes !== undefined && { resumedBytes }) }
}

async function inOrder(source: Source, job: FileJob, pay: Pay): Promise<Arrived> {
  const { values } = job.words
  const output = await openOutput(job.output, {})
  const content = new Content(output, { digest: values.digest, what: job.shown })
  const { snapshot, signal } = job
  let head: SourceHead | undefined
  try {
    const onHead = (now: SourceHead): void => {
      head = now
      snapshot.length = lengthOf(now, values.range)
    }
    const onRetry = (error: SkimmerError): void => job.note(`${error.message}; asked again`)
    for await (const chunk of resumable(source, { ...(values.range !== undefined && { offset: values.range.start, length: values.range.end + 1 - values.range.start }), signal, onHead, onRetry })) {
      if (pay !== undefined) await pay(chunk.length, signal)
      await content.write([chunk])
      snapshot.bytes = snapshot.received.source = content.received
    }
    const digest = await content.finish()
    return arrived(job, content.received, content.received, { digest, head })
  } catch (error) {
    await output.discard()
    throw error
  }
}

const lengthOf = ({ length }: SourceHead, range: { start: number; end: number } | undefined): number | undefined =>
  length === undefined || range === undefined ? length : Math.max(0, Math.min(length, range.end + 1) - range.start)

async function inParts(source: Source, target: string, job: FileJob, pay: Pay): Promise<Arrived> {
  for (let restarts = 0; ; restarts++) {
    const file = await PartFile.open(job.output, target, keyOf(job), { mode: job.words.values.mode })
    try {
      const done = await new PartsDownload(source, target, file, job, pay).run()
      const digest = job.words.values.digest === undefined ? undefined : await digestOf(file, job)
      await file.finish({ mode: job.words.values.mode, overwrite: job.words.values.overwrite })
      return arrived(job, done.bytes, done.bytes - done.resumedBytes, { digest, head: done.head, ...(done.resumedBytes > 0 && { resumedBytes: done.resumedBytes }) })
    } catch (error) {
      const changed = hasCode(error, 'CONFLICT') && error.details.exists !== true && restarts < RESTARTS
      if (file.resumable && !changed && !hasCode(error, 'DIGEST_MISMATCH', 'CONFLICT', 'NOT_FOUND')) {
        await file.leave()
        if (hasCode(error, 'ABORTED')) job.note(`what is here is kept in ${file.path}: the same words go on with it`)
      } else await file.discard()
      if (!changed || job.signal.aborted) throw error
      job.note(`${error.message}; begun again`)
    }
  }
}

/** Tells downloads into one FILE apart: the task, whoever asks for it. */
function keyOf({ words: { values, headers, ca }, url }: FileJob): string {
  const task = taskKey({
    url, headers, tag: values.tag, application: values.application, identifier: values.identifier, filteredQueryParams: values['filtered-query-params'],
    range: values.range, digest: values.digest, ca, insecure: values.insecure,
  })
  return hash('sha256', task, 'hex').slice(0, 16)
}

class PartsDownload {
  readonly #source: Source
  readonly #target: string
  readonly #file: PartFile
  readonly #job: FileJob
  readonly #pay: Pay
  readonly #connections: number
  #room: Promise<void> | undefined
  #resumedBytes = 0
  #came = 0

  constructor(source: Source, target: string, file: PartFile, job: FileJob, pay: Pay) {
    this.#source = source
    this.#target = target
    this.#file = file
    this.#job = job
    this.#pay = pay
    const { limit, 'total-limit': total, connections } = job.words.values
    const slowest = Math.min(limit || Infinity, total || Infinity)
    this.#connections = slowest < ONE_CONNECTION_BELOW ? 1 : connections
  }

  async run(): Promise<{ head: SourceHead; bytes: number; resumedBytes: number }> {
    const { words: { values }, signal } = this.#job
    const { resume } = this.#file
    const { head, length } = await parallelRanges(this.#source, (position, chunk) => this.#write(position, chunk), {
      connections: this.#connections,
      partBytes: PART_BYTES,
      ...(values.range !== undefined && { range: { from: values.range.start, to: values.range.end + 1 } }),
      ...(resume !== undefined && { resume }),
      signal,
      onHead: (head, state) => this.#begin(head, state),
      onRetry: (error) => this.#job.note(`${error.message}; asked again`),
    })
    return { head, bytes: length, resumedBytes: this.#resumedBytes }
  }

  #begin(head: SourceHead, state: PartsState | undefined): void {
    const { snapshot, words: { values } } = this.#job
    snapshot.length = lengthOf(head, values.range)
    if (state !== undefined) {
      this.#resumedBytes = doneBytes(state)
      this.#file.keep(state)
    }
    this.#came = 0
    snapshot.bytes = this.#resumedBytes
    if (this.#resumedBytes > 0) this.#job.note(`${formatSize(this.#resumedBytes)} are here from an earlier attempt`)
    if (snapshot.length !== undefined) {
      this.#room = checkRoom(this.#target, snapshot.length - this.#resumedBytes)
      this.#room.catch(() => {})
    }
  }

  async #write(position: number, chunk: Buffer): Promise<void> {
    const { snapshot, signal } = this.#job
    if (this.#room !== undefined) await this.#room
    if (this.#pay !== undefined) await this.#pay(chunk.length, signal)
    await this.#file.write(chunk, position)
    this.#came += chunk.length
    snapshot.received.source = this.#came
    snapshot.bytes = this.#resumedBytes + this.#came
  }
}

/** Parts come in any order: the whole is read once more. */
async function digestOf(file: PartFile, job: FileJob): Promise<string> {
  const digest = streamedDigest(job.words.values.digest!)
  const buffer = Buffer.allocUnsafe(READ_BYTES)
  for (let position = 0; ;) {
    job.signal.throwIfAborted()
    const { bytesRead } = await file.handle.read(buffer, 0, READ_BYTES, position)
    if (bytesRead === 0) return digest.verify(job.shown)
    digest.update(buffer.subarray(0, bytesRead))
    position += bytesRead
  }
}
