// Which way a file comes: the node of this host, else a peer of our own, else straight from the source; the next one when one fails.
import { hasCode, SkimmerError } from '../oci/errors.ts'
import type { Sources } from '../source/sources.ts'
import { DaemonClient } from './daemon-client.ts'
import { downloadByDaemon } from './daemon-download.ts'
import type { DfgetWords } from './read-options.ts'
import type { Pay } from './straight-download.ts'
import { nothing, type Arrived, type FileJob } from './way.ts'

/**
 * What another way may not suffer from, when a daemon says it: it is gone, busy, full or broken. What the source says is the same on
 * every way, and so is a full disk here.
 */
const ELSEWHERE = ['UNAVAILABLE', 'TIMEOUT', 'NO_SPACE', 'INTERNAL', 'UNSUPPORTED', 'FORBIDDEN', 'LIMIT_EXCEEDED', 'INVALID_DATA'] as const

export interface WaysOptions {
  /** Progress is shown: where bytes come from is asked for while they come. */
  readonly watch: boolean
  /** Said once, when a way that was asked for is not the one that is gone. */
  readonly say: (line: string) => void
}

export class Ways {
  readonly #words: DfgetWords
  readonly #options: WaysOptions
  readonly #closes: (() => Promise<void> | void)[] = []
  readonly #said = new Set<string>()
  #node: DaemonClient | undefined
  #straight: Promise<{ sources: Sources; pay: Pay }> | undefined

  constructor(words: DfgetWords, options: WaysOptions) {
    this.#words = words
    this.#options = options
    const { socket, pattern } = words.values
    if (socket !== '' && pattern !== 'source') this.#node = new DaemonClient(socket, { who: 'the node' })
  }

  /** Brings the file. The error is that of the last way that was tried. */
  async bring(job: FileJob): Promise<Arrived> {
    const { values } = this.#words
    const through = await this.#throughSwarm(job)
    let failed: SkimmerError | undefined
    if (through !== undefined) {
      for (const way of [this.#byNode, this.#byPeer]) {
        try {
          Object.assign(job.snapshot, { bytes: 0, length: undefined, received: nothing() })
          const arrived = await way.call(this, through)
          if (arrived !== undefined) return arrived
        } catch (error) {
          if (job.signal.aborted || !hasCode(error, ...ELSEWHERE) || error.details.reached === undefined || error.details.spent === true) throw error
          failed = error
          this.#tell(job, `${error.message}; ${this.#next(way === this.#byNode)}`)
        }
      }
    }
    if (!values['back-to-source']) throw failed ?? new SkimmerError('UNAVAILABLE', `${job.shown}: no node answers here and no supernode is named, and the source may not be read (--disable-back-to-source)`)
    Object.assign(job.snapshot, { bytes: 0, length: undefined, received: nothing() })
    return await this.#straightly(job)
  }

  async close(): Promise<void> {
    for (const close of this.#closes.splice(0)) await close()
  }

  #next(afterNode: boolean): string {
    if (afterNode && this.#words.values.supernodes.length > 0) return "now by a peer of dfget's own"
    return this.#words.values['back-to-source'] ? 'now straight from the source' : 'there is no other way (--disable-back-to-source)'
  }

  #tell(job: FileJob, line: string): void {
    if (this.#said.has(line)) return job.note(line)
    this.#said.add(line)
    this.#options.say(line)
  }

  /** The job as daemons can do it; undefined: they cannot. */
  async #throughSwarm(job: FileJob): Promise<FileJob | undefined> {
    if (this.#words.values.pattern === 'source') return undefined
    const { protocol } = new URL(job.url)
    if (protocol === 'http:' || protocol === 'https:') return job
    if (protocol !== 's3:' || (this.#node === undefined && this.#words.values.supernodes.length === 0)) return undefined
    // Our own credentials stay here: what is handed on is a URL that is signed for this one file.
    const [{ sources }, { sourceRequestOf }] = await Promise.all([this.#sources(), import('./own-sources.ts')])
    const { url, filteredQueryParams } = await sources.signS3(job.url, sourceRequestOf(this.#words))
    const { values } = job.words
    const filtered = [...values['filtered-query-params'], ...filteredQueryParams]
    return { ...job, url, words: { ...job.words, values: { ...values, 'filtered-query-params': filtered } } }
  }

  async #byNode(job: FileJob): Promise<Arrived | undefined> {
    const node = this.#node
    if (node === undefined) return undefined
    try {
      return await downloadByDaemon('node', async () => node, job, this.#options)
    } catch (error) {
      if (!hasCode(error, 'UNAVAILABLE') || error.details.reached !== false || job.snapshot.bytes > 0) throw error
      // No node here is no fault; other files need not look again.
      this.#node = undefined
      job.note(error.message)
      return undefined
    }
  }

  async #byPeer(job: FileJob): Promise<Arrived | undefined> {
    const { values } = this.#words
    if (values.supernodes.length === 0) return undefined
    const { ownPeer } = await import('./own-peer-client.ts')
    return await downloadByDaemon('peer', async () => {
      try {
        return await ownPeer(values, job.signal)
      } catch (error) {
        job.signal.throwIfAborted()
        throw new SkimmerError('UNAVAILABLE', (error as Error).message, { cause: error, details: { reached: false } })
      }
    }, job, this.#options)
  }

  async #straightly(job: FileJob): Promise<Arrived> {
    const [{ downloadStraight }, { sources, pay }] = await Promise.all([import('./straight-download.ts'), this.#sources()])
    return await downloadStraight(job, { sources, pay })
  }

  #sources(): Promise<{ sources: Sources; pay: Pay }> {
    return (this.#straight ??= (async () => {
      const { ownSources } = await import('./own-sources.ts')
      const sources = ownSources(this.#words)
      this.#closes.push(() => sources.close())
      return { sources, pay: await this.#pay() }
    })())
  }

  /** Limits of what is read straight from sources: the total is shared with this user's other dfgets. */
  async #pay(): Promise<Pay> {
    const { limit, 'total-limit': total } = this.#words.values
    if (limit === 0 && total === 0) return undefined
    const { HostRate } = await import('./host-rate.ts')
    const rate = new HostRate()
    const lane = rate.lane({ bytesPerSecond: limit, total })
    this.#closes.push(() => lane.end())
    if (total > 0) {
      const [{ SharedRate }, { runtimeDirectory }, { join }] = await Promise.all([import('./shared-rate.ts'), import('./peer-place.ts'), import('node:path')])
      const shared = new SharedRate({ rate }, { directory: join(runtimeDirectory(), 'rates') })
      shared.start()
      this.#closes.push(() => shared.stop())
    }
    return (bytes, signal) => lane.pay(bytes, signal)
  }
}
