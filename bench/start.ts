// Bench "start": pull to first output of an import-heavy container, lazily (index at the supernode) against an ordinary pull, at two link rates.
import { formatDuration } from '../command-line/units.ts'
import { Datacenter } from './lab/datacenter.ts'
import { START_SCRIPT } from './lab/image.ts'
import type { BenchContext, BenchResult } from './run.ts'

const RATES_MBIT = [100, 1000]

export async function benchStart(context: BenchContext): Promise<BenchResult> {
  const start: { mbit: number; lazyMs: number; ordinaryMs: number; ratio: number }[] = []
  const command = ['python3', '-c', START_SCRIPT]
  for (const mbit of RATES_MBIT) {
    // Two lazy nodes: the first one's start gives the trace that every later start has; the second is measured.
    const datacenter = await Datacenter.start({ ...context, mbit, nodes: ['first', 'lazy'], ordinary: true })
    try {
      await datacenter.preheat()
      const first = await datacenter.startNode('first')
      const lazy = await datacenter.startNode('lazy')
      const ordinary = await datacenter.startOrdinary()
      await datacenter.lazyPullAndRun(first, command)
      await datacenter.untilWhole(first)
      const lazyMs = await datacenter.lazyPullAndRun(lazy, command)
      context.say(`${mbit} Mbit/s: lazily ${formatDuration(lazyMs)}`)
      await datacenter.untilWhole(lazy)
      const ordinaryMs = await datacenter.pullAndRun(ordinary, command)
      context.say(`${mbit} Mbit/s: ordinarily ${formatDuration(ordinaryMs)}`)
      start.push({ mbit, lazyMs: Math.round(lazyMs), ordinaryMs: Math.round(ordinaryMs), ratio: ordinaryMs / lazyMs })
    } finally {
      await datacenter.stop()
    }
  }
  return {
    json: { start },
    lines: start.map(({ mbit, lazyMs, ordinaryMs, ratio }) => `start at ${mbit} Mbit/s: lazy ${formatDuration(lazyMs)}, ordinary ${formatDuration(ordinaryMs)}: ${ratio.toFixed(1)} times sooner`),
  }
}
