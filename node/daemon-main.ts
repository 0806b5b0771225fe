// The daemon's process, as the supervisor starts it: greets containerd before anything large is loaded, then runs the daemon until it is told to end.
import { basename } from 'node:path'
import { inheritance } from '../blockdev/inheritance.ts'
import { SkimmerError } from '../oci/errors.ts'
import { SnapshotterServer } from '../snapshotter/snapshotter-server.ts'
import { exitCodeOf } from './exit-codes.ts'
import { createLogger } from './log.ts'

const logger = createLogger('info', 'node')
process.on('unhandledRejection', (error) => logger.error({ err: error }, 'a promise was rejected and nobody listened'))

try {
  const inherited = inheritance()
  if (inherited === undefined) throw new SkimmerError('INVALID_ARGUMENT', 'the node daemon is started by its supervisor: run `skimmer node`')
  const { link, sockets } = inherited
  // Heard from the first moment on: a daemon that is told to end while it starts must still take down what it mounts.
  const asked = Promise.withResolvers<'stop' | 'handOver'>()
  link.on('stop', () => asked.resolve('stop'))
  link.on('handover', () => asked.resolve('handOver'))
  link.on('orphaned', () => logger.error('the supervisor died: this daemon goes on, but nobody starts it again if it dies; run `skimmer node` again, it takes over without a pause'))
  process.on('SIGTERM', () => asked.resolve('stop'))
  process.on('SIGINT', () => {}) // Ctrl-C reaches the supervisor too, which says what to do
  process.on('SIGHUP', () => {})

  const fd = [...sockets].find(([address]) => basename(address) === 'snapshotter.sock')?.[1]
  if (fd === undefined) throw new SkimmerError('INVALID_ARGUMENT', 'the supervisor handed over no socket for the snapshotter: it is of another version; stop it and start it again')
  const listen = (): Promise<SnapshotterServer> => SnapshotterServer.listen({ logger }, { fd })
  const early = inherited.handover ? undefined : await listen()
  const { runDaemon } = await import('./daemon-run.ts')
  await runDaemon(inherited, { listen: () => early ?? listen(), asked: asked.promise })
} catch (error) {
  logger.fatal({ err: error }, (error as Error).message)
  process.exit(exitCodeOf(error))
}
