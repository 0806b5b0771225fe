// `skimmer demo`: the whole system on this machine, lazily against the ordinary way.
import { writeFileSync } from 'node:fs'
import { type Command, Option } from 'commander'
import { count } from '../../command-line/settings.ts'
import { EXIT_CODES } from '../../command-line/exit-codes.ts'
import { interruptible } from '../../command-line/interrupt.ts'

const MBIT = count('1000', '', { least: 1, most: 100_000 })

export function addDemo(program: Command): void {
  program
    .command('demo')
    .summary('start one image lazily on three nodes and the ordinary way on a fourth')
    .description(
      'Builds a small datacenter on this machine, in network namespaces: a registry, a supernode, three nodes with a containerd each, and a fourth node that pulls the ordinary way. ' +
      'Prints who started how fast and where the bytes came from, then takes everything down.',
    )
    .addHelpText('after', `
Without IMAGE it makes one: Debian with python3 and more, three layers (a few minutes the first time).
Without root or /dev/fuse it says what is missing and shows what needs neither: indexing, sharing, verifying, reading files.
It fails (exit code 1) when a promise was not kept: too slow, too many bytes, not proved; the last lines say which.`)
    .argument('[IMAGE]', 'a reference of your own, copied from its registry')
    .argument('[COMMAND...]', "what to run in it, after -- when it has options; default: the image's own command")
    .option('--json <FILE>', 'write the result as JSON')
    .option('--keep', 'keep logs and state of the run')
    .addOption(new Option('--mbit <N>', "rate of every host's link, Mbit/s").default('1000').env('SKIMMER_MBIT'))
    .addOption(new Option('--cache <PATH>', 'where the made image is kept between runs').default('/var/cache/skimmer-demo').env('SKIMMER_CACHE'))
    .action(async (image: string | undefined, words: string[], flags: { json?: string; keep?: boolean; mbit: string; cache: string }) => {
      const mbit = MBIT.read(flags.mbit)
      const started = performance.now()
      const say = (line: string): void => void process.stderr.write(`${((performance.now() - started) / 1000).toFixed(1).padStart(6)} s  ${line}\n`)
      const { missingForDemo } = await import('../demo/requirements.ts')
      const missing = missingForDemo()
      await interruptible(async (signal) => {
        if (missing.length > 0) {
          say(`not the whole demo: ${missing.join('; ')}`)
          const { runRootlessDemo } = await import('../demo/rootless.ts')
          const result = await runRootlessDemo({ image, cache: flags.cache, signal }, say)
          if (flags.json) writeFileSync(flags.json, `${JSON.stringify(result, null, 2)}\n`)
          process.stdout.write(`${result.lines.join('\n')}\n`)
          if (!result.ok) process.exitCode = EXIT_CODES.failed
          return
        }
        const { runDemo } = await import('../demo/demo.ts')
        const { renderTable } = await import('../demo/report.ts')
        const result = await runDemo({ image, command: words.length > 0 ? words : undefined, mbit, cache: flags.cache, keep: flags.keep, signal }, say)
        if (flags.json) writeFileSync(flags.json, `${JSON.stringify(result, null, 2)}\n`)
        process.stdout.write(`${renderTable(result)}\n`)
        if (!result.ok) process.exitCode = EXIT_CODES.failed
      })
    })
}
