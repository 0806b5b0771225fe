// The WWW-Authenticate header (RFC 9110 section 11.6.1): challenges with their parameters, from any number of header lines.

export interface Challenge {
  /** In lower case: `basic`, `bearer`. */
  readonly scheme: string
  /** Names in lower case; values unquoted. */
  readonly parameters: Readonly<Record<string, string>>
}

const MAX_HEADER_LENGTH = 16 * 1024
const TOKEN = /[!#$%&'*+.^_`|~0-9A-Za-z-]+/y
const VALUE = /[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))/y
const SEPARATORS = /[ \t,]*/y

/** Reads what it can and stops at the first thing that is no challenge: hostile text yields fewer challenges, never an error. */
export function parseChallenges(header: string | readonly string[] | undefined): Challenge[] {
  const text = (typeof header === 'string' ? header : (header ?? []).join(', ')).slice(0, MAX_HEADER_LENGTH)
  const challenges: { scheme: string; parameters: Record<string, string> }[] = []
  let position = 0
  const eat = (pattern: RegExp): RegExpExecArray | null => {
    pattern.lastIndex = position
    const match = pattern.exec(text)
    if (match !== null) position = pattern.lastIndex
    return match
  }
  for (;;) {
    eat(SEPARATORS)
    const word = eat(TOKEN)
    if (word === null) return challenges
    const value = eat(VALUE)
    // A word with a value belongs to the challenge before it; a word alone starts the next one.
    if (value === null) challenges.push({ scheme: word[0].toLowerCase(), parameters: Object.create(null) as Record<string, string> })
    else {
      const current = challenges.at(-1)
      if (current === undefined) return challenges
      current.parameters[word[0].toLowerCase()] = value[1] === undefined ? value[2] : value[1].replaceAll(/\\(.)/g, '$1')
    }
  }
}
