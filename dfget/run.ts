// One run of dfget: a file or a directory of them, shown while it comes, told at its end.
import { EXIT_CODES, exitCodeOf } from '../command-line/exit-codes.ts'
import { formatSize } from '../command-line/units.ts'
import { hasCode, SkimmerError } from '../oci/errors.ts'
import { DownloadDisplay, formatEnd } from './download-display.ts'
import { outputOf, shownUrl } from './file-names.ts'
import { ReaderGone } from './output-stream.ts'
import type { DfgetWords } from './read-options.ts'
import { nothing, type Arrived, type FileJob, type Received, type Snapshot } from './way.ts'
import { Ways } from './ways.ts'

/** As a shell has it for those whom a closed pipe ends. */
const READER_GONE = 141

const ROUTES: Record<Arrived['route'], string> = { node: 'the node', peer: "dfget's peer", straight: 'straight from the source' }

/** Of one file, as --json prints it. */
interface FileResult {
  readonly url: string
  readonly output?: string
  readonly bytes?: number
  readonly seconds?: number
  readonly bytesPerSecond?: number
  readonly route?: Arrived['route']
  readonly received?: Received
  readonly digest?: string
  readonly contentType?: string
  readonly resumedBytes?: number
  readonly error?: { readonly code: string; readonly message: string }
  readonly exitCode?: number
}

/** The exit code. */
export async function run(words: DfgetWords, signal: AbortSignal): Promise<number> {
  const { values } = words
  const limit = values.timeout === 0 ? signal : AbortSignal.any([signal, timeoutSignal(values.timeout)])
  return await new Run(words, limit).go()
}

function timeoutSignal(ms: number): AbortSignal {
  const controller = new AbortController()
  setTimeout(() => controller.abort(new SkimmerError('TIMEOUT', `not here after ${ms / 1000} s (--timeout)`)), ms).unref()
  return controller.signal
}

class Run {
  readonly #words: DfgetWords
  readonly #signal: AbortSignal
  readonly #ways: Ways
  readonly #shows: boolean
  #display: DownloadDisplay | undefined
  #startedAt = performance.now()

  constructor(words: DfgetWords, signal: AbortSignal) {
    this.#words = words
    this.#signal = signal
    const { quiet, progress } = words.values
    this.#shows = !quiet && progress !== 'off'
    this.#ways = new Ways(words, { watch: this.#shows, say: (line) => this.#say(`dfget: ${line}`) })
  }

  async go(): Promise<number> {
    try {
      return await (this.#words.values.recursive ? this.#tree() : this.#one())
    } catch (thrown) {
      const error: unknown = this.#signal.aborted ? this.#signal.reason : thrown
      this.#display?.stop()
      const code = this.#failed(error)
      if (this.#words.values.json) this.#print({ url: shownUrl(this.#words.url), ...failureOf(error) })
      return code
    } finally {
      this.#display?.stop()
      await this.#ways.close()
    }
  }

  async #one(): Promise<number> {
    const output = outputOf(this.#words.values.output, this.#words.url)
    const snapshot: Snapshot = { bytes: 0, received: nothing() }
    const name = output === '-' ? shownUrl(this.#words.url).split('/').at(-1) || 'standard output' : output.split('/').at(-1)!
    if (this.#shows) this.#display = new DownloadDisplay(process.stderr, () => snapshot, { name })
    const arrived = await this.#ways.bring(this.#job(this.#words.url, output, snapshot))
    const result = this.#result(this.#words.url, output, arrived, this.#startedAt)
    this.#display?.stop()
    this.#say(`${name}: ${formatEnd(arrived.bytes, result.seconds!, arrived.received)}${this.#how(arrived)}`)
    if (this.#words.values.json) this.#print(result)
    return EXIT_CODES.ok
  }

  #how({ route, digest, resumedBytes }: Arrived): string {
    const { verbose } = this.#words.values
    const resumed = resumedBytes === undefined ? '' : `; ${formatSize(resumedBytes)} of an earlier attempt`
    return `${resumed}${verbose || route === 'straight' ? ` (${ROUTES[route]})` : ''}${verbose && digest !== undefined ? `; ${digest} is right` : ''}`
  }

  async #tree(): Promise<number> {
    const { values } = this.#words
    const [{ inParallel, listTree, placeOf }, { ownSources }] = await Promise.all([import('./tree.ts'), import('./own-sources.ts')])
    const directory = values.output ?? '.'
    const sources = ownSources(this.#words)
    const files = await listTree(this.#words, sources, this.#signal).finally(() => sources.close())
    if (values.list) {
      if (values.json) this.#print({ url: shownUrl(this.#words.url), files })
      else process.stdout.write(files.map(({ url }) => `${url}\n`).join(''))
      return EXIT_CODES.ok
    }
    this.#startedAt = performance.now()
    const snapshots: Snapshot[] = []
    const results: FileResult[] = []
    const failures: unknown[] = []
    if (this.#shows) {
      const name = directory.replace(/\/+$/, '').split('/').at(-1) || directory
      this.#display = new DownloadDisplay(process.stderr, () => sumOf(snapshots), { name, files: () => ({ done: results.length, all: files.length }) })
    }
    // The limit is for all of them together.
    const many = Math.min(values['max-concurrent-requests'], Math.max(1, files.length))
    const words: DfgetWords = { ...this.#words, values: { ...values, limit: values.limit === 0 ? 0 : Math.max(1, Math.floor(values.limit / many)) } }
    await inParallel(files, many, async (file) => {
      const startedAt = performance.now()
      const snapshot: Snapshot = { bytes: 0, received: nothing() }
      snapshots.push(snapshot)
      try {
        this.#signal.throwIfAborted()
        const output = await placeOf(directory, file)
        results.push(this.#result(file.url, output, await this.#ways.bring({ ...this.#job(file.url, output, snapshot), words }), startedAt))
      } catch (error) {
        failures.push(error)
        results.push({ url: shownUrl(file.url), ...failureOf(error) })
        if (!this.#signal.aborted) this.#failed(error, `${file.name}: `)
      }
    })
    this.#display?.stop()
    this.#signal.throwIfAborted()
    const sum = sumOf(snapshots)
    const seconds = (performance.now() - this.#startedAt) / 1000
    this.#say(`${directory}: ${results.length - failures.length} of ${files.length} files, ${formatEnd(sum.bytes, seconds, sum.received)}${failures.length > 0 ? `; ${failures.length} failed` : ''}`)
    if (values.json) this.#print({ url: shownUrl(this.#words.url), output: directory, files: results, failed: failures.length, bytes: sum.bytes, seconds, bytesPerSecond: rateOf(sum.bytes, seconds), received: sum.received })
    const codes = new Set(failures.map(exitCodeOf))
    return codes.size === 0 ? EXIT_CODES.ok : codes.size === 1 ? [...codes][0] : EXIT_CODES.failed
  }

  #job(url: string, output: string, snapshot: Snapshot): FileJob {
    const shown = shownUrl(url)
    return { words: this.#words, url, shown, output, snapshot, signal: this.#signal, note: (line) => void (this.#words.values.verbose && this.#say(`dfget: ${line}`)) }
  }

  #result(url: string, output: string, arrived: Arrived, startedAt: number): FileResult {
    const { bytes, received, ...rest } = arrived
    const seconds = Math.round(performance.now() - startedAt) / 1000
    return { url: shownUrl(url), output, bytes, seconds, bytesPerSecond: rateOf(bytes, seconds), received, ...rest }
  }

  #say(line: string): void {
    if (!this.#words.values.quiet) this.#write(line)
  }

  #write(line: string): void {
    if (this.#display === undefined) process.stderr.write(`${line}\n`)
    else this.#display.say(line)
  }

  #print(result: object): void {
    process.stdout.write(`${JSON.stringify(result)}\n`)
  }

  /** Says so, and answers the exit code. */
  #failed(error: unknown, before = ''): number {
    if (error instanceof ReaderGone) return READER_GONE
    this.#write(`dfget: ${before}${(error as Error).message}`)
    if (process.env.SKIMMER_DEBUG) this.#write((error as Error).stack ?? '')
    return exitCodeOf(error)
  }
}

function failureOf(error: unknown): Pick<FileResult, 'error' | 'exitCode'> {
  return { error: { code: hasCode(error, 'ABORTED') ? 'ABORTED' : error instanceof SkimmerError ? error.code : 'INTERNAL', message: (error as Error).message }, exitCode: exitCodeOf(error) }
}

const rateOf = (bytes: number, seconds: number): number => Math.round(bytes / Math.max(seconds, 0.001))

function sumOf(snapshots: readonly Snapshot[]): Snapshot {
  const sum: Snapshot = { bytes: 0, received: nothing() }
  for (const { bytes, received } of snapshots) {
    sum.bytes += bytes
    for (const key of Object.keys(received) as (keyof Received)[]) sum.received[key] += received[key]
  }
  return sum
}
