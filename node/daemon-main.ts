// The daemon's process, as the supervisor starts it. What must not wait until everything is loaded is here: containerd is greeted, and words of the
// supervisor are heard.
import { basename } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import { inheritance } from '../blockdev/inheritance.ts'
import { SkimmerError } from '../oci/errors.ts'
import { EarlyGreeter } from '../snapshotter/early-greeter.ts'

const inherited = inheritance()
if (inherited === undefined) throw new SkimmerError('INVALID_ARGUMENT', 'the node daemon is started by its supervisor: run `skimmer node`')
const fd = [...inherited.sockets].find(([address]) => basename(address) === 'snapshotter.sock')?.[1]
if (fd === undefined) throw new SkimmerError('INVALID_ARGUMENT', 'the supervisor handed over no socket for the snapshotter: it is of another version; stop it and start it again')

// A daemon that is told to end while it starts must still take down what it mounts.
const asked = Promise.withResolvers<'stop' | 'handOver'>()
inherited.link.on('stop', () => asked.resolve('stop'))
inherited.link.on('handover', () => asked.resolve('handOver'))
process.on('SIGTERM', () => asked.resolve('stop'))
process.on('SIGINT', () => {}) // Ctrl-C reaches the supervisor too, which says what to do
process.on('SIGHUP', () => {})

// In a hot upgrade the daemon before this one still answers.
const greeter = inherited.handover ? undefined : await EarlyGreeter.listen({ fd })
// Loading keeps the event loop busy: who has waited through the restart is greeted before.
for (let turn = 0; turn < 3; turn++) await setImmediate()
const { runDaemon } = await import('./daemon-run.ts')
await runDaemon(inherited, { listening: greeter === undefined ? { fd } : { greeter }, asked: asked.promise })
