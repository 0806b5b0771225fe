// The daemon's side of the supervisor: the fds it was given, and the few words they exchange.
import { EventEmitter } from 'node:events'
import { SkimmerError } from '../oci/errors.ts'
import type { Negotiated } from './fuse-init.ts'

export interface Inheritance {
  readonly fuse: { readonly fd: number; readonly mountPoint: string; readonly negotiated: Negotiated }
  /** Listening sockets by address (`unix:/PATH`, `tcp:HOST:PORT`): `server.listen({ fd })`. */
  readonly sockets: ReadonlyMap<string, number>
  /** A hot upgrade: the daemon before us serves until `link.prepared()` resolves, the sockets too. */
  readonly handover: boolean
  readonly link: SupervisorLink
}

/** 'stop': stop for good. 'handover': stop as fast as can be, the next daemon waits. 'orphaned': the supervisor died; go on serving. */
export class SupervisorLink extends EventEmitter<{ stop: []; handover: []; orphaned: [] }> {
  readonly #go: Promise<void>

  constructor(waits: boolean) {
    super()
    const { promise, resolve: go } = Promise.withResolvers<void>()
    this.#go = promise
    if (!waits) go()
    process.on('message', (message: { type?: string }) => {
      if (message.type === 'go') go()
      if (message.type === 'stop' || message.type === 'handover') this.emit(message.type)
    })
    process.once('disconnect', () => {
      go()
      this.emit('orphaned')
    })
  }

  /**
   * Call when everything is loaded and checked but nothing is opened that the daemon before us may still hold (the store, the fd's
   * requests). Resolves at once in an ordinary start, in a hot upgrade when the old daemon has ended.
   */
  async prepared(): Promise<void> {
    if (process.connected) process.send?.({ type: 'prepared' })
    await this.#go
  }

  /** Call when reads are answered: a daemon that dies after this is started again at once. */
  serving(): void {
    if (process.connected) process.send?.({ type: 'serving' })
  }

  /** After a hand-over: threads that wait in read(2) let no process exit, so it ends hard. Everything must be closed by now. */
  end(): never {
    process.kill(process.pid, 'SIGKILL')
    // The signal is for ourselves: it arrives before kill returns.
    throw new SkimmerError('INTERNAL', 'SIGKILL did not end this process')
  }
}

/** What the supervisor gave this process; undefined when it was started without one. Call once. */
export function inheritance(environment: NodeJS.ProcessEnv = process.env): Inheritance | undefined {
  const lines = (environment.SKIMMER_KEPT_FDS ?? '').split('\n').filter((line) => line !== '')
  const fds = new Map(lines.map((line) => [line.slice(line.indexOf('=') + 1), Number.parseInt(line, 10)]))
  const fd = fds.get('fuse')
  const mountPoint = environment.SKIMMER_FUSE_MOUNT
  if (fd === undefined || mountPoint === undefined || environment.SKIMMER_FUSE_NEGOTIATED === undefined) return undefined
  fds.delete('fuse')
  const handover = environment.SKIMMER_HANDOVER === '1'
  return { fuse: { fd, mountPoint, negotiated: JSON.parse(environment.SKIMMER_FUSE_NEGOTIATED) as Negotiated }, sockets: fds, handover, link: new SupervisorLink(handover) }
}
