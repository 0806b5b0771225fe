// One stream on its way to whoever follows it: its parts, how far their hashes may be told, and its end.
import type { SkimmerError } from '../oci/errors.ts'
import type { Resource } from '../peer/resource.ts'
import type { StreamRecord } from './stream-record.ts'

export interface StreamPart { readonly resource: Resource; readonly offset: number }

/** Followers hear of news at most this often, milliseconds; of a crowd each hears less often, so that telling it costs the same. */
const PULSE_MS = 25
const CROWD_MS = 250
let nextWork = 1

export class StreamWork {
  readonly key: string
  readonly startedAt = Date.now()
  /** Replaced when it changes. */
  record: StreamRecord
  /** Those that may be told, in order. */
  readonly parts: StreamPart[] = []
  /** Bytes read from the source so far. */
  fetched = 0
  /** The last block's hash is not told before the whole was checked. */
  checked: boolean
  /** Looked at while this waits for its turn. */
  priority: number
  /** Resolves when it ended, well or not. */
  readonly over: Promise<void>
  readonly #owner = `stream:${nextWork++}`
  readonly #fronts: number[] = []
  readonly #held = new Set<Resource>()
  #end: { error?: SkimmerError } | undefined
  #resolveOver!: () => void
  #followers = 0
  #changes = 0
  #told = 0
  #timer: NodeJS.Timeout | undefined
  #waiting: (() => void)[] = []

  constructor(key: string, record: StreamRecord, options: { priority?: number; checked?: boolean } = {}) {
    this.key = key
    this.record = record
    this.priority = options.priority ?? 0
    this.checked = options.checked ?? true
    this.over = new Promise(resolve => { this.#resolveOver = resolve })
  }

  get followers(): number { return this.#followers }
  get ended(): boolean { return this.#end !== undefined }
  get failure(): SkimmerError | undefined { return this.#end?.error }
  /** Grows with every change that followers should hear of. */
  get changes(): number { return this.#changes }

  /** Keeps a resource here while the stream is made or followed. */
  hold(resource: Resource): Resource {
    this.#held.add(resource)
    if (!this.#idle) resource.pin(this.#owner)
    return resource
  }

  /** A part that may be told from now on; it is held. */
  add(part: StreamPart): void {
    this.parts.push(part)
    this.#fronts.push(0)
    this.touch()
  }

  /** How many blocks of a part, from its first, have hashes that may be told. */
  front(index: number): number {
    const { resource } = this.parts[index]
    const { count } = resource.table
    this.#fronts[index] = resource.knownUntil(this.#fronts[index])
    // A stream of known length has one part: what is held back is its end.
    return this.checked ? this.#fronts[index] : Math.min(this.#fronts[index], Math.max(0, count - 1))
  }

  /** Somebody reads along; call the answer when he is done. */
  follow(): () => void {
    const idle = this.#idle
    this.#followers++
    if (idle) for (const resource of this.#held) resource.pin(this.#owner)
    return () => {
      this.#followers--
      this.#letGo()
    }
  }

  /** Something changed: followers hear of it soon. */
  touch(): void {
    if (this.#timer !== undefined || this.ended) return
    const every = Math.min(CROWD_MS, Math.max(PULSE_MS, this.#followers))
    this.#timer = setTimeout(() => { this.#pulse() }, Math.max(0, this.#told + every - performance.now()))
  }

  /** It ended: with everything told, or by an error. */
  end(error?: SkimmerError): void {
    if (this.ended) return
    this.#end = { error }
    if (error === undefined) this.checked = true
    this.#pulse()
    this.#resolveOver()
    this.#letGo()
  }

  /** Resolves at the first change after number `seen`. Throws when `signal` is aborted. */
  async changed(seen: number, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    if (this.#changes !== seen || this.ended) return
    await new Promise<void>((resolve, reject) => {
      const gone = (): void => {
        this.#waiting.splice(this.#waiting.indexOf(wake), 1)
        reject(signal.reason as Error)
      }
      const wake = (): void => {
        signal.removeEventListener('abort', gone)
        resolve()
      }
      signal.addEventListener('abort', gone, { once: true })
      this.#waiting.push(wake)
    })
  }

  /** Neither made nor followed. */
  get #idle(): boolean {
    return this.ended && this.#followers === 0
  }

  #pulse(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#told = performance.now()
    this.#changes++
    for (const wake of this.#waiting.splice(0)) wake()
  }

  #letGo(): void {
    if (this.#idle) for (const resource of this.#held) resource.unpin(this.#owner)
  }
}
