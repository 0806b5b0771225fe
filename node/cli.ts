#!/usr/bin/env node
// The `skimmer` command: each subcommand in a file of its own under commands/.
import { Command, CommanderError } from 'commander'
import { addDemo } from './commands/demo.ts'
import { addDoctor } from './commands/doctor.ts'
import { addInspect } from './commands/inspect.ts'
import { addMount } from './commands/mount.ts'
import { addNode } from './commands/node.ts'
import { addPreheat } from './commands/preheat.ts'
import { addProxy } from './commands/proxy.ts'
import { addSetup } from './commands/setup.ts'
import { addStatus } from './commands/status.ts'
import { addSupernode } from './commands/supernode.ts'
import { EXIT_CODES, EXIT_CODE_HELP, exitCodeOf } from '../command-line/exit-codes.ts'
import { VERSION } from '../command-line/version.ts'

const program = new Command('skimmer')
  .description('Starts containers after pulling only their manifest, and shares the rest peer to peer.')
  .version(VERSION)
  .addHelpText('after', `
A node runs on every machine, beside its containerd; a supernode once in a datacenter. \`skimmer COMMAND --help\` tells all about a command.
SKIMMER_DEBUG=1 adds stack traces to errors.

${EXIT_CODE_HELP}

Try it: npm run demo`)
  // Not on a terminal: as wide as the tables are easy to read.
  .configureOutput({ getOutHelpWidth: () => process.stdout.columns ?? 140, getErrHelpWidth: () => process.stderr.columns ?? 140 })
  .showSuggestionAfterError()
  .exitOverride()

addSupernode(program)
addNode(program)
addProxy(program)
addPreheat(program)
addInspect(program)
addMount(program)
addSetup(program)
addStatus(program)
addDoctor(program)
addDemo(program)
for (const command of program.commands) command.exitOverride().addHelpText('after', `\n${EXIT_CODE_HELP}`)

// Whoever reads us may stop reading (`skimmer explain | head`): what is said then is lost, and nothing else.
for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error
  })
}

try {
  await program.parseAsync()
} catch (error) {
  if (error instanceof CommanderError) {
    process.exitCode = error.exitCode === 0 ? EXIT_CODES.ok : EXIT_CODES.usage
  } else {
    process.stderr.write(`skimmer: ${(error as Error).message}\n`)
    if (process.env.SKIMMER_DEBUG) process.stderr.write(`${(error as Error).stack}\n`)
    process.exitCode = exitCodeOf(error)
  }
}
