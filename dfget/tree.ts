// `--recursive`: what an index page lists, and what the directories in it list, within the user's bounds.
import { mkdir } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { SkimmerError } from '../oci/errors.ts'
import { listIndex } from '../source/list-index.ts'
import type { Sources } from '../source/sources.ts'
import { safePath, shownUrl } from './file-names.ts'
import { sourceRequestOf } from './own-sources.ts'
import type { DfgetWords } from './read-options.ts'

/** A server that makes up directories without end is stopped here. */
const MAX_DIRECTORIES = 100_000

export interface TreeFile {
  readonly url: string
  /** Relative, parts separated by `/`; every part is safe. */
  readonly name: string
  readonly size?: number
}

/** In the order of the index pages, directories after files. LIMIT_EXCEEDED: more than `--max-files`. */
export async function listTree(words: DfgetWords, sources: Sources, signal: AbortSignal): Promise<TreeFile[]> {
  const { values } = words
  const wanted = (url: string, patterns: readonly RegExp[]): boolean => patterns.some((pattern) => pattern.test(url))
  const files = new Map<string, TreeFile>()
  const seen = new Set<string>()
  let level = [{ url: words.url, name: '' }]
  for (let depth = 1; level.length > 0; depth++) {
    const listed = await inParallel(level, values['max-concurrent-requests'], async (directory) => {
      signal.throwIfAborted()
      const entries = await listIndex(sources, directory.url, sourceRequestOf(words), { signal })
      return entries.map((entry) => ({ ...entry, name: directory.name + entry.name }))
    })
    level = []
    for (const { url, name, directory, size } of listed.flat()) {
      if (wanted(url, values['reject-regex'])) continue
      if (directory) {
        if (values.level !== 0 && depth >= values.level) continue
        if (seen.has(url)) continue
        seen.add(url)
        if (seen.size > MAX_DIRECTORIES) throw new SkimmerError('LIMIT_EXCEEDED', `${shownUrl(words.url)}: more than ${MAX_DIRECTORIES} directories`)
        level.push({ url, name })
      } else if (values['accept-regex'].length === 0 || wanted(url, values['accept-regex'])) {
        files.set(name, { url, name: safePath(name), ...(size !== undefined && { size }) })
        if (files.size > values['max-files']) throw new SkimmerError('LIMIT_EXCEEDED', `more than ${values['max-files']} files: nothing was downloaded; allow more by --max-files, or take fewer by --accept-regex, --reject-regex or --level`)
      }
    }
  }
  return [...files.values()]
}

/** The place of a file below `directory`, whose directories are made. */
export async function placeOf(directory: string, { name }: TreeFile): Promise<string> {
  const path = join(directory, safePath(name))
  try {
    await mkdir(dirname(path), { recursive: true })
  } catch (cause) {
    throw new SkimmerError('CONFLICT', `${dirname(path)} cannot be made (${(cause as NodeJS.ErrnoException).code})`, { cause })
  }
  return path
}

/** So many at a time; answers in order. The first error ends it when those that run are done. */
export async function inParallel<T, R>(items: readonly T[], many: number, work: (item: T) => Promise<R>): Promise<R[]> {
  const answers: R[] = []
  let next = 0
  let failed = false
  await Promise.all(Array.from({ length: Math.min(many, items.length) }, async () => {
    while (next < items.length && !failed) {
      const index = next++
      try {
        answers[index] = await work(items[index])
      } catch (error) {
        failed = true
        throw error
      }
    }
  }))
  return answers
}
