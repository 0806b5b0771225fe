// A process of its own that serves one image's tree through the fuse-native package (libfuse 2): it can crash without taking the daemon along.
//
// Started by fuse-native-driver.ts as `node fuse-native-process.ts <tree file> <layers directory> <mount point>`. File data come from the
// layers' streams on our FUSE mount, so missing blocks are brought as for any other reader. Limits of the package: times to the
// millisecond and from 1970 on, names and symlink targets in UTF-8, hard links with inode numbers of their own, one thread, 128 KiB a read.
import fs from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { deserialize } from 'node:v8'
import { deviceNumber, ERRNO } from './fuse-protocol.ts'
import { FUSE_NATIVE_SOURCE } from './fuse-native-source.ts'
import { TreeView } from './fuse-filesystem.ts'
import { column, COLUMN } from './tree-table.ts'
import type { TreeTable } from './tree-table.ts'

type Reply = (error: number, ...rest: unknown[]) => void
interface FuseNative { mount(callback: (error: Error | null) => void): void }
const Fuse = createRequire(import.meta.url)('fuse-native') as new (mountPoint: string, operations: object, options: object) => FuseNative

const [treeFile, layersDirectory, mountPoint] = process.argv.slice(2)
const table = deserialize(fs.readFileSync(treeFile)) as TreeTable
const view = new TreeView(table, 1)
const layerFds = new Map<string, Promise<fs.promises.FileHandle>>()

/** The paths' inodes, so that a deep path is walked once. */
const positions = new Map<string, number>([['/', 0]])
const MAX_POSITIONS = 200_000

function positionOf(file: string): number {
  const known = positions.get(file)
  if (known !== undefined) return known
  const parent = positionOf(path.dirname(file))
  const position = parent < 0 ? -1 : view.child(parent, Buffer.from(path.basename(file)))
  if (positions.size < MAX_POSITIONS && position >= 0) positions.set(file, position)
  return position
}

/** Runs `work` with the inode behind the path, or replies ENOENT. */
const at = (file: string, reply: Reply, work: (position: number) => void): void => {
  const position = positionOf(file)
  if (position < 0) reply(-ERRNO.ENOENT)
  else work(position)
}

function stat(position: number): object {
  const { size, mtimeSeconds, mtimeNanos, mode, nlink, uid, gid } = view.attributes(position)
  const time = new Date(Math.max(0, mtimeSeconds * 1000 + Math.floor(mtimeNanos / 1e6)))
  const rdev = deviceNumber(column(table, position, COLUMN.MAJOR), column(table, position, COLUMN.MINOR))
  return { size, mode, nlink, uid, gid, rdev, ino: position + 1, blksize: 4096, blocks: Math.ceil(size / 512), mtime: time, atime: time, ctime: time }
}

function layerFile(name: string): Promise<fs.promises.FileHandle> {
  const open = layerFds.get(name) ?? fs.promises.open(path.join(layersDirectory, name), 'r')
  layerFds.set(name, open)
  return open
}

async function read(position: number, into: Buffer, length: number, offset: number): Promise<number> {
  let done = 0
  for (const stretch of view.stretches(position, offset, length)) {
    if (stretch.kind === 'layer') {
      const { bytesRead } = await (await layerFile(stretch.layer)).read(into, done, stretch.length, stretch.offset)
      if (bytesRead < stretch.length) into.fill(0, done + bytesRead, done + stretch.length)
    } else into.fill(0, done, done + stretch.length)
    done += stretch.length
  }
  return done
}

const operations = {
  getattr: (file: string, reply: Reply) => at(file, reply, (position) => reply(0, stat(position))),
  readdir: (file: string, reply: Reply) => at(file, reply, (position) => {
    if (!view.isDirectory(position)) return reply(-ERRNO.ENOTDIR)
    reply(0, Array.from({ length: view.entryCount(position) }, (_, index) => Buffer.from(view.entry(position, index).name).toString()))
  }),
  readlink: (file: string, reply: Reply) => at(file, reply, (position) => {
    const link = view.link(position)
    if (link === undefined) return reply(-ERRNO.EINVAL)
    reply(0, Buffer.from(link).toString())
  }),
  getxattr: (file: string, name: string, _position: number, reply: Reply) => at(file, reply, (position) => {
    const value = view.xattr(position, Buffer.from(name))
    if (value === undefined) return reply(-ERRNO.ENODATA)
    reply(0, Buffer.from(value))
  }),
  listxattr: (file: string, reply: Reply) => at(file, reply, (position) => reply(0, [...view.xattrs(position)].map(({ name }) => Buffer.from(name).toString()))),
  open: (_file: string, _flags: number, reply: Reply) => reply(0, 0),
  read: (file: string, _fd: number, into: Buffer, length: number, offset: number, reply: Reply) => at(file, reply, (position) => {
    read(position, into, length, offset).then((count) => reply(count), () => reply(-ERRNO.EIO))
  }),
}

// The package gives up on a reply after 15 s by itself; the daemon's own bound is the one that counts.
const fuse = new Fuse(mountPoint, operations, { allowOther: true, defaultPermissions: true, kernelCache: true, fsname: `${FUSE_NATIVE_SOURCE}${process.pid}`, entryTimeout: 86_400, attrTimeout: 86_400, timeout: false })
fuse.mount((error) => {
  if (error === null || error === undefined) return
  process.stderr.write(`mounting by fuse-native failed: ${error.message}\n`)
  process.exit(1)
})
// libfuse's thread ends with the mount, but nothing tells JavaScript: look whether it is still there.
setInterval(() => {
  if (!fs.readFileSync('/proc/self/mountinfo', 'utf8').includes(` ${mountPoint} `)) process.exit(0)
}, 1000)
