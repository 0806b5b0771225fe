// The supernode's half of the control protocol: validates requests, runs typed handlers, frames what they answer.
import type { Connection, Libp2p, Stream } from '@libp2p/interface'
import type { Logger } from 'pino'
import { SkimmerError } from '../oci/errors.ts'
import { CONTROL_MAX_FRAME, CONTROL_OPERATIONS, CONTROL_PROTOCOL, describeIssue } from './control.ts'
import type { ControlAnswer, ControlOperation, ControlProgress, ControlRequest } from './control.ts'
import { FrameCutter, drained, jsonFrame, parseJson, sendAll } from './frames.ts'

export interface ControlCall<O extends ControlOperation> {
  /** Peer id of the caller: noise has authenticated it. */
  readonly remote: string
  /** Where the connection comes from, as a multiaddr string. */
  readonly address: string
  /** Aborted when the caller hangs up or the server stops. */
  readonly signal: AbortSignal
  /** Send a progress frame (for `events`: an event). Never throws; after the caller hung up it does nothing. */
  progress(progress: ControlProgress<O>): void
  /** Undefined while the caller's stream takes more; else a promise for when it does: who tells much waits, or a slow caller fills memory. Rejects when he hangs up. */
  drained(): Promise<void> | undefined
}
export type ControlHandlers = { [O in ControlOperation]: (request: ControlRequest<O>, call: ControlCall<O>) => Promise<ControlAnswer<O>> }

export interface ServeControlOptions {
  /** How often a caller that waits is told that work goes on, milliseconds. Must be well under the client's silenceMs. Default 3,000. */
  aliveMs?: number
  /** A caller must send its whole request within this time, milliseconds. Default 10,000. */
  requestMs?: number
  /** Calls one connection may have in flight. Default 256. */
  maxCalls?: number
}

/**
 * Serves the control protocol. A handler's SkimmerError goes to the caller with its code and message; any other error is
 * logged here and reaches the caller as INTERNAL without its text. Resolves with a function that stops serving.
 */
export async function serveControl(components: { libp2p: Libp2p; logger: Logger }, handlers: ControlHandlers, options: ServeControlOptions = {}): Promise<() => Promise<void>> {
  const { libp2p, logger } = components
  const open = new Map<Stream, AbortController>()
  await libp2p.handle(CONTROL_PROTOCOL, (stream, connection) => {
    const controller = new AbortController()
    open.set(stream, controller)
    stream.addEventListener('close', () => {
      open.delete(stream)
      controller.abort(new SkimmerError('ABORTED', 'the caller hung up'))
    })
    serveCall(stream, connection, handlers, logger, controller, options)
  }, { maxInboundStreams: options.maxCalls ?? 256, force: true })
  return async () => {
    await libp2p.unhandle(CONTROL_PROTOCOL)
    for (const [stream, controller] of open) {
      const error = new SkimmerError('UNAVAILABLE', 'the supernode is stopping')
      controller.abort(error)
      stream.abort(error)
    }
  }
}

function serveCall(stream: Stream, connection: Connection, handlers: ControlHandlers, logger: Logger, controller: AbortController, options: ServeControlOptions): void {
  const remote = connection.remotePeer.toString()
  const late = setTimeout(() => stream.abort(new SkimmerError('TIMEOUT', 'no complete request arrived in time')), options.requestMs ?? 10_000)
  let asked = false
  const cutter = new FrameCutter(CONTROL_MAX_FRAME, body => {
    clearTimeout(late)
    if (asked) throw new SkimmerError('INVALID_DATA', 'a second request on one stream')
    asked = true
    void answer(body)
  })
  stream.addEventListener('message', event => {
    try {
      cutter.push(event.data)
    } catch (error) {
      logger.warn({ remote, err: error }, 'control: malformed request')
      stream.abort(error as Error)
    }
  })
  stream.addEventListener('close', () => clearTimeout(late))
  // A caller closes its end only when it has its answer or wants none: yamux has no other word for hanging up kindly.
  stream.addEventListener('remoteCloseWrite', () => {
    controller.abort(new SkimmerError('ABORTED', 'the caller hung up'))
    stream.close().catch(() => { /* already gone */ })
  })

  function send(frame: object): void {
    if (stream.writeStatus !== 'writable') return
    try {
      stream.send(jsonFrame(frame, CONTROL_MAX_FRAME))
    } catch (error) {
      logger.debug({ remote, err: error }, 'control: a frame could not be sent')
    }
  }

  async function answer(body: Buffer): Promise<void> {
    const alive = setInterval(() => send({ alive: true }), options.aliveMs ?? 3_000)
    let operation = 'unknown operation'
    try {
      const message = parseJson(body) as { op?: unknown } | null
      if (typeof message?.op !== 'string' || !Object.hasOwn(CONTROL_OPERATIONS, message.op)) throw new SkimmerError('INVALID_ARGUMENT', 'op: this supernode does not know the operation')
      operation = message.op
      const request = CONTROL_OPERATIONS[operation as ControlOperation].request.safeParse(message)
      if (!request.success) throw new SkimmerError('INVALID_ARGUMENT', `${operation}: ${describeIssue(request.error)}`)
      // The schema of `operation` has just checked this request; TypeScript cannot follow the pairing through the table.
      const handler = handlers[operation as ControlOperation] as (request: unknown, call: ControlCall<ControlOperation>) => Promise<unknown>
      const ok = await handler(request.data, { remote, address: connection.remoteAddr.toString(), signal: controller.signal, progress: progress => send({ progress }), drained: () => (stream.writableNeedsDrain ? drained(stream, controller.signal) : undefined) })
      clearInterval(alive)
      if (stream.writeStatus !== 'writable') return
      await sendAll(stream, jsonFrame({ ok: ok ?? {} }, CONTROL_MAX_FRAME), controller.signal)
    } catch (error) {
      clearInterval(alive)
      if (controller.signal.aborted) return
      if (!(error instanceof SkimmerError)) logger.error({ remote, operation, err: error }, 'control: a handler failed')
      send({ error: error instanceof SkimmerError ? { code: error.code, message: error.message.slice(0, 4096) } : { code: 'INTERNAL', message: `${operation}: the supernode failed; its log says why` } })
    } finally {
      stream.close().catch(() => { /* the caller is gone */ })
    }
  }
}
