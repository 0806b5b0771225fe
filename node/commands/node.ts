// `skimmer node`: becomes the supervisor, which keeps the node daemon running.
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Command } from 'commander'
import { SMALL_PROCESS_ENVIRONMENT, SMALL_PROCESS_FLAGS } from '../../command-line/small-process.ts'
import { addSettings, loadSettings, SETTINGS_HELP } from '../../command-line/settings.ts'
import { NODE_SETTINGS } from '../config/node-settings.ts'

export function addNode(program: Command): void {
  const command = program
    .command('node')
    .summary("run this machine's node: snapshotter, peer and mounts")
    .description(
      'Runs the node daemon under its supervisor. The supervisor keeps the FUSE mount and the sockets, so that the daemon may be killed, crash or be upgraded ' +
      'while containers read from it: they see a pause and no error. It needs root. containerd finds the snapshotter at RUN/snapshotter.sock; ' +
      '`skimmer doctor` prints what to put into its configuration.',
    )
    .addHelpText('after', `
${SETTINGS_HELP}

Signals: SIGHUP starts the daemon anew, with the code and the configuration file as they are now, and hands over to it without a pause that a container
would notice as more than a slow read. SIGTERM stops all and takes the mounts down: containers that run from lazy images get errors from then on.`)
  addSettings(command, NODE_SETTINGS).action(async (flags: Record<string, unknown>) => {
    // Everything is read and checked here; the daemon reads the same words again at each of its starts, so that an upgrade takes a new file.
    const config = loadSettings(NODE_SETTINGS, flags)
    const { checkNodeConfig } = await import('../config/node-check.ts')
    checkNodeConfig(config)
    const { supervise } = await import('../../blockdev/supervise.ts')
    const run = resolve(config.run)
    // A daemon that is started again loads its code in two thirds of the time.
    process.env.NODE_COMPILE_CACHE ??= join(resolve(config.root), 'compile-cache')
    for (const [name, value] of Object.entries(SMALL_PROCESS_ENVIRONMENT)) process.env[name] ??= value
    const daemon = fileURLToPath(new URL(import.meta.url.endsWith('.ts') ? '../daemon-main.ts' : '../daemon-main.js', import.meta.url))
    supervise({
      mountPoint: join(run, 'fs'),
      command: [process.execPath, ...SMALL_PROCESS_FLAGS, daemon, ...process.argv.slice(process.argv.indexOf('node', 2) + 1)],
      stateDirectory: run,
      listen: [`unix:${join(run, 'snapshotter.sock')}`, `unix:${join(run, 'api.sock')}`],
    })
  })
}
