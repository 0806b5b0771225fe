// The FUSE handshake: the kernel says INIT once per connection, so whoever opened /dev/fuse answers it and remembers what was agreed.
import { randomUUID } from 'node:crypto'
import fs from 'node:fs'
import { IN_HEADER, INIT, INIT2, MAX_PAGES, MAX_READ, MAX_WRITE, OP, OUT_HEADER, REQUEST_BUFFER } from './fuse-protocol.ts'

/** What kernel and daemon agreed on; plain JSON, handed from daemon to daemon. */
export interface Negotiated {
  readonly major: number
  readonly minor: number
  /** Bytes of the largest read the kernel may send. */
  readonly maxRead: number
  /** Kernel 6.9 and up: unanswered requests of a dead daemon can be had again. */
  readonly resend: boolean
  readonly flags: number
  readonly flags2: number
  /** Names this connection and no other, ever: what was mounted over another one is dead. */
  readonly connection: string
}

const WANTED = INIT.ASYNC_READ | INIT.EXPORT_SUPPORT | INIT.DO_READDIRPLUS | INIT.READDIRPLUS_AUTO | INIT.PARALLEL_DIROPS | INIT.POSIX_ACL |
  INIT.MAX_PAGES | INIT.CACHE_SYMLINKS | INIT.EXPLICIT_INVAL_DATA | INIT.NO_OPEN_SUPPORT | INIT.INIT_EXT
const WANTED2 = INIT2.HAS_RESEND
/** Readahead requests the kernel keeps in flight; its default of 12 starves a slow source. */
const MAX_BACKGROUND = 512

/** Pure: the reply to an INIT request, or an error message. */
export function answerInit(request: Buffer): { reply: Buffer; negotiated: Negotiated } | { error: string } {
  if (request.length < IN_HEADER + 16 || request.readUInt32LE(4) !== OP.INIT) return { error: 'the kernel\'s first FUSE request is not INIT' }
  const major = request.readUInt32LE(IN_HEADER)
  const minor = request.readUInt32LE(IN_HEADER + 4)
  if (major !== 7 || minor < 31) return { error: `the kernel speaks FUSE ${major}.${minor}; 7.31 (Linux 5.4) or newer is needed` }
  const offered = request.readUInt32LE(IN_HEADER + 12)
  const offered2 = (offered & INIT.INIT_EXT) !== 0 && request.length >= IN_HEADER + 20 ? request.readUInt32LE(IN_HEADER + 16) : 0
  const flags = (offered & WANTED) >>> 0
  const flags2 = (offered2 & WANTED2) >>> 0
  const reply = Buffer.alloc(OUT_HEADER + 64)
  reply.writeUInt32LE(reply.length, 0)
  request.copy(reply, 8, 8, 16)
  reply.writeUInt32LE(7, 16)
  reply.writeUInt32LE(Math.min(minor, 45), 20)
  reply.writeUInt32LE(MAX_READ, 24)
  reply.writeUInt32LE(flags, 28)
  reply.writeUInt16LE(MAX_BACKGROUND, 32)
  reply.writeUInt16LE(MAX_BACKGROUND, 34)
  reply.writeUInt32LE(MAX_WRITE, 36)
  reply.writeUInt32LE(1, 40)
  reply.writeUInt16LE(MAX_PAGES, 44)
  reply.writeUInt32LE(flags2, 48)
  const maxRead = (flags & INIT.MAX_PAGES) !== 0 ? MAX_READ : 128 * 1024
  return { reply, negotiated: { major, minor, maxRead, resend: (flags2 & INIT2.HAS_RESEND) !== 0, flags, flags2, connection: randomUUID() } }
}

/** Answer INIT on a freshly mounted connection. The request is already waiting, so this does not block. Throws plain errors: it runs in the supervisor. */
export function negotiate(fd: number): Negotiated {
  const buffer = Buffer.alloc(REQUEST_BUFFER)
  const length = fs.readSync(fd, buffer, 0, buffer.length, null)
  const answer = answerInit(buffer.subarray(0, length))
  if ('error' in answer) throw new Error(`FUSE handshake failed: ${answer.error}`)
  fs.writeSync(fd, answer.reply)
  return answer.negotiated
}
