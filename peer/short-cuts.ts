// The layers of a libp2p connection hand bytes to each other by calls, as long as nothing waits; the library does it by a buffer, a list and an event for each.
import type { Stream } from '@libp2p/interface'

/** What layers hand on: bytes, or a list of them. */
export type Bytes = Uint8Array | (Iterable<Uint8Array> & { readonly byteLength: number })

/** AbstractMessageStream of @libp2p/utils, which socket, encrypted connection and stream of a muxer are, where it is bent. */
export interface Layer {
  readonly status: string
  readonly readStatus: string
  readonly remoteWriteStatus: string
  readonly writeStatus: string
  readonly readBuffer: { readonly byteLength: number }
  readonly writeBuffer: { readonly byteLength: number }
  readonly sendingData: boolean
  writableNeedsDrain: boolean
  /** The layer below brings bytes. */
  onData(data: Bytes): void
  /** The layer above sends bytes; false when it should wait for 'drain'. */
  send(data: Bytes): boolean
  abort(error: Error): void
}

/**
 * What comes is given to `take` at once. What waits, comes while the layer is paused or as it ends, goes the library's way, in order; there a listener for
 * 'message' gets it, who is the same as `take`.
 */
export function handOn(layer: Layer, take: (data: Bytes) => void): void {
  const later = layer.onData.bind(layer)
  layer.onData = (data) => {
    if (layer.readStatus === 'readable' && layer.status === 'open' && layer.remoteWriteStatus === 'writable' && layer.readBuffer.byteLength === 0 && data.byteLength > 0) take(data)
    else later(data)
  }
}

/** Nothing that was sent before waits, and there is room. */
export const sendsNow = (layer: Layer): boolean => layer.writeStatus === 'writable' && !layer.writableNeedsDrain && !layer.sendingData && layer.writeBuffer.byteLength === 0

/** What is sent is given to `give` at once, which answers whether there is room for more. What comes when there is none waits as in the library. */
export function sendOn(layer: Layer, give: (data: Bytes) => boolean): void {
  const later = layer.send.bind(layer)
  layer.send = (data) => {
    if (!sendsNow(layer) || data.byteLength === 0) return later(data)
    if (give(data)) return true
    layer.writableNeedsDrain = true
    return false
  }
}

/** Reads all that comes over a muxer's stream. `take` must not throw. */
export function readAll(stream: Stream, take: (data: Bytes) => void): void {
  handOn(stream as unknown as Layer, take)
  stream.addEventListener('message', ({ data }) => take(data))
}
