// One page of a list of tags, cut here where the registry did not: some give all their tags whatever they were asked.

export interface TagPage {
  readonly bytes: Buffer
  /** The last tag of this page, when more come after it. */
  readonly next?: string
}

/** The order of the spec: of characters, capitals first. Tags are ASCII. */
const compare = (one: string, other: string): number => (one < other ? -1 : one > other ? 1 : 0)

/**
 * At most `count` tags after `last`. Undefined: the answer is one already, or no list of tags. `linked`: the registry has said where its next
 * page is, so it has cut the list, and in its own order.
 */
export function tagPage(bytes: Buffer, { count, last, linked }: { count: number | undefined; last: string | undefined; linked: boolean }): TagPage | undefined {
  const answer = listIn(bytes)
  if (answer === undefined) return undefined
  const { tags } = answer
  const begins = last === undefined || tags.every((tag) => compare(tag, last) > 0)
  if ((linked && count !== 0) || (begins && (count === undefined || tags.length <= count))) return undefined
  const after = tags.filter((tag) => last === undefined || compare(tag, last) > 0).toSorted(compare)
  const page = after.slice(0, count)
  return { bytes: Buffer.from(JSON.stringify({ ...answer, tags: page })), ...(page.length > 0 && page.length < after.length && { next: page.at(-1)! }) }
}

function listIn(bytes: Buffer): { tags: string[] } | undefined {
  try {
    const answer = JSON.parse(bytes.toString('utf8')) as { tags?: unknown } | null
    // No tags at all are null where Go programs answer.
    return Array.isArray(answer?.tags) && answer.tags.every((tag) => typeof tag === 'string') ? (answer as { tags: string[] }) : undefined
  } catch {
    return undefined
  }
}
