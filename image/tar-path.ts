// Names in a tar as places in an image: cleaned as containerd cleans them, and refused where its unpack would fail.
import { SkimmerError } from '../oci/errors.ts'

/** Linux' NAME_MAX and PATH_MAX less the NUL: what open(2), mkdir(2) and symlink(2) of an ordinary unpack would still take. */
export const MAX_NAME_LENGTH = 255
export const MAX_PATH_LENGTH = 4095

/**
 * `./a//b/../c/` becomes `a/c`; a `..` that would climb out stays at the root; the root itself is ''.
 * The same place as filepath.Join(root, filepath.Clean(name)) in containerd's archive/tar.go. Takes and gives binary strings.
 */
export function cleanPath(name: string): string {
  let start = 0
  let end = name.length
  while (end > 0 && name.charCodeAt(end - 1) === 0x2f) end--
  if (name.startsWith('./')) start = 2
  const trimmed = start === 0 && end === name.length ? name : name.slice(start, end)
  if (isCleanFast(trimmed)) return trimmed
  const kept: string[] = []
  for (const part of trimmed.split('/')) {
    if (part === '' || part === '.') continue
    if (part === '..') kept.pop()
    else kept.push(part)
  }
  return kept.join('/')
}

/** True only for clean paths; false says no more than "look closely", so that dot files take the long way too. */
function isCleanFast(path: string): boolean {
  const first = path.charCodeAt(0)
  return first !== 0x2e && first !== 0x2f && !path.includes('//') && !path.includes('/.')
}

/** Throws UNSUPPORTED when no Linux filesystem could hold this path, which is when an ordinary unpack fails too. */
export function checkPathLength(path: string, what: string): void {
  if (path.length <= MAX_NAME_LENGTH) return
  if (path.length > MAX_PATH_LENGTH) throw new SkimmerError('UNSUPPORTED', `${what} is ${path.length} bytes long; Linux takes at most ${MAX_PATH_LENGTH}`)
  for (let from = 0; from <= path.length; ) {
    const slash = path.indexOf('/', from)
    const to = slash === -1 ? path.length : slash
    if (to - from > MAX_NAME_LENGTH) throw new SkimmerError('UNSUPPORTED', `${what} has a name of ${to - from} bytes; Linux takes at most ${MAX_NAME_LENGTH}`)
    from = to + 1
  }
}
