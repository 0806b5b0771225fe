// The exchange protocol's frames: `u32 length, u8 type, u32 request, body`, all numbers big-endian.
import { SkimmerError } from '../oci/errors.ts'

export const EXCHANGE_PROTOCOL = '/skimmer/blocks/1'

/** From the one who asks. */
export const FRAME_REQUEST = 1 // u8 priority, u8 flags, u16 length, resource id, then pairs u32 from, u32 to (exclusive)
export const FRAME_CANCEL = 2 // nothing: no more blocks of this request
export const FRAME_PROMOTE = 3 // nothing: a reader waits for this request now
export const FRAME_GRANT = 4 // a grant token
export const FRAME_INTEREST = 5 // u8 on, resource id: tell me what you have and come to have
export const FRAME_OBJECT_REQUEST = 6 // a digest
/** From the one who serves. */
export const FRAME_BLOCK = 16 // u32 block, packed bytes
export const FRAME_DONE = 17 // the request is answered whole
export const FRAME_ERROR = 18 // JSON {code, message}: the rest of the request is not coming; with request 0 and `resource`: an interest is refused
export const FRAME_OBJECT = 19 // a part of the object, in order; FRAME_DONE ends it
export const FRAME_HAVE = 20 // u16 length, resource id, u8 kind, then as the kind says

export const HAVE_WHOLE = 0 // nothing more: every block
export const HAVE_BITMAP = 1 // bitmap, least significant bit first: replaces what was said before
export const HAVE_MORE = 2 // u32 block, …: these blocks too

export const PRIORITY_BACKGROUND = 0
export const PRIORITY_DEMAND = 1

/** Bytes in front of a block's packed bytes in a frame: length, type, request, block. */
export const BLOCK_HEADER = 13
/** Bytes in front of a frame's body. */
export const FRAME_HEADER = 9
/** The largest frame a server sends: a block of the largest allowed size, 4 MiB for blobs and files, and its header; or a bitmap. */
export const MAX_SERVED_FRAME = 8 * 1024 * 1024
/** The largest frame a server accepts: a grant for a large image. */
export const MAX_ASKED_FRAME = 2 * 1024 * 1024
export const MAX_RANGES = 4096
/** Parts of an object are this long. */
export const OBJECT_PART = 256 * 1024

export interface BlockRange { readonly from: number; readonly to: number }

export function frame(type: number, request: number, body: Uint8Array = new Uint8Array(0)): Buffer {
  const bytes = Buffer.allocUnsafe(FRAME_HEADER + body.length)
  writeHeader(bytes, 0, type, request, body.length)
  bytes.set(body, FRAME_HEADER)
  return bytes
}

export function writeHeader(bytes: Buffer, at: number, type: number, request: number, bodyLength: number): void {
  bytes.writeUInt32BE(5 + bodyLength, at)
  bytes[at + 4] = type
  bytes.writeUInt32BE(request, at + 5)
}

export function writeBlockHeader(bytes: Buffer, at: number, request: number, block: number, packedLength: number): void {
  writeHeader(bytes, at, FRAME_BLOCK, request, 4 + packedLength)
  bytes.writeUInt32BE(block, at + FRAME_HEADER)
}

/** A frame without its length: what the cutter hands on. INVALID_DATA when it is too short to be one. */
export function readFrame(bytes: Buffer): { type: number; request: number; body: Buffer } {
  if (bytes.length < 5) throw new SkimmerError('INVALID_DATA', `a frame of ${bytes.length} bytes is too short`)
  return { type: bytes[0], request: bytes.readUInt32BE(1), body: bytes.subarray(5) }
}

export function requestBody(resource: string, ranges: readonly BlockRange[], priority: number): Buffer {
  const id = Buffer.from(resource, 'latin1')
  const body = Buffer.allocUnsafe(4 + id.length + ranges.length * 8)
  body[0] = priority
  body[1] = 0
  body.writeUInt16BE(id.length, 2)
  id.copy(body, 4)
  let at = 4 + id.length
  for (const range of ranges) {
    body.writeUInt32BE(range.from, at)
    body.writeUInt32BE(range.to, at + 4)
    at += 8
  }
  return body
}

export function readRequest(body: Buffer): { resource: string; priority: number; ranges: BlockRange[] } {
  if (body.length < 4) throw new SkimmerError('INVALID_DATA', 'request: too short')
  const idLength = body.readUInt16BE(2)
  const rest = body.length - 4 - idLength
  if (rest < 8 || rest % 8 !== 0 || rest / 8 > MAX_RANGES) throw new SkimmerError('INVALID_DATA', `request: ${rest} bytes are no list of 1 to ${MAX_RANGES} ranges`)
  const ranges: BlockRange[] = []
  let last = 0
  for (let at = 4 + idLength; at < body.length; at += 8) {
    const from = body.readUInt32BE(at)
    const to = body.readUInt32BE(at + 4)
    // Rising and apart: so a request can never name a block twice.
    if (from < last || to <= from) throw new SkimmerError('INVALID_DATA', `request: range ${from}-${to} is empty or out of order`)
    last = to
    ranges.push({ from, to })
  }
  if (body[0] > PRIORITY_DEMAND) throw new SkimmerError('INVALID_DATA', `request: unknown priority ${body[0]}`)
  return { resource: body.toString('latin1', 4, 4 + idLength), priority: body[0], ranges }
}

export function haveBody(resource: string, kind: number, payload: Uint8Array = new Uint8Array(0)): Buffer {
  const id = Buffer.from(resource, 'latin1')
  const body = Buffer.allocUnsafe(3 + id.length + payload.length)
  body.writeUInt16BE(id.length, 0)
  id.copy(body, 2)
  body[2 + id.length] = kind
  body.set(payload, 3 + id.length)
  return body
}

export function readHave(body: Buffer): { resource: string; kind: number; payload: Buffer } {
  if (body.length < 3) throw new SkimmerError('INVALID_DATA', 'have: too short')
  const idLength = body.readUInt16BE(0)
  if (body.length < 3 + idLength) throw new SkimmerError('INVALID_DATA', 'have: too short')
  const kind = body[2 + idLength]
  const payload = body.subarray(3 + idLength)
  if (kind > HAVE_MORE) throw new SkimmerError('INVALID_DATA', `have: unknown kind ${kind}`)
  if (kind === HAVE_MORE && payload.length % 4 !== 0) throw new SkimmerError('INVALID_DATA', 'have: blocks are cut off')
  return { resource: body.toString('latin1', 2, 2 + idLength), kind, payload }
}

/** One bit a block, least significant first, of the blocks whose state is not 0. */
export function packBitmap(state: Uint8Array): Buffer {
  const bitmap = Buffer.alloc(Math.ceil(state.length / 8))
  for (let block = 0; block < state.length; block++) if (state[block] !== 0) bitmap[block >>> 3] |= 1 << (block & 7)
  return bitmap
}

/** Sorted blocks as ranges. */
export function toRanges(blocks: readonly number[]): BlockRange[] {
  const ranges: { from: number; to: number }[] = []
  for (const block of blocks) {
    const last = ranges.at(-1)
    if (last !== undefined && last.to === block) last.to = block + 1
    else ranges.push({ from: block, to: block + 1 })
  }
  return ranges
}
