// The files of a client, seen below a root directory (of this machine, or of an image that is being made): read, listed, never outside the root.
import { lstatSync, readdirSync, readFileSync, realpathSync, statSync } from 'node:fs'
import { dirname, join, relative, resolve, sep } from 'node:path'
import { SkimmerError } from '../../oci/errors.ts'

const MOST_BYTES = 2 ** 20

export class ClientFiles {
  readonly root: string

  /** INVALID_ARGUMENT: not a directory. */
  constructor(root: string) {
    try {
      this.root = realpathSync(resolve(root))
    } catch (cause) {
      throw new SkimmerError('INVALID_ARGUMENT', `--root ${root}: ${(cause as NodeJS.ErrnoException).code}`, { cause })
    }
    if (!statSync(this.root).isDirectory()) throw new SkimmerError('INVALID_ARGUMENT', `--root ${root} is not a directory`)
  }

  /** Where a path of the client really is: links are followed, so that the linked file is edited and stays linked. FORBIDDEN when that leads out of the root. */
  actual(path: string): string {
    const asked = join(this.root, resolve('/', path))
    let found = asked
    for (let up = asked; ; up = dirname(up)) {
      try {
        found = join(realpathSync(up), relative(up, asked))
        break
      } catch (cause) {
        if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw new SkimmerError('UNAVAILABLE', `${path}: ${(cause as NodeJS.ErrnoException).code}`, { cause })
        if (isLink(up)) throw new SkimmerError('CONFLICT', `${path} goes through a link that leads nowhere; remove the link or make its target first`)
      }
    }
    if (this.root !== sep && found !== this.root && !found.startsWith(this.root + sep)) {
      throw new SkimmerError('FORBIDDEN', `${path} is a link that leads out of ${this.root}; edit the file it leads to by hand`)
    }
    return found
  }

  /** undefined: there is none. INVALID_DATA, LIMIT_EXCEEDED: no configuration file that could be edited. */
  bytes(path: string): Buffer | undefined {
    const actual = this.actual(path)
    try {
      const found = statSync(actual)
      if (!found.isFile()) throw new SkimmerError('INVALID_DATA', `${path} is no ordinary file`)
      if (found.size > MOST_BYTES) throw new SkimmerError('LIMIT_EXCEEDED', `${path} has ${found.size} bytes; configuration files are edited up to ${MOST_BYTES}`)
      return readFileSync(actual)
    } catch (cause) {
      if (cause instanceof SkimmerError) throw cause
      if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
      throw new SkimmerError((cause as NodeJS.ErrnoException).code === 'EACCES' ? 'FORBIDDEN' : 'UNAVAILABLE', `${path} cannot be read: ${(cause as NodeJS.ErrnoException).code}`, { cause })
    }
  }

  text(path: string): string | undefined {
    const bytes = this.bytes(path)
    return bytes === undefined ? undefined : decode(bytes, path)
  }

  /** Names in a directory, sorted; none when it is not there. */
  names(directory: string, kind: 'files' | 'directories'): string[] {
    try {
      const actual = this.actual(directory)
      return readdirSync(actual).filter((name) => {
        try {
          const found = statSync(join(actual, name))
          return kind === 'files' ? found.isFile() : found.isDirectory()
        } catch {
          return false
        }
      }).sort()
    } catch (cause) {
      if (cause instanceof SkimmerError) throw cause
      if (['ENOENT', 'ENOTDIR'].includes((cause as NodeJS.ErrnoException).code!)) return []
      throw new SkimmerError('UNAVAILABLE', `${directory} cannot be listed: ${(cause as NodeJS.ErrnoException).code}`, { cause })
    }
  }
}

/** INVALID_DATA: not UTF-8; an edit could not keep its bytes. */
export function decode(bytes: Buffer, path: string): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch (cause) {
    throw new SkimmerError('INVALID_DATA', `${path} is not UTF-8 text; nothing was changed`, { cause })
  }
}

function isLink(path: string): boolean {
  try {
    return lstatSync(path).isSymbolicLink()
  } catch {
    return false
  }
}
