// What the mount shows: node ids and names of published layers, disks and images. The same table in the daemon and in every FUSE thread.
import { createHash } from 'node:crypto'
import { SkimmerError } from '../oci/errors.ts'
import type { SharedResource } from '../peer/shared-resource.ts'
import type { NodeId } from './fuse-protocol.ts'
import type { TreeTable } from './tree-table.ts'
import type { VirtualDisk } from './virtual-disk.ts'

/** The three directories of the mount; their node ids follow the root's (1). */
export const ROOMS = ['layers', 'disks', 'images'] as const
export type Room = (typeof ROOMS)[number]

export interface PublishedLayer { readonly room: 'layers'; readonly name: string; readonly resource: SharedResource; readonly touched?: Uint8Array<SharedArrayBuffer>; readonly slot: number }
export interface PublishedDisk { readonly room: 'disks'; readonly name: string; readonly disk: VirtualDisk }
export interface PublishedImage { readonly room: 'images'; readonly name: string; readonly tree: TreeTable }
export type Published = PublishedLayer | PublishedDisk | PublishedImage

/**
 * A node id is 39 bits of the hash of `room/name` and 24 bits of the inode's position in the image (0 for layers and disks). So it means
 * the same to the next daemon, which knows the same names, and needs no state. Ids below 2^24 are the fixed directories.
 */
export type NodeKey = number
const POSITION_BITS = 24
export const MAX_INODES = 2 ** POSITION_BITS

export function nodeKey(room: Room, name: string): NodeKey {
  const hash = createHash('sha256').update(`${room}/${name}`).digest()
  return (hash.readUInt32LE(0) & 0x7fff_ffff) * 256 + hash[4] || 1
}

export const nodeId = (key: NodeKey, position: number): NodeId => ({ high: Math.floor(key / 256), low: (((key % 256) << POSITION_BITS) | position) >>> 0 })
export const keyOf = (high: number, low: number): NodeKey => high * 256 + (low >>> POSITION_BITS)
export const positionOf = (low: number): number => low & (MAX_INODES - 1)

/** Names come from digests and chainIDs, but this is the last gate before the kernel sees them. */
function checkName(room: Room, name: string): void {
  if (!/^[0-9a-zA-Z][0-9a-zA-Z._-]{0,127}$/.test(name)) throw new SkimmerError('INVALID_ARGUMENT', `/${room}/${name}: a name has 1 to 128 letters, digits, dots, dashes or underscores`)
}

export class PublishedTable {
  readonly byKey = new Map<NodeKey, Published>()
  /** Name to key, a map a room, in the order of publishing. */
  readonly names: Record<Room, Map<string, NodeKey>> = { layers: new Map(), disks: new Map(), images: new Map() }
  /** Counts changes: the kernel sees it as the directories' mtime and drops its listing. */
  changes = 0

  put(published: Published): NodeKey {
    checkName(published.room, published.name)
    const key = nodeKey(published.room, published.name)
    const other = this.byKey.get(key)
    if (other !== undefined && (other.room !== published.room || other.name !== published.name)) {
      throw new SkimmerError('CONFLICT', `/${published.room}/${published.name} and /${other.room}/${other.name} have the same node id: withdraw the other first`)
    }
    this.byKey.set(key, published)
    this.names[published.room].set(published.name, key)
    this.changes++
    return key
  }

  remove(room: Room, name: string): boolean {
    const key = this.names[room].get(name)
    if (key === undefined) return false
    this.names[room].delete(name)
    this.byKey.delete(key)
    this.changes++
    return true
  }

  get(room: Room, name: string): Published | undefined {
    const key = this.names[room].get(name)
    return key === undefined ? undefined : this.byKey.get(key)
  }

  layer(name: string): PublishedLayer | undefined {
    const found = this.get('layers', name)
    return found?.room === 'layers' ? found : undefined
  }
}
