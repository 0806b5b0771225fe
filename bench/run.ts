// `npm run bench -- start|fanout|read|dfget|proxy [--json FILE]`: each measures Skimmer side by side with something real in one run, and prints ratios.
import { writeFileSync } from 'node:fs'
import { Command } from 'commander'
import { exitCodeOf } from '../command-line/exit-codes.ts'
import { interruptible } from '../command-line/interrupt.ts'
import type { Say } from './lab/image.ts'

export interface BenchContext {
  readonly cache: string
  readonly say: Say
  readonly signal: AbortSignal
}

/** What one bench found: its part of the JSON, and lines for people. */
export interface BenchResult {
  readonly json: Record<string, unknown>
  readonly lines: readonly string[]
}

const BENCHES: Record<string, { summary: string; load: () => Promise<(context: BenchContext) => Promise<BenchResult>> }> = {
  start: { summary: 'first output of a container, lazily against an ordinary pull, at 100 Mbit/s and 1 Gbit/s', load: async () => (await import('./start.ts')).benchStart },
  fanout: { summary: 'six nodes want a whole image at once, against one node alone, at 200 Mbit/s', load: async () => (await import('./fanout.ts')).benchFanout },
  read: { summary: 'reading a mounted image (whole tree, 4 KiB at random) with cold caches, against native ext4', load: async () => (await import('./read.ts')).benchRead },
  dfget: { summary: 'a file by dfget against curl from the same source: one node at 1 Gbit/s, six at 200 Mbit/s', load: async () => (await import('./dfget.ts')).benchDfget },
  proxy: { summary: 'an ordinary pull on six nodes at 200 Mbit/s, through the registry proxy against straight', load: async () => (await import('./proxy.ts')).benchProxy },
}

const program = new Command('bench').description('Measurements, side by side in one run, as ratios. They need root.')
for (const [name, bench] of Object.entries(BENCHES)) {
  program
    .command(name)
    .summary(bench.summary)
    .option('--json <FILE>', 'write the result as JSON')
    .option('--cache <PATH>', 'where the made image is kept between runs', '/var/cache/skimmer-demo')
    .action(async (flags: { json?: string; cache: string }) => {
      const started = performance.now()
      const say: Say = (line) => void process.stderr.write(`${((performance.now() - started) / 1000).toFixed(1).padStart(6)} s  ${line}\n`)
      const measure = await bench.load()
      const result = await interruptible((signal) => measure({ cache: flags.cache, say, signal }))
      if (flags.json) writeFileSync(flags.json, `${JSON.stringify(result.json, null, 2)}\n`)
      process.stdout.write(`${result.lines.join('\n')}\n`)
    })
}

try {
  await program.parseAsync()
} catch (error) {
  process.stderr.write(`bench: ${(error as Error).message}\n`)
  process.exitCode = exitCodeOf(error)
}
