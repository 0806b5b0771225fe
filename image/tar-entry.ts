// One tar member with all that describes it (header, pax records, GNU long names) folded into one file entry.
import { SkimmerError } from '../oci/errors.ts'
import type { FileEntry, FileType } from './layer-index.ts'
import { decimal, paxTime, paxXattrs } from './pax.ts'
import type { PaxRecords } from './pax.ts'
import { invalidTar } from './tar-header.ts'
import type { TarHeader } from './tar-header.ts'
import { checkPathLength, cleanPath, MAX_NAME_LENGTH, MAX_PATH_LENGTH } from './tar-path.ts'

const TYPES: Readonly<Record<string, FileType>> = {
  '\0': 'file', '0': 'file', '7': 'file', S: 'file', '1': 'hardlink', '2': 'symlink', '3': 'char', '4': 'block', '5': 'dir', '6': 'fifo',
}
/** Far beyond what a filesystem keeps (containerd shows such times as 1970), and small enough to take differences of exactly. */
export const TIME_LIMIT = 2 ** 50
const OWNERS = 2 ** 32
/** Linux gives mknod(2) 12 bits of major and 20 of minor. */
export const MAX_MAJOR = 0xfff
export const MAX_MINOR = 0xfffff
/** XATTR_SIZE_MAX */
export const MAX_XATTR_VALUE = 65_536

export interface Member {
  /** Of the member's own header block in the stream. */
  readonly offset: number
  readonly header: TarHeader
  readonly records: PaxRecords
  /** '' when there is none. */
  readonly longName: string
  readonly longLink: string
}

/** The name as the tar has it: GNU long names win over pax records, these over the header. */
export const memberName = ({ header, records, longName }: Member): string => longName || records.get('path') || header.name

/** UNSUPPORTED for types that containerd's unpack refuses as well. */
export function memberType(member: Member): FileType {
  const { typeflag } = member.header
  if (typeflag === '\0' && memberName(member).endsWith('/')) return 'dir'
  const type = TYPES[typeflag]
  if (type === undefined) throw new SkimmerError('UNSUPPORTED', `tar: the entry at byte ${member.offset} has the unknown type ${JSON.stringify(typeflag)}`)
  return type
}

/** Bytes of data in the stream: 0 for all but files, whatever a size field says. */
export function memberDataLength(member: Member, type: FileType): number {
  const size = paxNumber(member.records, 'size', member.header.size, member.offset)
  if (type !== 'file') return 0
  if (size < 0 || member.header.size < 0) throw invalidTar('an entry has a negative size', member.offset)
  return size
}

/** What of an entry the member alone does not say: where its data lies, and a sparse file's own name, size and extents. */
export interface Placement {
  readonly offset: number
  readonly size: number
  readonly name: string | undefined
  readonly extents: FileEntry['extents']
}

/** undefined for a non-directory that resolves to the root: containerd passes over it. */
export function fileEntry(member: Member, type: FileType, place: Placement): FileEntry | undefined {
  const { header, records, offset } = member
  const path = cleanPath(place.name ?? memberName(member))
  if (path === '' && type !== 'dir') return undefined
  checkPathLength(path, `tar: the path of the entry at byte ${offset}`)
  const time = mtime(member)
  const isDevice = type === 'char' || type === 'block'
  const entry: FileEntry = {
    path,
    type,
    mode: lowBits(header.mode, 0o10000, 'mode', offset),
    uid: owner(paxNumber(records, 'uid', header.uid, offset), offset),
    gid: owner(paxNumber(records, 'gid', header.gid, offset), offset),
    mtimeSeconds: time.seconds,
    mtimeNanos: time.nanos,
    size: type === 'file' ? place.size : 0,
    offset: type === 'file' ? place.offset : 0,
    link: linkTarget(member, type),
    major: isDevice ? header.major & MAX_MAJOR : 0,
    minor: isDevice ? header.minor & MAX_MINOR : 0,
    xattrs: records.size === 0 ? NO_XATTRS : xattrs(records, offset),
  }
  return place.extents === undefined ? entry : { ...entry, extents: place.extents }
}

const NO_XATTRS: FileEntry['xattrs'] = []

function xattrs(records: PaxRecords, offset: number): FileEntry['xattrs'] {
  const found = paxXattrs(records)
  for (const [name, value] of found) {
    if (name === '' || name.length > MAX_NAME_LENGTH || value.length > MAX_XATTR_VALUE) {
      throw new SkimmerError('UNSUPPORTED', `tar: the entry at byte ${offset} has an extended attribute with a name of ${name.length} and a value of ${value.length} bytes; Linux takes 1 to ${MAX_NAME_LENGTH} and up to ${MAX_XATTR_VALUE}`)
    }
  }
  return found.length === 0 ? NO_XATTRS : found
}

function linkTarget({ header, records, longLink, offset }: Member, type: FileType): string {
  if (type !== 'symlink' && type !== 'hardlink') return ''
  const written = longLink || records.get('linkpath') || header.linkname
  if (type === 'hardlink') {
    const path = cleanPath(written)
    checkPathLength(path, `tar: the link target of the entry at byte ${offset}`)
    return path
  }
  if (written === '' || written.length > MAX_PATH_LENGTH) {
    throw new SkimmerError('UNSUPPORTED', `tar: the symlink at byte ${offset} has a target of ${written.length} bytes; Linux takes 1 to ${MAX_PATH_LENGTH}`)
  }
  return written
}

function mtime({ header, records, offset }: Member): { seconds: number; nanos: number } {
  const text = records.get('mtime') ?? ''
  const time = text === '' ? { seconds: header.mtime, nanos: 0 } : paxTime(text)
  if (time === undefined) throw invalidTar('the mtime of an entry is not a number', offset)
  if (Math.abs(time.seconds) < TIME_LIMIT) return time
  return { seconds: time.seconds < 0 ? -TIME_LIMIT : TIME_LIMIT, nanos: 0 }
}

/** What chown(2) makes of a number: its low 32 bits, and -1 changes nothing, so that root keeps the file. */
function owner(value: number, offset: number): number {
  const low = lowBits(value, OWNERS, 'owner', offset)
  return low === OWNERS - 1 ? 0 : low
}

/** The bits below `range` (a power of two), two's complement. The number must not have been saturated on its way here. */
function lowBits(value: number, range: number, what: string, offset: number): number {
  if (Math.abs(value) >= Number.MAX_SAFE_INTEGER) throw new SkimmerError('UNSUPPORTED', `tar: the ${what} of the entry at byte ${offset} is out of range`)
  return ((value % range) + range) % range
}

function paxNumber(records: PaxRecords, key: string, otherwise: number, offset: number): number {
  const text = records.get(key) ?? ''
  const value = text === '' ? otherwise : decimal(text)
  if (value === undefined) throw invalidTar(`the pax record ${key} is not a number`, offset)
  return value
}

/** Throws INVALID_DATA for records that Go's archive/tar refuses whatever entry they stand before. */
export function checkRecords(records: PaxRecords, offset: number): void {
  for (const key of ['uid', 'gid', 'size']) paxNumber(records, key, 0, offset)
  for (const key of ['atime', 'mtime', 'ctime']) {
    const text = records.get(key) ?? ''
    if (text !== '' && paxTime(text) === undefined) throw invalidTar(`the pax record ${key} is not a time`, offset)
  }
}
