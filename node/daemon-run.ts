// One life of the daemon: settings, the hand-over from the daemon before it, serving, and the end it is asked for.
import { flushCompileCache } from 'node:module'
import { Command } from 'commander'
import { Registry, collectDefaultMetrics } from 'prom-client'
import type { Inheritance } from '../blockdev/inheritance.ts'
import type { SnapshotterServer } from '../snapshotter/snapshotter-server.ts'
import { NODE_SETTINGS } from './config/node-settings.ts'
import { addSettings, loadSettings } from './config/settings.ts'
import { NodeDaemon } from './daemon.ts'
import { createLogger } from './log.ts'

export interface DaemonCalls {
  /** The snapshotter's server; in a hot upgrade it may listen only when the daemon before this one has ended. */
  listen(): SnapshotterServer | Promise<SnapshotterServer>
  /** How this daemon is to end; may resolve before it has started. */
  readonly asked: Promise<'stop' | 'handOver'>
}

/** Settings are read again at each start, so that an upgrade takes a new file. Rejects when the daemon cannot start; else the process ends here. */
export async function runDaemon(inherited: Inheritance, calls: DaemonCalls): Promise<never> {
  const command = addSettings(new Command('node'), NODE_SETTINGS).parse(process.argv.slice(2), { from: 'user' })
  const config = loadSettings(NODE_SETTINGS, command.opts())
  const logger = createLogger(config['log.level'], 'node')
  const metrics = new Registry()
  collectDefaultMetrics({ register: metrics, prefix: 'skimmer_node_' })
  await inherited.link.prepared()
  const daemon = await NodeDaemon.start(config, inherited, { server: await calls.listen(), logger, metrics })
  // On its own it is written when a process ends well, which a daemon seldom does.
  flushCompileCache()
  try {
    await daemon[await calls.asked]()
  } catch (error) {
    logger.error({ err: error }, 'stopping did not go well')
  }
  return inherited.link.end()
}
