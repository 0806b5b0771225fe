// The peer that dfget starts where no node runs: one for a user's downloads through the same supernodes, with a store, for a while after the last one.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { hasCode } from '../oci/errors.ts'
import { BlockStore } from '../peer/block-store.ts'
import { forgetStart } from '../peer/buffer-garbage.ts'
import { BoundedLog } from './bounded-log.ts'
import type { OwnPeer } from './own-peer.ts'
import { PEER_EXIT_TAKEN } from './peer-exit.ts'
import { peerProcessSchema } from './peer-process-options.ts'

/** Blocks for which the disk has no room are kept in memory; this many bytes of them. */
const HELD_BYTES = 16 * 1024 * 1024
/** After so long its first user has what it waited for. */
const SETTLED_MS = 5_000
/** An end that takes longer is cut short: what is on disk is right at any moment. */
const END_MS = 10_000

process.umask(0o077)
process.chdir('/')
const options = peerProcessSchema.parse(JSON.parse(process.argv[2] ?? '{}'))
const logger = pino({ level: options.logLevel, name: 'dfget-peer' }, new BoundedLog(join(options.directory, 'peer.log')))
process.on('unhandledRejection', (error) => logger.error({ err: error }, 'a promise was rejected and nobody listened'))
process.on('uncaughtException', (error) => {
  logger.fatal({ err: error }, 'a bug: the peer ends')
  process.exit(1)
})
process.on('SIGHUP', () => {}) // the terminal it was started from was closed

let store: BlockStore
let peer: OwnPeer
try {
  const metrics = new Registry()
  // Its lock decides which one of several that were started at once goes on: the others load no more than this.
  store = await BlockStore.open({ directory: join(options.directory, 'store'), capBytes: options.cacheBytes, heldBytes: HELD_BYTES, logger, metrics })
  const { OwnPeer } = await import('./own-peer.ts')
  const joinToken = options.joinTokenFile === undefined ? undefined : readFileSync(options.joinTokenFile, 'utf8').trim()
  peer = await OwnPeer.start({ ...options, joinToken }, { store, metrics, logger })
} catch (error) {
  // Another one of this store starts, serves or ends.
  if (hasCode(error, 'CONFLICT')) process.exit(PEER_EXIT_TAKEN)
  logger.fatal({ err: error }, 'the peer cannot start')
  process.stderr.write(`${(error as Error).message}\n`)
  process.exit(1)
}

setTimeout(forgetStart, SETTLED_MS).unref()
const asked = Promise.withResolvers<string>()
for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => asked.resolve(signal))
peer.idle.then(() => asked.resolve('nobody uses it'), () => {})
const why = await asked.promise
logger.info({ why }, 'stopping')
setTimeout(() => process.exit(1), END_MS).unref()
await peer.stop()
await store.close()
process.exit(0)
