// Compares mounted trees: everything that can be observed, path by path.
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'

export interface FileFacts {
  type: string
  mode: number
  uid: number
  gid: number
  /** Nanoseconds since 1970. */
  mtime: string
  inode: number
  nlink?: number
  size?: number
  device?: string
  link?: string
  sha256?: string
  xattrs: Record<string, string>
}
export type WalkedTree = Record<string, FileFacts>

/** Everything below each directory, by path (latin1 of its bytes, '' is the directory itself). Needs python3. */
export async function walkTrees(directories: readonly string[]): Promise<WalkedTree[]> {
  const { stdout } = await promisify(execFile)('python3', [join(import.meta.dirname, 'tree-walk.py'), ...directories], { maxBuffer: 1 << 30 })
  return JSON.parse(stdout)
}

/** File times tick more coarsely (ms) than the clock that says when unpacking began. */
const TICK = 100

/**
 * One line for each difference, none when the trees are the same. `unpackedSince`: the reference was unpacked after this time (ms),
 * so directory times from then on are those of the unpacking and no property of the image; neither is the root's time.
 */
export function treeDifferences(actual: WalkedTree, reference: WalkedTree, unpackedSince: number): string[] {
  const lines: string[] = []
  for (const path of new Set([...Object.keys(actual), ...Object.keys(reference)])) {
    const [a, r] = [actual[path], reference[path]]
    if (!a || !r) {
      lines.push(`/${path}: ${a ? `is there (${JSON.stringify(a)}) but should not be` : `is missing: ${JSON.stringify(r)}`}`)
      continue
    }
    const touched = r.type === 'dir' && (path === '' || BigInt(r.mtime) / 1_000_000n >= BigInt(Math.floor(unpackedSince) - TICK))
    for (const key of Object.keys({ ...a, ...r }) as (keyof FileFacts)[]) {
      if (key === 'inode' || (key === 'mtime' && touched)) continue
      const [was, expected] = [JSON.stringify(a[key]), JSON.stringify(r[key])]
      if (was !== expected) lines.push(`/${path}: ${key} is ${was}, should be ${expected}`)
    }
  }
  return [...lines, ...linkDifferences(actual, reference)]
}

/** The same names must share an inode. */
function linkDifferences(actual: WalkedTree, reference: WalkedTree): string[] {
  const groups = (tree: WalkedTree) => {
    const byInode = new Map<number, string[]>()
    for (const [path, { inode, nlink }] of Object.entries(tree)) if ((nlink ?? 1) > 1) byInode.set(inode, [...(byInode.get(inode) ?? []), path])
    return new Set([...byInode.values()].map((paths) => JSON.stringify(paths.sort())))
  }
  const [a, r] = [groups(actual), groups(reference)]
  return [...[...a].filter((group) => !r.has(group)).map((group) => `should not share an inode: ${group}`), ...[...r].filter((group) => !a.has(group)).map((group) => `should share an inode: ${group}`)]
}
