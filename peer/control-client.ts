// The node's half of the control protocol: one libp2p stream a call, bounded waits, typed answers.
import type { Libp2p, PeerId, Stream } from '@libp2p/interface'
import type { Multiaddr } from '@multiformats/multiaddr'
import { SkimmerError } from '../oci/errors.ts'
import { CONTROL_MAX_FRAME, CONTROL_OPERATIONS, CONTROL_PROTOCOL, controlReplySchema, describeIssue } from './control.ts'
import type { ControlAnswer, ControlOperation, ControlProgress, ControlRequest } from './control.ts'
import { FrameCutter, jsonFrame, parseJson } from './frames.ts'

export interface ControlCallOptions<O extends ControlOperation> {
  signal?: AbortSignal
  onProgress?: (progress: ControlProgress<O>) => void
  /** Give up after this much silence, milliseconds. Default: the client's. */
  silenceMs?: number
}

/** A connection may take this long, however short the silence allowed after it, milliseconds. */
const DIAL_MS = 5_000
/** Calls to one supernode at the same time: as many as it takes. */
const MAX_CALLS = 256

/** Calls one supernode. Stateless: every call opens a stream on the connection that libp2p keeps. */
export class ControlClient {
  readonly #libp2p: Libp2p
  readonly #peer: PeerId | Multiaddr | Multiaddr[]
  readonly #silenceMs: number

  constructor(components: { libp2p: Libp2p }, options: { peer: PeerId | Multiaddr | Multiaddr[]; silenceMs?: number }) {
    this.#libp2p = components.libp2p
    this.#peer = options.peer
    this.#silenceMs = options.silenceMs ?? 15_000
  }

  /**
   * One call. Errors: what the supernode answers (its code and message); UNAVAILABLE when it cannot be reached or hangs up,
   * TIMEOUT after silence, INVALID_DATA for an answer that does not fit the schema, ABORTED by the caller's signal.
   */
  async call<O extends ControlOperation>(operation: O, request: ControlRequest<O>, options: ControlCallOptions<O> = {}): Promise<ControlAnswer<O>> {
    options.signal?.throwIfAborted()
    const silenceMs = options.silenceMs ?? this.#silenceMs
    const frame = jsonFrame({ op: operation, ...request }, CONTROL_MAX_FRAME)
    let stream: Stream
    try {
      const bound = AbortSignal.timeout(Math.max(silenceMs, DIAL_MS))
      stream = await this.#libp2p.dialProtocol(this.#peer, CONTROL_PROTOCOL, { signal: options.signal ? AbortSignal.any([options.signal, bound]) : bound, maxOutboundStreams: MAX_CALLS })
    } catch (cause) {
      throw failure(operation, cause, options.signal)
    }
    return await new Promise<ControlAnswer<O>>((resolve, reject) => {
      let settled = false
      const settle = (error?: Error, answer?: ControlAnswer<O>): void => {
        if (settled) return
        settled = true
        clearTimeout(timer)
        options.signal?.removeEventListener('abort', onAbort)
        if (error === undefined) {
          resolve(answer as ControlAnswer<O>)
          void closeQuietly(stream)
        } else {
          reject(error)
          stream.abort(error)
        }
      }
      const onAbort = (): void => settle(new SkimmerError('ABORTED', `${operation}: given up by the caller`, { cause: options.signal?.reason }))
      const timer = setTimeout(() => settle(new SkimmerError('TIMEOUT', `${operation}: the supernode said nothing for ${silenceMs} ms`)), silenceMs)
      const cutter = new FrameCutter(CONTROL_MAX_FRAME, body => {
        timer.refresh()
        const reply = controlReplySchema.safeParse(parseJson(body))
        if (!reply.success) throw new SkimmerError('INVALID_DATA', `${operation}: malformed answer: ${describeIssue(reply.error)}`)
        if ('ok' in reply.data) settle(undefined, check(operation, 'answer', reply.data.ok) as ControlAnswer<O>)
        else if ('error' in reply.data) settle(new SkimmerError(reply.data.error.code, reply.data.error.message))
        else if ('progress' in reply.data) options.onProgress?.(check(operation, 'progress', reply.data.progress) as ControlProgress<O>)
      })
      stream.addEventListener('message', event => {
        try {
          if (!settled) cutter.push(event.data)
        } catch (error) {
          settle(error as Error)
        }
      })
      stream.addEventListener('close', event => settle(failure(operation, event.error ?? new Error('the stream closed before an answer came'), options.signal)))
      stream.addEventListener('remoteCloseWrite', () => settle(failure(operation, new Error('the stream closed before an answer came'), options.signal)))
      options.signal?.addEventListener('abort', onAbort, { once: true })
      try {
        stream.send(frame)
      } catch (cause) {
        settle(failure(operation, cause, options.signal))
      }
    })
  }
}

function check<O extends ControlOperation>(operation: O, part: 'answer' | 'progress', value: unknown): unknown {
  const parsed = CONTROL_OPERATIONS[operation][part].safeParse(value)
  if (!parsed.success) throw new SkimmerError('INVALID_DATA', `${operation}: malformed ${part}: ${describeIssue(parsed.error)}`)
  return parsed.data
}

function failure(operation: string, cause: unknown, signal: AbortSignal | undefined): SkimmerError {
  if (cause instanceof SkimmerError) return cause
  if (signal?.aborted) return new SkimmerError('ABORTED', `${operation}: given up by the caller`, { cause: signal.reason })
  return new SkimmerError('UNAVAILABLE', `${operation}: the supernode cannot be reached: ${cause instanceof Error ? cause.message : String(cause)}`, { cause })
}

/** The answer is here: whether the stream still closes well does not matter. */
async function closeQuietly(stream: Stream): Promise<void> {
  try {
    await stream.close()
  } catch (error) {
    stream.abort(error as Error)
  }
}
