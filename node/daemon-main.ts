// The daemon's process, as the supervisor starts it: reads its settings again, takes what it inherits, serves until told otherwise.
import { Command } from 'commander'
import { Registry, collectDefaultMetrics } from 'prom-client'
import { inheritance } from '../blockdev/inheritance.ts'
import { SkimmerError } from '../oci/errors.ts'
import { NODE_SETTINGS } from './config/node-settings.ts'
import { addSettings, loadSettings } from './config/settings.ts'
import { NodeDaemon } from './daemon.ts'
import { exitCodeOf } from './exit-codes.ts'
import { createLogger } from './log.ts'

const command = addSettings(new Command('node'), NODE_SETTINGS).parse(process.argv.slice(2), { from: 'user' })
const config = loadSettings(NODE_SETTINGS, command.opts())
const logger = createLogger(config['log.level'], 'node')

try {
  const inherited = inheritance()
  if (inherited === undefined) throw new SkimmerError('INVALID_ARGUMENT', 'the node daemon is started by its supervisor: run `skimmer node`')
  const metrics = new Registry()
  collectDefaultMetrics({ register: metrics, prefix: 'skimmer_node_' })
  await inherited.link.prepared()
  const daemon = await NodeDaemon.start(config, inherited, { logger, metrics })
  let ending = false
  const end = (how: 'stop' | 'handOver'): void => {
    if (ending) return
    ending = true
    void daemon[how]().catch((error: unknown) => logger.error({ err: error }, 'stopping did not go well')).finally(() => inherited.link.end())
  }
  inherited.link.on('stop', () => end('stop'))
  inherited.link.on('handover', () => end('handOver'))
  inherited.link.on('orphaned', () => logger.error('the supervisor died: this daemon goes on, but nobody starts it again if it dies; run `skimmer node` again, it takes over without a pause'))
  process.on('SIGTERM', () => end('stop'))
  process.on('SIGINT', () => {}) // Ctrl-C reaches the supervisor too, which says what to do
  process.on('SIGHUP', () => {})
} catch (error) {
  logger.fatal({ err: error }, (error as Error).message)
  process.exit(exitCodeOf(error))
}

process.on('unhandledRejection', (error) => logger.error({ err: error }, 'a promise was rejected and nobody listened'))
