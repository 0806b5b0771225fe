// A file by way of a daemon on this host: gone on with when the daemon is restarted, begun again when the file changed meanwhile.
import { hasCode, SkimmerError } from '../oci/errors.ts'
import { Content } from './content.ts'
import type { DaemonClient } from './daemon-client.ts'
import type { FileRequestInput } from './file-request.ts'
import { openOutput } from './open-output.ts'
import type { TransferAnswer } from './transfer.ts'
import type { Arrived, FileJob, Received } from './way.ts'

const POLL_MS = 250
/** A daemon that is gone in the middle is waited for: it may just be restarted. */
const RETURN_MS = 5_000
const ASK_AGAIN_MS = 200
const RESTARTS = 3

/** `client` is asked again for each attempt: a peer of our own may have to be started again. `details.spent` of an error: some of it was written out for good. */
export async function downloadByDaemon(route: 'node' | 'peer', client: () => Promise<DaemonClient>, job: FileJob, options: { watch: boolean }): Promise<Arrived> {
  const { values } = job.words
  const output = await openOutput(job.output, { mode: values.mode, overwrite: values.overwrite })
  try {
    const content = new Content(output, { digest: values.digest, what: job.shown })
    const watch = new Watch(job, options.watch)
    const contentType = await bring(client, content, job, watch).finally(() => watch.stop())
    const received = await watch.last(content.received)
    const digest = await content.finish()
    return { route, bytes: content.received, received, ...(digest !== undefined && { digest }), ...(contentType !== undefined && { contentType }) }
  } catch (error) {
    await output.discard()
    if (!output.restartable && output.position > 0 && error instanceof SkimmerError && error.code !== 'ABORTED') throw new SkimmerError(error.code, error.message, { cause: error.cause, details: { ...error.details, spent: true } })
    throw error
  }
}

async function bring(client: () => Promise<DaemonClient>, content: Content, job: FileJob, watch: Watch): Promise<string | undefined> {
  let version: string | undefined
  let contentType: string | undefined
  let restarts = 0
  let brokeAt: { position: number; since: number } | undefined
  for (;;) {
    try {
      const asked = await client()
      await asked.download(requestOf(job, content.received, version), content, {
        signal: job.signal,
        onHead: async (head) => {
          version = head.version
          contentType = head.contentType
          job.snapshot.length = head.length === undefined ? undefined : head.length + content.received
          watch.begin(asked, head.id, content)
          if (head.length !== undefined) await content.output.expect(head.length)
        },
      })
      return contentType
    } catch (error) {
      job.signal.throwIfAborted()
      if (hasCode(error, 'CONFLICT') && version !== undefined && ++restarts <= RESTARTS) {
        job.note(`${error.message}; begun again`)
        await content.restart()
        version = undefined
        continue
      }
      // Only what had begun is waited for.
      if (!hasCode(error, 'UNAVAILABLE') || version === undefined || !(error.details.broke === true || error.details.reached === false)) throw error
      if (brokeAt?.position !== content.received) brokeAt = { position: content.received, since: performance.now() }
      if (performance.now() - brokeAt.since > RETURN_MS) throw error
      job.note(`${error.message}; asked again from there`)
      await new Promise((resolve) => setTimeout(resolve, ASK_AGAIN_MS))
    }
  }
}

function requestOf({ words: { values, headers, ca }, url }: FileJob, from: number, version: string | undefined): FileRequestInput {
  const texts = Object.fromEntries((['tag', 'application', 'identifier', 'digest'] as const).flatMap((key) => (values[key] === undefined ? [] : [[key, values[key]]])))
  return {
    url,
    ...(Object.keys(headers).length > 0 && { headers }),
    ...texts,
    ...(values['filtered-query-params'].length > 0 && { filteredQueryParams: values['filtered-query-params'] }),
    ...(values['piece-length'] !== undefined && { pieceLength: values['piece-length'] }),
    ...(values.expire !== undefined && { expireMs: values.expire }),
    ...(values.range !== undefined && { range: values.range }),
    ...(values.priority !== undefined && { priority: values.priority }),
    ...(ca !== undefined && { ca }),
    ...(values.insecure && { insecure: true }),
    ...(values.fresh && { fresh: true }),
    pattern: values.pattern,
    backToSource: values['back-to-source'],
    ...(values.limit > 0 && { bytesPerSecond: values.limit }),
    ...(values['total-limit'] > 0 && { totalBytesPerSecond: values['total-limit'] }),
    ...(from > 0 && { from, version }),
    aliveMs: values['alive-time'],
  }
}

/** Asks the daemon now and then where the bytes come from. */
class Watch {
  readonly #job: FileJob
  readonly #wanted: boolean
  #timer: NodeJS.Timeout | undefined
  #client: DaemonClient | undefined
  #id = ''
  /** Of answers that broke off. */
  #before: Received
  #now: Received | undefined
  #content: Content | undefined

  constructor(job: FileJob, wanted: boolean) {
    this.#job = job
    this.#wanted = wanted
    this.#before = { ...job.snapshot.received }
  }

  begin(client: DaemonClient, id: string, content: Content): void {
    if (this.#now !== undefined) this.#before = this.#sum()
    this.#now = undefined
    this.#client = client
    this.#id = id
    this.#content = content
    clearInterval(this.#timer)
    this.#timer = setInterval(() => {
      this.#job.snapshot.bytes = content.received
      if (this.#wanted) this.#ask().catch(() => {})
    }, POLL_MS)
  }

  stop(): void {
    clearInterval(this.#timer)
    if (this.#content !== undefined) this.#job.snapshot.bytes = this.#content.received
  }

  /** What nobody sent was here already. */
  async last(bytes: number): Promise<Received> {
    await this.#ask().catch(() => {})
    const { peer, supernode, source } = this.#sum()
    const received = { local: Math.max(0, bytes - peer - supernode - source), peer, supernode, source }
    this.#job.snapshot.received = received
    return received
  }

  async #ask(): Promise<void> {
    const client = this.#client
    if (client === undefined) throw new SkimmerError('INTERNAL', 'no download has begun')
    const answer: TransferAnswer = await client.state(this.#id)
    if (client !== this.#client || answer.id !== this.#id) return
    this.#now = answer.received
    this.#job.snapshot.received = this.#sum()
    if (answer.length !== undefined) this.#job.snapshot.length = answer.length
  }

  #sum(): Received {
    const [a, b] = [this.#before, this.#now]
    return b === undefined ? { ...a } : { local: a.local + b.local, peer: a.peer + b.peer, supernode: a.supernode + b.supernode, source: a.source + b.source }
  }
}
