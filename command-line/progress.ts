// Progress of long work: bars on a terminal, plain lines elsewhere.
import { MultiBar, Presets, type SingleBar } from 'cli-progress'
import { formatSize } from './units.ts'

/** A piece of work with a known or growing total, in bytes. */
export interface ProgressItem {
  readonly name: string
  readonly done: number
  readonly total: number
  /** A few words behind the numbers: `12.3 MiB/s`, `indexing`. */
  readonly note?: string
}

const PLAIN_EVERY_MS = 2_000

export class Progress {
  readonly #out: NodeJS.WriteStream
  readonly #bars = new Map<string, SingleBar>()
  readonly #told = new Map<string, { at: number; done: number }>()
  readonly #multi: MultiBar | undefined

  constructor(out: NodeJS.WriteStream = process.stderr) {
    this.#out = out
    if (out.isTTY) this.#multi = new MultiBar({ stream: out, format: '{name} {bar} {percentage} % {size} {note}', hideCursor: true, clearOnComplete: false, fps: 8 }, Presets.shades_classic)
  }

  update(items: readonly ProgressItem[]): void {
    for (const item of items) {
      if (this.#multi) this.#draw(this.#multi, item)
      else this.#tell(item)
    }
  }

  #draw(multi: MultiBar, item: ProgressItem): void {
    const payload = { name: item.name.padEnd(24), size: `${formatSize(item.done)} of ${formatSize(item.total)}`, note: item.note ?? '' }
    const bar = this.#bars.get(item.name)
    if (bar) {
      bar.setTotal(Math.max(1, item.total))
      bar.update(item.done, payload)
    } else this.#bars.set(item.name, multi.create(Math.max(1, item.total), item.done, payload))
  }

  #tell(item: ProgressItem): void {
    const last = this.#told.get(item.name)
    const complete = item.total > 0 && item.done >= item.total
    if (last && (last.done === item.done || (!complete && Date.now() - last.at < PLAIN_EVERY_MS))) return
    this.#told.set(item.name, { at: Date.now(), done: item.done })
    this.#out.write(`${item.name}: ${formatSize(item.done)} of ${formatSize(item.total)}${item.note ? `, ${item.note}` : ''}\n`)
  }

  /** A line of its own, above the bars where there are some. */
  say(line: string): void {
    if (this.#multi && this.#bars.size > 0) this.#multi.log(`${line}\n`)
    else this.#out.write(`${line}\n`)
  }

  stop(): void {
    this.#multi?.stop()
  }
}
