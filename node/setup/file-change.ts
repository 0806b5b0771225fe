// One file's change: shown as a unified diff, written by a temporary file and a rename with the mode and owner the file had.
import { chmodSync, chownSync, closeSync, constants, copyFileSync, fsyncSync, mkdirSync, openSync, renameSync, rmdirSync, statSync, unlinkSync, writeSync, type Stats } from 'node:fs'
import { randomBytes } from 'node:crypto'
import { dirname, join } from 'node:path'
import { createTwoFilesPatch } from 'diff'
import { SkimmerError } from '../../oci/errors.ts'
import { type ClientFiles, decode } from './client-files.ts'

export interface FileChange {
  /** As the client names it. */
  readonly path: string
  /** undefined: there is no file. */
  readonly before: Buffer | undefined
  readonly after: Buffer | undefined
}

export const isChange = ({ before, after }: FileChange): boolean => (before === undefined || after === undefined ? before !== after : !before.equals(after))

/** As `diff -u` prints it. */
export function unifiedDiff({ path, before, after }: FileChange): string {
  const side = (bytes: Buffer | undefined): [string, string] => (bytes === undefined ? ['/dev/null', ''] : [path, decode(bytes, path)])
  const [oldName, oldText] = side(before)
  const [newName, newText] = side(after)
  return createTwoFilesPatch(oldName, newName, oldText, newText, undefined, undefined, { context: 3 }).replace(/^(?:Index: .*\n)?=+\n/, '')
}

const shared = (path: string, error: unknown): SkimmerError => {
  const { code } = error as NodeJS.ErrnoException
  if (code === 'EACCES' || code === 'EPERM' || code === 'EROFS') return new SkimmerError('FORBIDDEN', `${path} cannot be written: ${code}; are you root?`, { cause: error })
  return new SkimmerError(code === 'ENOSPC' || code === 'EDQUOT' ? 'NO_SPACE' : 'UNAVAILABLE', `${path} cannot be written: ${code}`, { cause: error })
}

/** Makes missing directories; answers those it made, outermost first. */
export function makeDirectories(path: string, files: ClientFiles, mode = 0o755): string[] {
  const made: string[] = []
  for (let up = dirname(path); up !== '/' && up !== '.'; up = dirname(up)) {
    try {
      statSync(files.actual(up))
      break
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw cause instanceof SkimmerError ? cause : shared(path, cause)
      made.unshift(up)
    }
  }
  try {
    for (const directory of made) mkdirSync(files.actual(directory), { mode })
  } catch (cause) {
    throw shared(path, cause)
  }
  return made
}

/** Those of them that are empty go; innermost first. */
export function removeDirectories(directories: readonly string[], files: ClientFiles): void {
  for (const directory of directories.toSorted((a, b) => b.length - a.length)) {
    try {
      rmdirSync(files.actual(directory))
    } catch {
      // Something is in there now, or it is gone.
    }
  }
}

/** CONFLICT: the file is not `before` any more. The directory must be there. */
export function writeChange(change: FileChange, files: ClientFiles, mode = 0o644): void {
  const now = files.bytes(change.path)
  if (isChange({ path: change.path, before: change.before, after: now })) throw new SkimmerError('CONFLICT', `${change.path} was changed by somebody else just now; run this again`)
  const actual = files.actual(change.path)
  try {
    if (change.after === undefined) unlinkSync(actual)
    else replaceFile(actual, change.after, now === undefined ? undefined : statSync(actual), mode)
    syncDirectory(dirname(actual))
  } catch (cause) {
    throw shared(change.path, cause)
  }
}

function replaceFile(actual: string, bytes: Buffer, old: Stats | undefined, mode: number): void {
  const temporary = join(dirname(actual), `.skimmer-setup-${randomBytes(6).toString('hex')}`)
  const fd = openSync(temporary, 'wx', 0o600)
  try {
    try {
      for (let written = 0; written < bytes.length; ) written += writeSync(fd, bytes, written)
      fsyncSync(fd)
    } finally {
      closeSync(fd)
    }
    if (old !== undefined && (old.uid !== process.getuid?.() || old.gid !== process.getgid?.())) chownSync(temporary, old.uid, old.gid)
    chmodSync(temporary, old === undefined ? mode : old.mode & 0o7777)
    renameSync(temporary, actual)
  } catch (error) {
    unlinkSync(temporary)
    throw error
  }
}

function syncDirectory(directory: string): void {
  const fd = openSync(directory, 'r')
  try {
    fsyncSync(fd)
  } finally {
    closeSync(fd)
  }
}

/** A copy beside the file, with its mode and owner; never over an older one. Answers its path. */
export function backUp(path: string, files: ClientFiles): string {
  for (let number = 0; ; number++) {
    const backup = `${path}.skimmer-backup${number === 0 ? '' : `.${number}`}`
    const actual = files.actual(path)
    const copy = files.actual(backup)
    try {
      copyFileSync(actual, copy, constants.COPYFILE_EXCL)
      const { mode, uid, gid } = statSync(actual)
      if (uid !== process.getuid?.() || gid !== process.getgid?.()) chownSync(copy, uid, gid)
      chmodSync(copy, mode & 0o7777)
      return backup
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== 'EEXIST') throw shared(backup, cause)
    }
  }
}
