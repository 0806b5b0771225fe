// Rate limits: exact over ten seconds, for one download, for all of a process, and for several processes.
import { afterEach, describe, expect, test } from '@jest/globals'
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { HostRate, type Lane } from '../../dfget/host-rate.ts'
import { SharedRate } from '../../dfget/shared-rate.ts'

const KIB = 1024
const MIB = 1024 * KIB
const STEP = 64 * KIB

/** Downloads that pay as the peer's do, in steps, on a clock of their own: each asks again when it has waited, and when what it paid for has come. */
class World {
  now = 0
  readonly clock = (): number => this.now
  readonly #downloads: { lane: Lane; block: number; networkRate: number; bytes: number; paid: number; at: number; until: number }[] = []
  readonly #ticks: { every: number; at: number; run: () => void }[] = []

  download(lane: Lane, options: { block?: number; networkRate?: number; until?: number } = {}): { bytes: number } {
    const download = { lane, block: options.block ?? MIB, networkRate: options.networkRate ?? 2000 * MIB, bytes: 0, paid: 0, at: this.now, until: options.until ?? Infinity }
    this.#downloads.push(download)
    return download
  }

  every(ms: number, run: () => void): void {
    this.#ticks.push({ every: ms, at: this.now + ms, run })
  }

  run(ms: number): void {
    const end = this.now + ms
    for (;;) {
      const next = [...this.#downloads, ...this.#ticks].toSorted((a, b) => a.at - b.at)[0]
      if (next === undefined || next.at > end) break
      this.now = Math.max(this.now, next.at)
      if ('run' in next) {
        next.run()
        next.at += next.every
      } else if (this.now >= next.until) {
        next.lane.end()
        this.#downloads.splice(this.#downloads.indexOf(next), 1)
      } else {
        const wait = next.lane.take(STEP)
        next.paid += STEP
        next.at = this.now + wait
        if (next.paid < next.block) continue
        next.paid = 0
        next.bytes += next.block
        next.at += (next.block / next.networkRate) * 1000
      }
    }
    this.now = end
  }
}

/** Within a twentieth of what the rate gives in that time. */
const near = (bytes: number, rate: number, seconds: number): void => {
  expect(bytes / (rate * seconds)).toBeGreaterThan(0.95)
  expect(bytes / (rate * seconds)).toBeLessThan(1.05)
}

describe('one process', () => {
  test('a download keeps to its own limit, whatever the size of its blocks', () => {
    for (const block of [64 * KIB, 256 * KIB, MIB]) {
      const world = new World()
      const download = world.download(new HostRate({ clock: world.clock }).lane({ bytesPerSecond: 20 * MIB }), { block })
      world.run(10_000)
      near(download.bytes, 20 * MIB, 10)
    }
  })

  test('all downloads together keep to the host\'s limit and get the same, whatever their blocks', () => {
    const world = new World()
    const rate = new HostRate({ bytesPerSecond: 20 * MIB, clock: world.clock })
    const small = world.download(rate.lane(), { block: 64 * KIB })
    const large = world.download(rate.lane(), { block: MIB })
    const other = world.download(rate.lane(), { block: 256 * KIB })
    world.run(10_000)
    near(small.bytes + large.bytes + other.bytes, 20 * MIB, 10)
    for (const { bytes } of [small, large, other]) expect(bytes / (20 * MIB * 10 / 3)).toBeGreaterThan(0.9)
  })

  test('what a slow download leaves, another one uses', () => {
    const world = new World()
    const rate = new HostRate({ bytesPerSecond: 20 * MIB, clock: world.clock })
    const slow = world.download(rate.lane(), { networkRate: 2 * MIB, block: 256 * KIB })
    const limited = world.download(rate.lane({ bytesPerSecond: 3 * MIB }), { block: 256 * KIB })
    const fast = world.download(rate.lane(), { block: 256 * KIB })
    world.run(10_000)
    near(slow.bytes + limited.bytes + fast.bytes, 20 * MIB, 10)
    expect(slow.bytes / (2 * MIB * 10)).toBeGreaterThan(0.75)
    near(limited.bytes, 3 * MIB, 10)
  })

  test('the smallest limit for the host that anybody names counts, while that one runs', () => {
    const world = new World()
    const rate = new HostRate({ bytesPerSecond: 20 * MIB, clock: world.clock })
    const long = world.download(rate.lane(), { block: 128 * KIB })
    world.download(rate.lane({ total: 4 * MIB }), { block: 128 * KIB, until: 10_000 })
    expect(rate.limit).toBe(4 * MIB)
    world.run(10_000)
    near(long.bytes, 2 * MIB, 10)
    expect(rate.limit).toBe(4 * MIB)
    world.run(1_000)
    expect(rate.limit).toBe(20 * MIB)
    const before = long.bytes
    world.run(10_000)
    near(long.bytes - before, 20 * MIB, 10)
  })

  test('without any limit nobody waits', async () => {
    const lane = new HostRate().lane()
    expect(lane.take(10 ** 12)).toBe(0)
    await lane.pay(10 ** 9)
  })

  test('a pause is not saved up', () => {
    const world = new World()
    const lane = new HostRate({ clock: world.clock }).lane({ bytesPerSecond: 10 * MIB })
    world.run(60_000)
    const download = world.download(lane, { block: 128 * KIB })
    world.run(10_000)
    near(download.bytes, 10 * MIB, 10)
  })

  test('a download that is given up stops waiting for its turn', async () => {
    const lane = new HostRate().lane({ bytesPerSecond: 1 })
    const gone = new AbortController()
    const paid = lane.pay(10 * MIB, gone.signal)
    gone.abort()
    await expect(paid).rejects.toMatchObject({ code: 'ABORTED' })
  })
})

describe('several processes of a user', () => {
  const directories: string[] = []
  const directory = (): string => {
    directories.push(mkdtempSync(join(tmpdir(), 'skimmer-rates-')))
    return directories.at(-1)!
  }
  afterEach(() => {
    for (const path of directories.splice(0)) rmSync(path, { recursive: true, force: true })
  })

  const process = (world: World, path: string): { rate: HostRate; shared: SharedRate } => {
    const rate = new HostRate({ clock: world.clock })
    const shared = new SharedRate({ rate }, { directory: path, now: world.clock })
    world.every(200, () => shared.tick())
    return { rate, shared }
  }

  test('share one limit: each its part, together just that', () => {
    const world = new World()
    const path = directory()
    const downloads = [1, 2, 3].map(() => {
      const { rate, shared } = process(world, path)
      const download = world.download(rate.lane({ total: 30 * MIB }), { block: 256 * KIB })
      shared.tick()
      return download
    })
    world.run(10_000)
    near(downloads.reduce((sum, { bytes }) => sum + bytes, 0), 30 * MIB, 10)
    for (const { bytes } of downloads) near(bytes, 10 * MIB, 10)
  })

  test('one that cannot use its part leaves it to the others, and gets it back', () => {
    const world = new World()
    const path = directory()
    const slow = process(world, path)
    const trickle = world.download(slow.rate.lane({ total: 20 * MIB }), { networkRate: MIB, block: 64 * KIB })
    const greedy = process(world, path)
    const rest = world.download(greedy.rate.lane(), { block: 256 * KIB })
    slow.shared.tick()
    greedy.shared.tick()
    world.run(2_000)
    const [a, b] = [trickle.bytes, rest.bytes]
    world.run(10_000)
    near(trickle.bytes - a + rest.bytes - b, 20 * MIB, 10)
    expect((rest.bytes - b) / (10 * MIB)).toBeGreaterThan(17)
    const awake = world.download(slow.rate.lane(), { block: 256 * KIB })
    world.run(1_000)
    const [c, d] = [awake.bytes + trickle.bytes, rest.bytes]
    world.run(10_000)
    near(awake.bytes + trickle.bytes - c + rest.bytes - d, 20 * MIB, 10)
    expect((rest.bytes - d) / (10 * MIB)).toBeLessThan(10.5)
  })

  test('one that was killed is forgotten, one that ends takes its claim along, and rubbish in the directory hurts nobody', () => {
    const world = new World()
    const path = directory()
    writeFileSync(join(path, 'rubbish.json'), '{"at": "now"}')
    writeFileSync(join(path, 'dead.json'), JSON.stringify({ at: 0, limit: 2 * MIB, lanes: 1, claim: 2 * MIB }))
    const { rate, shared } = process(world, path)
    const download = world.download(rate.lane({ total: 10 * MIB }), { block: 128 * KIB })
    world.run(4_000)
    const before = download.bytes
    world.run(10_000)
    near(download.bytes - before, 10 * MIB, 10)
    shared.stop()
    expect(readdirSync(path)).toEqual(['rubbish.json'])
    expect(rate.limit).toBe(10 * MIB)
  })
})
