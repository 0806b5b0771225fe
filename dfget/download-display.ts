// How far a download is: a bar on a terminal, a plain line now and then elsewhere, and a line at its end.
import { formatDuration, formatSize } from '../command-line/units.ts'
import type { Received, Snapshot } from './way.ts'

const DRAW_MS = 250
const TELL_MS = 2_000
/** The rate is of this last while. */
const RATE_MS = 3_000
const MOST_BAR = 30
const LEAST_BAR = 8

export const formatRate = (bytesPerSecond: number): string => `${formatSize(Math.round(bytesPerSecond))}/s`

const NAMES: readonly (readonly [keyof Received, string])[] = [['peer', 'peers'], ['supernode', 'supernode'], ['source', 'source'], ['local', 'here already']]

/** `peers 75 %, supernode 25 %`; empty when nothing came. */
export function formatShares(received: Received): string {
  const sum = NAMES.reduce((total, [key]) => total + received[key], 0)
  if (sum === 0) return ''
  return NAMES.filter(([key]) => received[key] > 0).map(([key, name]) => `${name} ${percent(received[key], sum)} %`).join(', ')
}

/** Rounded, but neither all nor nothing unless it is. */
function percent(part: number, whole: number): number {
  const rounded = Math.round((part * 100) / whole)
  return part < whole ? Math.min(99, Math.max(1, rounded)) : 100
}

/** `8.6 s` while the clock of a person counts; `1 min 5 s`, `2 h 3 min`. */
function formatLeft(seconds: number): string {
  if (seconds < 3_600) return seconds < 60 ? `${Math.ceil(seconds)} s` : `${Math.floor(seconds / 60)} min ${Math.ceil(seconds) % 60} s`
  return `${Math.floor(seconds / 3_600)} h ${Math.floor((seconds % 3_600) / 60)} min`
}

export interface DisplayOptions {
  readonly name: string
  /** Files of a directory: done and all. */
  readonly files?: () => { done: number; all: number }
}

export class DownloadDisplay {
  readonly #out: NodeJS.WriteStream
  readonly #snapshot: () => Snapshot
  readonly #options: DisplayOptions
  readonly #samples: { at: number; bytes: number }[] = []
  readonly #timer: NodeJS.Timeout
  #toldAt = performance.now()
  #drawn = false

  constructor(out: NodeJS.WriteStream, snapshot: () => Snapshot, options: DisplayOptions) {
    this.#out = out
    this.#snapshot = snapshot
    this.#options = options
    this.#timer = setInterval(() => this.#tick(), DRAW_MS)
    this.#timer.unref()
  }

  /** A line that stays. */
  say(line: string): void {
    this.#wipe()
    this.#out.write(`${line}\n`)
  }

  stop(): void {
    clearInterval(this.#timer)
    this.#wipe()
  }

  #tick(): void {
    const now = performance.now()
    const snapshot = this.#snapshot()
    // Begun again: what came before is no rate of this.
    if (snapshot.bytes < (this.#samples.at(-1)?.bytes ?? 0)) this.#samples.length = 0
    this.#samples.push({ at: now, bytes: snapshot.bytes })
    while (this.#samples.length > 2 && now - this.#samples[1].at > RATE_MS) this.#samples.shift()
    if (this.#out.isTTY) this.#draw(snapshot)
    else if (now - this.#toldAt >= TELL_MS) {
      this.#toldAt = now
      this.#out.write(`${this.#options.name}: ${this.#words(snapshot, true)}\n`)
    }
  }

  #rate(): number {
    const [first, last] = [this.#samples[0], this.#samples.at(-1)!]
    return last.at > first.at ? ((last.bytes - first.bytes) * 1000) / (last.at - first.at) : 0
  }

  #words({ bytes, length, received }: Snapshot, all: boolean): string {
    const rate = this.#rate()
    if (bytes === 0 && this.#options.files === undefined) return 'waiting for the first byte'
    const files = this.#options.files?.()
    const part = length === undefined ? '' : ` of ${formatSize(length)} (${length === 0 ? 100 : Math.floor((bytes * 100) / length)} %)`
    const left = length !== undefined && rate > 0 && bytes < length ? `, ${formatLeft((length - bytes) / rate)} left` : ''
    const shares = formatShares(received)
    return `${files === undefined ? '' : `${files.done} of ${files.all} files, `}${formatSize(bytes)}${part}, ${formatRate(rate)}${left}${shares === '' || !all ? '' : `; ${shares}`}`
  }

  #draw(snapshot: Snapshot): void {
    const columns = this.#out.columns || 80
    const name = this.#options.name
    const full = this.#words(snapshot, true)
    const words = name.length + full.length + LEAST_BAR + 5 <= columns ? full : this.#words(snapshot, false)
    const room = Math.min(MOST_BAR, columns - name.length - words.length - 5)
    const line = snapshot.length !== undefined && room >= LEAST_BAR ? `${name} ${bar(snapshot.bytes, snapshot.length, room)} ${words}` : `${name} ${words}`
    this.#drawn = true
    this.#out.write(`\r${line.slice(0, columns - 1)}\u001b[K`)
  }

  #wipe(): void {
    if (this.#drawn) this.#out.write('\r\u001b[K')
    this.#drawn = false
  }
}

function bar(bytes: number, length: number, width: number): string {
  const full = length === 0 ? width : Math.min(width, Math.floor((bytes * width) / length))
  return `[${'█'.repeat(full)}${'░'.repeat(width - full)}]`
}

/** `1.0 GiB in 8.60 s, 119 MiB/s; peers 92 %, supernode 8 %` */
export function formatEnd(bytes: number, seconds: number, received: Received): string {
  const shares = formatShares(received)
  return `${formatSize(bytes)} in ${formatDuration(seconds * 1000)}, ${formatRate(bytes / Math.max(seconds, 0.001))}${shares === '' ? '' : `; ${shares}`}`
}
