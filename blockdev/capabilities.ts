// What this host can do for us, tried and not guessed: the facts behind `skimmer doctor` and the choice of how to mount.
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { writeErofs } from '../image/erofs-writer.ts'
import type { ImageTree } from '../image/tree.ts'
import type { Negotiated } from './fuse-init.ts'
import { attachLoop, detachLoop } from './loop-device.ts'
import { mountReadOnly, runChild, unmount } from './mount.ts'

export interface Capability {
  readonly name: 'root' | 'perl' | 'fuse' | 'resend' | 'overlay' | 'erofs-file' | 'erofs-loop'
  readonly works: boolean
  /** What it means, in plain words: why not, or what it is good for. */
  readonly because: string
}

const TIMEOUT_MS = 15_000
const EMPTY_TREE: ImageTree = {
  layers: [],
  inodes: [{ type: 'dir', mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanos: 0, nlink: 2, size: 0, layer: -1, extents: [], link: '', major: 0, minor: 0, xattrs: [], entries: [], parent: 0 }],
}

const filesystems = (): string => {
  try {
    return fs.readFileSync('/proc/filesystems', 'latin1')
  } catch {
    return ''
  }
}

/** Mounts an empty EROFS image that lies in `directory`, where the real ones will lie: the file system under it matters. Resolves with the reason it fails, or ''. */
export async function tryErofs(how: 'file' | 'loop', directory: string): Promise<string> {
  const temporary = fs.mkdtempSync(path.join(directory, '.probe-'))
  const image = path.join(temporary, 'image')
  const target = path.join(temporary, 'mnt')
  let device: string | undefined
  try {
    writeErofs(EMPTY_TREE, { path: image })
    fs.mkdirSync(target)
    if (how === 'loop') device = await attachLoop(image, { directIo: false, timeoutMs: TIMEOUT_MS })
    await mountReadOnly('erofs', device ?? image, target, [], TIMEOUT_MS)
    await unmount(target, { timeoutMs: TIMEOUT_MS })
    return ''
  } catch (error) {
    return (error as Error).message
  } finally {
    if (device !== undefined) await detachLoop(device, TIMEOUT_MS).catch(() => undefined)
    fs.rmSync(temporary, { recursive: true, force: true })
  }
}

/** Everything, for people. `negotiated`: of the running mount, when there is one. `directory`: where composed images lie. */
export async function capabilities(directory: string, negotiated?: Negotiated): Promise<Capability[]> {
  const list: Capability[] = []
  const say = (name: Capability['name'], works: boolean, good: string, bad: string): boolean => {
    list.push({ name, works, because: works ? good : bad })
    return works
  }
  const root = say('root', process.getuid?.() === 0, 'may mount', 'mounting needs root (CAP_SYS_ADMIN)')
  const perl = say('perl', (await runChild('perl', ['-e', '1'], TIMEOUT_MS)).status === 0, 'mounts and keeps sockets', 'perl is missing: install perl-base')
  say('fuse', fs.existsSync('/dev/fuse'), 'blocks can be served', '/dev/fuse is missing: load the fuse module, or give the container the device')
  const [major, minor] = os.release().split('.').map(Number)
  const resend = negotiated?.resend ?? (major > 6 || (major === 6 && minor >= 9))
  say('resend', resend, 'reads survive the death of the daemon', `Linux ${os.release()} does not send unanswered requests again (6.9 does): reads that wait while the daemon dies or is upgraded hang until their process is killed`)
  say('overlay', /\boverlay$/m.test(filesystems()) || fs.existsSync('/sys/module/overlay'), 'containers get a writable layer', 'overlayfs is missing: modprobe overlay')
  for (const how of ['file', 'loop'] as const) {
    const why = root && perl ? await tryErofs(how, directory) : 'needs root and perl'
    say(`erofs-${how}`, why === '', how === 'file' ? 'images mount file-backed and share layers in the page cache' : 'images mount as block devices', why)
  }
  return list
}
