// The `dfget` command: words in, exit code out. What a run does not need is not loaded.
import { CommanderError } from 'commander'
import { EXIT_CODES, exitCodeOf } from '../command-line/exit-codes.ts'
import { interruptible } from '../command-line/interrupt.ts'
import { shownUrl } from './file-names.ts'
import { readWords } from './read-options.ts'
import { run } from './run.ts'

// Whoever reads what is said may stop reading; who reads the content is the output's business.
process.stderr.on('error', () => {})
process.stdout.on('error', () => {})

try {
  const words = readWords(process.argv.slice(2))
  // Headers, queries and passwords among our words are not for `ps`.
  process.title = `dfget ${shownUrl(words.url)}`
  // Nothing must be taken down when the output is a pipe, and a write to one that is full hears no signal.
  const go = (signal: AbortSignal): Promise<number> => run(words, signal)
  process.exitCode = words.values.output === '-' ? await go(new AbortController().signal) : await interruptible(go)
} catch (error) {
  if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? EXIT_CODES.ok : EXIT_CODES.usage
  else {
    process.stderr.write(`dfget: ${(error as Error).message}\n`)
    if (process.env.SKIMMER_DEBUG) process.stderr.write(`${(error as Error).stack}\n`)
    process.exitCode = exitCodeOf(error)
  }
}
