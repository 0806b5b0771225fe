// Yamux as libp2p has it, cut for bulk: frames of one encrypted message each, and a word about a window only when half of it is used.
import { type YamuxMuxerInit, yamux } from '@chainsafe/libp2p-yamux'
import { Uint8ArrayList } from 'uint8arraylist'
import { SkimmerError } from '../oci/errors.ts'
import { type Bytes, type Layer, handOn } from './short-cuts.ts'
import { spendBytes } from './spent-buffers.ts'

/** A frame's header: u8 version, u8 type, u16 flags, u32 stream, u32 length; github.com/hashicorp/yamux/blob/master/spec.md. */
const HEADER_BYTES = 12
const TYPE_DATA = 0

/** What fits one message of Noise (65535) without its tag and the frame's header. */
const FRAME_BYTES = 65_535 - 16 - HEADER_BYTES
/** A reader that keeps up gets this window at once, bytes: while it is busy with something else for some milliseconds, the connection does not idle. */
const LEAST_WINDOW = 1024 * 1024
/** The library's own largest window, bytes. */
const MOST_WINDOW = 16 * 1024 * 1024
/** The library's StreamState.Established: both sides know of the stream, and nothing else must go with a window update. */
const ESTABLISHED = 3

interface Header { readonly type: number; readonly flag: number; readonly streamID: number; readonly length: number }

/** The library's YamuxMuxer, where it is bent. */
interface Muxer {
  readonly decoder: { readonly buffer: { readonly byteLength: number } }
  readonly streams: readonly Stream[]
  _newStream(...init: unknown[]): Stream
  onData(data: Bytes): void
  sendFrame(header: Header, data?: Bytes): boolean
  send(data: Bytes): boolean
  abort(error: Error): void
}

/** The library's YamuxStream, where it is bent. */
interface Stream {
  readonly streamId: number
  /** Bytes of a frame at most. */
  maxMessageSize: number
  /** Bytes that the remote may have under way, and what is left of them. */
  recvWindow: number
  recvWindowCapacity: number
  readonly state: number
  sendWindowCapacity: number
  sendWindowUpdate(): void
  getSendFlags(): number
  sendFrame(header: Header, data?: Bytes): boolean
  sendData(data: Bytes): { sentBytes: number; canSendMore: boolean }
  handleData(frame: { header: Header; data: Bytes }): void
}

/** For libp2p's `streamMuxers`. */
export function lightYamux(init: YamuxMuxerInit): ReturnType<typeof yamux> {
  const make = yamux(init)
  return () => {
    const factory = make()
    const create = factory.createStreamMuxer.bind(factory)
    factory.createStreamMuxer = (connection) => {
      const muxer = create(connection)
      const inner = muxer as unknown as Muxer
      const open = inner._newStream.bind(inner)
      inner._newStream = (...init) => forBulk(open(...init))
      sendLightly(inner)
      readLightly(inner, HEADER_BYTES + (init.streamOptions?.maxStreamWindowSize ?? MOST_WINDOW))
      const layer = connection as unknown as Layer
      handOn(layer, (data) => {
        try {
          inner.onData(data)
        } catch (error) {
          inner.abort(error as Error)
          layer.abort(error as Error)
        }
      })
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
  const inParts = stream.sendData.bind(stream)
  stream.sendData = (data) => {
    const length = data.byteLength
    if (length > stream.sendWindowCapacity) return inParts(data)
    const canSendMore = stream.sendFrame({ type: TYPE_DATA, flag: stream.getSendFlags(), streamID: stream.streamId, length }, data)
    stream.sendWindowCapacity -= length
    return { sentBytes: length, canSendMore }
  }
  return stream
}

/**
 * Data frames that lie whole in what comes, without flags, go to their streams as they are; all else, and a frame in two parts, goes the library's way. There
 * parts wait for the rest of what the header promises, up to 4 GiB, and only then the window is looked at: `mostWaiting`, bytes, is the end of that.
 */
function readLightly(muxer: Muxer, mostWaiting: number): void {
  const later = muxer.onData.bind(muxer)
  muxer.onData = (data) => {
    if (!(data instanceof Uint8Array) || muxer.decoder.buffer.byteLength > 0) return whole(data)
    let at = 0
    while (data.length - at > HEADER_BYTES) {
      // Version 0, data, no flags: zeros.
      if (data[at] !== 0 || data[at + 1] !== TYPE_DATA || data[at + 2] !== 0 || data[at + 3] !== 0) break
      const header: Header = { type: TYPE_DATA, flag: 0, streamID: uint32(data, at + 4), length: uint32(data, at + 8) }
      const from = at + HEADER_BYTES
      const to = from + header.length
      const stream = muxer.streams.find(({ streamId }) => streamId === header.streamID)
      if (to > data.length || stream === undefined) break
      spendBytes(data, HEADER_BYTES)
      stream.handleData({ header, data: data.subarray(from, to) })
      at = to
    }
    if (at < data.length) whole(at === 0 ? data : data.subarray(at))
  }
  function whole(data: Bytes): void {
    later(data)
    if (muxer.decoder.buffer.byteLength > mostWaiting) throw new SkimmerError('LIMIT_EXCEEDED', `a frame of more than ${mostWaiting} bytes: no window is as large`)
  }
}

const uint32 = (bytes: Uint8Array, at: number): number => bytes[at] * 2 ** 24 + (bytes[at + 1] << 16) + (bytes[at + 2] << 8) + bytes[at + 3]

/** The library describes each frame for a log that nobody reads. */
function sendLightly(muxer: Muxer): void {
  const other = muxer.sendFrame.bind(muxer)
  muxer.sendFrame = (header, data) => {
    if (header.type !== TYPE_DATA || data === undefined) return other(header, data)
    const bytes = Buffer.allocUnsafe(HEADER_BYTES)
    bytes.writeUInt32BE(header.flag, 0)
    bytes.writeUInt32BE(header.streamID, 4)
    bytes.writeUInt32BE(header.length, 8)
    return muxer.send(new Uint8ArrayList(bytes, data as Uint8Array))
  }
}
