// One life of the daemon: settings, the hand-over from the daemon before it, serving, and the end it is asked for.
import { flushCompileCache } from 'node:module'
import { Command } from 'commander'
import { Registry, collectDefaultMetrics } from 'prom-client'
import type { Inheritance } from '../blockdev/inheritance.ts'
import type { Listening } from '../snapshotter/grpc-server.ts'
import { forgetStart } from '../peer/buffer-garbage.ts'
import { SnapshotterServer } from '../snapshotter/snapshotter-server.ts'
import { NODE_SETTINGS } from './config/node-settings.ts'
import { addSettings, loadSettings } from '../command-line/settings.ts'
import { NodeDaemon } from './daemon.ts'
import { exitCodeOf } from '../command-line/exit-codes.ts'
import { createLogger } from '../command-line/log.ts'

/** After so long what the start was busy with is over, containers' waiting reads too. */
const SETTLED_MS = 2_000

export interface DaemonCalls {
  /** Where the snapshotter's clients are. */
  readonly listening: Listening
  /** How this daemon is to end; may resolve before it has started. */
  readonly asked: Promise<'stop' | 'handOver'>
}

/** Settings are read again at each start, so that an upgrade takes a new file. The process ends here. */
export async function runDaemon(inherited: Inheritance, calls: DaemonCalls): Promise<never> {
  let logger = createLogger('info', 'node')
  process.on('unhandledRejection', (error) => logger.error({ err: error }, 'a promise was rejected and nobody listened'))
  inherited.link.on('orphaned', () => logger.error('the supervisor died: this daemon goes on, but nobody starts it again if it dies; run `skimmer node` again, it takes over without a pause'))
  let daemon: NodeDaemon
  try {
    const command = addSettings(new Command('node'), NODE_SETTINGS).parse(process.argv.slice(2), { from: 'user' })
    const config = loadSettings(NODE_SETTINGS, command.opts())
    logger = createLogger(config['log.level'], 'node')
    const metrics = new Registry()
    collectDefaultMetrics({ register: metrics, prefix: 'skimmer_node_' })
    await inherited.link.prepared()
    const server = await SnapshotterServer.listen({ logger }, calls.listening)
    daemon = await NodeDaemon.start(config, inherited, { server, logger, metrics })
  } catch (error) {
    logger.fatal({ err: error }, (error as Error).message)
    process.exit(exitCodeOf(error))
  }
  // On its own it is written when a process ends well, which a daemon seldom does.
  flushCompileCache()
  setTimeout(forgetStart, SETTLED_MS).unref()
  try {
    await daemon[await calls.asked]()
  } catch (error) {
    logger.error({ err: error }, 'stopping did not go well')
  }
  return inherited.link.end()
}
