// Yamux as libp2p has it, cut for bulk: frames of one encrypted message each, and a word about a window only when half of it is used.
import { type YamuxMuxerInit, yamux } from '@chainsafe/libp2p-yamux'

/** What fits one message of Noise (65535) without its tag and the frame's header. */
const FRAME_BYTES = 65_535 - 16 - 12
/** A reader that keeps up gets this window at once, bytes: while it is busy with something else for some milliseconds, the connection does not idle. */
const LEAST_WINDOW = 1024 * 1024
/** The library's StreamState.Established: both sides know of the stream, and nothing else must go with a window update. */
const ESTABLISHED = 3

/** The library's YamuxStream, where it is bent. */
interface Stream {
  /** Bytes of a frame at most. */
  maxMessageSize: number
  /** Bytes that the remote may have under way, and what is left of them. */
  recvWindow: number
  recvWindowCapacity: number
  readonly state: number
  sendWindowUpdate(): void
}

/** For libp2p's `streamMuxers`. */
export function lightYamux(init: YamuxMuxerInit): ReturnType<typeof yamux> {
  const make = yamux(init)
  return () => {
    const factory = make()
    const create = factory.createStreamMuxer.bind(factory)
    factory.createStreamMuxer = (connection) => {
      const muxer = create(connection)
      const inner = muxer as unknown as { _newStream(...init: unknown[]): Stream }
      const open = inner._newStream.bind(inner)
      inner._newStream = (...init) => forBulk(open(...init))
      return muxer
    }
    return factory
  }
}

/**
 * A frame is read when its last byte has come. The library makes frames as large as the window: half a megabyte of decrypted messages then waits at the other
 * end for the rest, at each connection, until it is old for the collector of garbage. And it answers each frame with a window update, which is a message,
 * a packet and a wake-up of its own.
 */
function forBulk(stream: Stream): Stream {
  let most = stream.maxMessageSize
  Object.defineProperty(stream, 'maxMessageSize', { get: () => Math.min(most, FRAME_BYTES), set: (bytes: number) => { most = bytes } })
  const update = stream.sendWindowUpdate.bind(stream)
  stream.sendWindowUpdate = () => {
    if (stream.state === ESTABLISHED) {
      if (stream.recvWindowCapacity * 2 > stream.recvWindow) return
      stream.recvWindow = Math.max(stream.recvWindow, LEAST_WINDOW)
    }
    update()
  }
  return stream
}
