// Turns one FUSE request into one reply, synchronously and in place; what must wait comes back as a wish. Runs in the FUSE threads.
import fs from 'node:fs'
import { rawLength, blockAt } from '../image/block-table.ts'
import { readSharedSync } from '../peer/shared-resource.ts'
import type { MissingBlocks, SharedResource } from '../peer/shared-resource.ts'
import { TreeView } from './fuse-filesystem.ts'
import {
  ERRNO, finishReply, FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, FOREVER_SECONDS, IN_HEADER, MAX_READ, OP, OUT_HEADER, readU64, ROOT_NODE, S_IFDIR, S_IFMT, S_IFREG,
  WRITE_OPS, writeAttrOut, writeEntry, writeOpenOut, writeStatfs,
} from './fuse-protocol.ts'
import type { Attributes } from './fuse-protocol.ts'
import { DirectoryWriter } from './directory-writer.ts'
import { keyOf, nodeId, positionOf, PublishedTable, ROOMS } from './published.ts'
import type { NodeKey, Published, PublishedLayer, Room } from './published.ts'
import { noteTouch } from './touch-log.ts'
import type { TouchLog } from './touch-log.ts'
import { diskStretches } from './virtual-disk.ts'
import type { Stretch } from './virtual-disk.ts'

/** Blocks that must be brought before a read can be answered. */
export interface Need { readonly resourceId: string; readonly ranges: MissingBlocks[] }

export type Outcome =
  | { readonly kind: 'reply'; readonly length: number }
  | { readonly kind: 'silent' }
  | { readonly kind: 'needs'; readonly needs: Need[]; readonly offset: number; readonly length: number }
  /** A node or name that this daemon does not know yet. */
  | { readonly kind: 'unknown' }
  | { readonly kind: 'interrupt'; readonly unique: bigint }
  /** Replied with an error that someone should hear of. */
  | { readonly kind: 'failed'; readonly length: number; readonly reason: string }

/** Names of layers, disks and images are looked up again after a second, so that a withdrawn one is gone. */
const NAME_VALID_SECONDS = 1
const SILENT: Outcome = { kind: 'silent' }
const UNKNOWN: Outcome = { kind: 'unknown' }

/** Where a node id leads: the root, one of the three directories, or something published. */
type Place = { kind: 'root' } | { kind: 'room'; room: Room } | { kind: 'published'; published: Published; key: NodeKey; position: number }

export class FuseResponder {
  readonly published = new PublishedTable()
  /** Set once everything from before a restart is published again: unknown nodes may be refused. */
  restored = false
  readonly out = Buffer.allocUnsafeSlow(OUT_HEADER + MAX_READ)
  readonly #views = new Map<NodeKey, TreeView>()
  readonly #touches: TouchLog

  constructor(touches: TouchLog) {
    this.#touches = touches
  }

  publish(published: Published): void {
    const key = this.published.put(published)
    if (published.room === 'images') this.#views.set(key, new TreeView(published.tree, key))
  }

  withdraw(room: Room, name: string): void {
    const key = this.published.names[room].get(name)
    if (key !== undefined) this.#views.delete(key)
    this.published.remove(room, name)
  }

  /** Fails the request at the front of `request` with this errno; the reply is in `out`. */
  refuse(request: Buffer, error: number): number {
    request.copy(this.out, 8, 8, 16)
    return finishReply(this.out, error, 0)
  }

  /** `request` holds `length` bytes of one request. The reply, if any, is at the start of `out`. */
  answer(request: Buffer, length: number): Outcome {
    if (length < IN_HEADER) return SILENT
    request.copy(this.out, 8, 8, 16)
    const opcode = request.readUInt32LE(4)
    switch (opcode) {
      case OP.FORGET:
      case OP.BATCH_FORGET:
      case OP.DESTROY:
        return SILENT
      case OP.INTERRUPT:
        return length < IN_HEADER + 8 ? SILENT : { kind: 'interrupt', unique: request.readBigUInt64LE(IN_HEADER) }
      case OP.STATFS:
        return this.#reply(this.#statfs())
      case OP.OPEN:
      case OP.RELEASE:
      case OP.FLUSH:
      case OP.ACCESS:
        // ENOSYS to OPEN makes the kernel open files by itself from then on, keeping its cache: no handles for the next daemon to know.
        return opcode === OP.RELEASE ? this.#reply(0) : this.#error(ERRNO.ENOSYS)
      case OP.RELEASEDIR:
        return this.#reply(0)
      default:
        if (WRITE_OPS.has(opcode)) return this.#error(ERRNO.EROFS)
    }
    const low = request.readUInt32LE(16)
    const high = request.readUInt32LE(20)
    const place = this.#place(high, low)
    if (place === undefined) return this.restored ? this.#error(ERRNO.ESTALE) : UNKNOWN
    switch (opcode) {
      case OP.READ:
      case OP.READDIR:
      case OP.READDIRPLUS:
        if (length < IN_HEADER + 20) return this.#error(ERRNO.EINVAL)
        return opcode === OP.READ ? this.#read(place, request) : this.#readDirectory(place, request, opcode === OP.READDIRPLUS)
      case OP.LOOKUP:
        return this.#lookup(place, nameIn(request, IN_HEADER, length))
      case OP.GETATTR:
        return this.#reply(writeAttrOut(this.out, this.#attributes(place), OUT_HEADER, place.kind === 'published' ? FOREVER_SECONDS : 0))
      case OP.OPENDIR:
        return this.#reply(writeOpenOut(this.out, place.kind === 'published' ? FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR : 0, OUT_HEADER))
      case OP.READLINK:
        return this.#bytes(this.#view(place)?.link(positionIn(place)), ERRNO.EINVAL)
      case OP.GETXATTR:
        if (length < IN_HEADER + 8) return this.#error(ERRNO.EINVAL)
        return this.#sized(this.#view(place)?.xattr(positionIn(place), nameIn(request, IN_HEADER + 8, length)), request.readUInt32LE(IN_HEADER))
      case OP.LISTXATTR:
        if (length < IN_HEADER + 8) return this.#error(ERRNO.EINVAL)
        return this.#sized(this.#xattrNames(place), request.readUInt32LE(IN_HEADER))
      default:
        return this.#error(ERRNO.ENOSYS)
    }
  }

  #reply(bodyLength: number): Outcome {
    return { kind: 'reply', length: finishReply(this.out, 0, bodyLength) }
  }

  #error(error: number): Outcome {
    return { kind: 'reply', length: finishReply(this.out, error, 0) }
  }

  #fail(reason: string): Outcome {
    return { kind: 'failed', length: finishReply(this.out, ERRNO.EIO, 0), reason }
  }

  #bytes(bytes: Uint8Array | undefined, missing: number): Outcome {
    if (bytes === undefined) return this.#error(missing)
    this.out.set(bytes, OUT_HEADER)
    return this.#reply(bytes.length)
  }

  /** Answers to xattr calls: size 0 asks how long the value is (`struct fuse_getxattr_out`). */
  #sized(bytes: Uint8Array | undefined, room: number): Outcome {
    if (bytes === undefined) return this.#error(ERRNO.ENODATA)
    if (room === 0) {
      this.out.writeUInt32LE(bytes.length, OUT_HEADER)
      this.out.writeUInt32LE(0, OUT_HEADER + 4)
      return this.#reply(8)
    }
    return bytes.length > room || bytes.length > MAX_READ ? this.#error(ERRNO.ERANGE) : this.#bytes(bytes, 0)
  }

  #xattrNames(place: Place): Uint8Array {
    const view = this.#view(place)
    if (view === undefined) return new Uint8Array()
    const zero = Uint8Array.of(0)
    return Buffer.concat([...view.xattrs(positionIn(place))].flatMap(({ name }) => [name, zero]))
  }

  #statfs(): number {
    let bytes = 0
    for (const published of this.published.byKey.values()) if (published.room === 'layers') bytes += rawLength(published.resource.table)
    return writeStatfs(this.out, bytes, this.published.byKey.size, OUT_HEADER)
  }

  #place(high: number, low: number): Place | undefined {
    if (high === 0 && low < 256) {
      if (low === ROOT_NODE) return { kind: 'root' }
      const room = ROOMS[low - ROOT_NODE - 1]
      return room === undefined ? undefined : { kind: 'room', room }
    }
    const key = keyOf(high, low)
    const published = this.published.byKey.get(key)
    const position = positionOf(low)
    if (published === undefined || (published.room === 'images' ? position >= published.tree.inodes : position !== 0)) return undefined
    return { kind: 'published', published, key, position }
  }

  #view(place: Place): TreeView | undefined {
    return place.kind === 'published' ? this.#views.get(place.key) : undefined
  }

  #attributes(place: Place): Attributes {
    if (place.kind === 'published') return this.#publishedAttributes(place.published, place.key, place.position)
    const low = place.kind === 'root' ? ROOT_NODE : ROOT_NODE + 1 + ROOMS.indexOf(place.room)
    return {
      node: { high: 0, low }, size: 0, mtimeSeconds: this.published.changes, mtimeNanos: 0, mode: S_IFDIR | (place.kind === 'root' ? 0o755 : 0o700),
      nlink: place.kind === 'root' ? 2 + ROOMS.length : 2, uid: 0, gid: 0, rdev: 0,
    }
  }

  #publishedAttributes(published: Published, key: NodeKey, position: number): Attributes {
    if (published.room === 'images') return (this.#views.get(key) as TreeView).attributes(position)
    const size = published.room === 'layers' ? rawLength(published.resource.table) : published.disk.length
    return { node: nodeId(key, 0), size, mtimeSeconds: 0, mtimeNanos: 0, mode: S_IFREG | 0o400, nlink: 1, uid: 0, gid: 0, rdev: 0 }
  }

  #entry(attributes: Attributes, validSeconds: number, attributeSeconds: number): Outcome {
    return this.#reply(writeEntry(this.out, attributes, OUT_HEADER, validSeconds, attributeSeconds))
  }

  #lookup(place: Place, name: Uint8Array): Outcome {
    const text = Buffer.from(name.buffer, name.byteOffset, name.length).toString('latin1')
    if (text === '.') return this.#entry(this.#attributes(place), FOREVER_SECONDS, place.kind === 'published' ? FOREVER_SECONDS : 0)
    if (place.kind === 'root') {
      const room = ROOMS.find((one) => one === text)
      return room === undefined ? this.#error(ERRNO.ENOENT) : this.#entry(this.#attributes({ kind: 'room', room }), FOREVER_SECONDS, 0)
    }
    if (text === '..') return this.#entry(this.#attributes(this.#parent(place)), FOREVER_SECONDS, 0)
    if (place.kind === 'room') {
      const key = this.published.names[place.room].get(text)
      const published = key === undefined ? undefined : this.published.byKey.get(key)
      if (key === undefined || published === undefined) return this.restored ? this.#error(ERRNO.ENOENT) : UNKNOWN
      return this.#entry(this.#publishedAttributes(published, key, 0), NAME_VALID_SECONDS, FOREVER_SECONDS)
    }
    const view = this.#view(place)
    if (view === undefined) return this.#error(ERRNO.ENOTDIR)
    const child = view.child(place.position, name)
    return child < 0 ? this.#error(ERRNO.ENOENT) : this.#entry(view.attributes(child), FOREVER_SECONDS, FOREVER_SECONDS)
  }

  #parent(place: Place): Place {
    if (place.kind !== 'published') return { kind: 'root' }
    const view = this.#view(place)
    if (view === undefined || place.position === 0) return { kind: 'room', room: place.published.room }
    return { ...place, position: view.parent(place.position) }
  }

  #readDirectory(place: Place, request: Buffer, plus: boolean): Outcome {
    const position = readU64(request, IN_HEADER + 8)
    const writer = new DirectoryWriter(this.out, OUT_HEADER, Math.min(request.readUInt32LE(IN_HEADER + 16), MAX_READ), position, plus)
    const view = this.#view(place)
    const attributes = this.#attributes(place)
    if ((attributes.mode & S_IFMT) !== S_IFDIR) return this.#error(ERRNO.ENOTDIR)
    if (place.kind === 'room' && !this.restored) return UNKNOWN
    writer.dots(attributes, this.#attributes(this.#parent(place)))
    if (view !== undefined) {
      const directory = positionIn(place)
      const count = view.entryCount(directory)
      for (let index = writer.first; index < count; index++) {
        const { name, position } = view.entry(directory, index)
        if (!writer.entry(index, name, view.attributes(position), FOREVER_SECONDS, FOREVER_SECONDS)) break
      }
    } else if (place.kind === 'room') {
      const names = [...this.published.names[place.room]]
      for (let index = writer.first; index < names.length; index++) {
        const [name, key] = names[index]
        const published = this.published.byKey.get(key) as Published
        if (!writer.entry(index, Buffer.from(name, 'latin1'), this.#publishedAttributes(published, key, 0), NAME_VALID_SECONDS, FOREVER_SECONDS)) break
      }
    } else {
      for (let index = writer.first; index < ROOMS.length; index++) {
        if (!writer.entry(index, Buffer.from(ROOMS[index]), this.#attributes({ kind: 'room', room: ROOMS[index] }), FOREVER_SECONDS, 0)) break
      }
    }
    return this.#reply(writer.length)
  }

  #read(place: Place, request: Buffer): Outcome {
    if (place.kind !== 'published') return this.#error(ERRNO.EISDIR)
    const offset = readU64(request, IN_HEADER + 8)
    const length = Math.min(request.readUInt32LE(IN_HEADER + 16), MAX_READ)
    const { published } = place
    if (published.room === 'layers') {
      const got = this.#readLayer(published, offset, length, OUT_HEADER)
      return typeof got === 'number' ? this.#reply(got) : { kind: 'needs', needs: [{ resourceId: published.resource.id, ranges: got }], offset, length }
    }
    if (published.room === 'disks') return this.#readStretches(diskStretches(published.disk, offset, length), offset, length)
    const view = this.#views.get(place.key) as TreeView
    if ((view.mode(place.position) & S_IFMT) !== S_IFREG) return this.#error(view.isDirectory(place.position) ? ERRNO.EISDIR : ERRNO.EINVAL)
    return this.#readStretches(view.stretches(place.position, offset, length), offset, length)
  }

  #readStretches(stretches: Stretch[], offset: number, length: number): Outcome {
    const needs: Need[] = []
    let at = OUT_HEADER
    for (const stretch of stretches) {
      if (stretch.kind === 'zero') this.out.fill(0, at, at + stretch.length)
      else if (stretch.kind === 'file') {
        const got = fs.readSync(stretch.fd, this.out, at, stretch.length, stretch.offset)
        if (got !== stretch.length) return this.#fail(`the metadata file ended after ${stretch.offset + got} bytes; it was cut off`)
      } else {
        const layer = this.published.layer(stretch.layer)
        if (layer === undefined) return this.restored ? this.#fail(`layer ${stretch.layer} is not published`) : UNKNOWN
        const got = this.#readLayer(layer, stretch.offset, stretch.length, at)
        if (typeof got !== 'number') needs.push({ resourceId: layer.resource.id, ranges: got })
        // The last 512 bytes may lie behind a stream that does not end on a block's border: zeros, as in any file's tail.
        else if (got < stretch.length) this.out.fill(0, at + got, at + stretch.length)
      }
      at += stretch.length
    }
    return needs.length > 0 ? { kind: 'needs', needs, offset, length } : this.#reply(at - OUT_HEADER)
  }

  #readLayer(layer: PublishedLayer, offset: number, length: number, at: number): number | MissingBlocks[] {
    if (layer.touched !== undefined) this.#touch(layer.resource, layer.touched, layer.slot, offset, length)
    return readSharedSync(layer.resource, offset, length, this.out, at)
  }

  #touch(resource: SharedResource, touched: Uint8Array<SharedArrayBuffer>, slot: number, offset: number, length: number): void {
    const { table } = resource
    const first = blockAt(table, offset)
    if (first < 0) return
    for (let block = first; block < table.count && table.rawOffsets[block] < offset + length; block++) noteTouch(this.#touches, touched, slot, block)
  }
}

const positionIn = (place: Place): number => (place.kind === 'published' ? place.position : 0)

/** A zero-terminated name at `at`, at most to the request's end. */
function nameIn(request: Buffer, at: number, length: number): Uint8Array {
  const end = request.indexOf(0, at)
  return request.subarray(at, end < 0 || end > length ? length : end)
}
