// Limits by which downloads pay for bytes before they ask for them: exact over ten seconds, and shared fairly, whatever the sizes of blocks.
import { describe, expect, test } from '@jest/globals'
import { randomBytes } from 'node:crypto'
import { Pace, exactBucket } from '../../peer/pace.ts'
import { TokenBucket } from '../../peer/token-bucket.ts'
import { DownloadLab, ask, expectFile, readAll } from './download-lab.ts'
import { TestFile } from './file-supernode.ts'

const MIB = 1024 * 1024

/** Time that passes only when everyone waits; each timer fires `late` milliseconds after it should. */
class Clock {
  now = 0
  readonly #timers: { at: number; wake: () => void }[] = []
  readonly #late: () => number

  constructor(late: () => number = () => 0) {
    this.#late = late
  }

  readonly read = (): number => this.now
  readonly pause = (millis: number, signal?: AbortSignal): Promise<void> => new Promise(resolve => {
    this.#timers.push({ at: this.now + millis + this.#late(), wake: resolve })
    signal?.addEventListener('abort', () => resolve(), { once: true })
  })

  async until(end: number): Promise<void> {
    for (;;) {
      await new Promise(resolve => { setImmediate(resolve) })
      this.#timers.sort((a, b) => a.at - b.at)
      const next = this.#timers[0]
      if (next === undefined || next.at > end) return
      this.#timers.shift()
      this.now = Math.max(this.now, next.at)
      next.wake()
    }
  }
}

describe('paying ahead', () => {
  const signal = new AbortController().signal

  /** Pays for block after block; what it counts was paid for. */
  function pay(pace: Pace, blockBytes: number): { paid: number } {
    const count = { paid: 0 }
    void (async () => {
      for (;;) {
        await pace.pay(blockBytes, signal)
        count.paid += blockBytes
      }
    })()
    return count
  }

  test('a limit is exact to five percent over ten seconds, with timers that are late too', async () => {
    let turn = 0
    for (const late of [() => 0, () => (turn++ * 37) % 90]) {
      for (const rate of [256 * 1024, 20 * MIB, 60 * MIB]) {
        const clock = new Clock(late)
        const bucket = exactBucket(rate, { clock: clock.read })
        const { paid } = await (async () => {
          const count = pay(new Pace(() => [bucket], { pause: clock.pause }), rate < MIB ? 65_536 : MIB)
          await clock.until(10_000)
          return count
        })()
        expect(paid / (rate * 10)).toBeGreaterThan(0.95)
        expect(paid / (rate * 10)).toBeLessThan(1.05)
      }
    }
  })

  test('nothing is given before it is earned', async () => {
    const clock = new Clock()
    const bucket = exactBucket(MIB, { clock: clock.read })
    const count = pay(new Pace(() => [bucket], { pause: clock.pause }), MIB)
    await clock.until(999)
    expect(count.paid).toBe(0)
    await clock.until(1_001)
    expect(count.paid).toBe(MIB)
  })

  test('several share a limit by bytes, however large their blocks are; the sum is exact', async () => {
    const clock = new Clock()
    const host = exactBucket(20 * MIB, { clock: clock.read })
    const counts = [MIB, 4 * MIB, 65_536].map(blockBytes => pay(new Pace(() => [host], { pause: clock.pause }), blockBytes))
    await clock.until(10_000)
    const sum = counts.reduce((total, { paid }) => total + paid, 0)
    expect(Math.abs(sum / (200 * MIB) - 1)).toBeLessThan(0.05)
    for (const { paid } of counts) expect(Math.abs(paid / counts[0].paid - 1)).toBeLessThan(0.1)
  })

  test('one with a lower limit of its own leaves the rest of the host\'s to others', async () => {
    const clock = new Clock()
    const host = exactBucket(20 * MIB, { clock: clock.read })
    const own = exactBucket(2 * MIB, { clock: clock.read })
    const slow = pay(new Pace(() => [host, own], { pause: clock.pause }), 256 * 1024)
    const fast = pay(new Pace(() => [host], { pause: clock.pause }), 256 * 1024)
    await clock.until(10_000)
    expect(Math.abs(slow.paid / (20 * MIB) - 1)).toBeLessThan(0.05)
    expect(Math.abs((slow.paid + fast.paid) / (200 * MIB) - 1)).toBeLessThan(0.05)
  })

  test('without a limit nothing waits; who gives up does not wait on', async () => {
    const free = new Pace(undefined)
    expect(free.free).toBe(true)
    await free.pay(1e12, signal)
    const pace = new Pace(1)
    expect(pace.free).toBe(false)
    const abort = new AbortController()
    const paying = pace.pay(1_000, abort.signal)
    abort.abort(new Error('enough'))
    await expect(paying).rejects.toThrow('enough')
    expect(new TokenBucket(Infinity).take(5)).toBe(0)
  })
})

describe('a download with a limit', () => {
  test('asks for no block that is not paid for, from the supernode or from its source', async () => {
    const lab = await DownloadLab.start()
    try {
      const clock = new Clock()
      const file = lab.files.publish(new TestFile('http://source/a', randomBytes(1_000_000), { blockBytes: 65_536 }))
      const [one, alone] = [await lab.node('one', { options: { pause: clock.pause } }), await lab.node('alone', { alone: true, options: { pause: clock.pause } })]
      for (const [downloads, request] of [[one.downloads, ask(file)], [alone.downloads, { key: 'alone', source: file.source }]] as const) {
        const bucket = exactBucket(100_000, { clock: clock.read })
        const begun = clock.now
        const download = await downloads.open({ ...request, bytesPerSecond: () => [bucket] })
        const reading = readAll(download)
        for (let ended = false; !ended; ended = download.ended) {
          await clock.until(clock.now + 500)
          clock.now += 500
          // What is here was paid; a chunk that a source pushed may be unpaid still.
          expect(download.stats().storedBytes).toBeLessThanOrEqual(((clock.now - begun) / 1000) * 100_000 * 1.05 + 65_536)
        }
        expectFile(await reading, file)
        expect(clock.now - begun).toBeGreaterThan(9_000)
      }
    } finally {
      await lab.stop()
    }
  })
})
