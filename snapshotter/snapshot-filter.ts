// containerd's filter language for List: `labels."a.b"==x,parent==y`; selectors joined by a comma must all hold, of several filters one is enough.
//
// Grammar (documented with containerd's `filters` package):
//   filter    = [ selector { "," selector } ]          an empty filter matches everything
//   selector  = fieldpath [ operator value ]           without operator: the field is present
//   fieldpath = field { "." field }
//   field     = letter { letter | digit | "_" } | double-quoted Go string
//   operator  = "==" | "!=" | "~="
//   value     = double-quoted Go string | /text/ | |text| | anything up to a comma or white space
import { createContext, Script } from 'node:vm'
import { invalidArgument } from './snapshot-errors.ts'
import { unquoteGo } from './go-string.ts'

/** Fields of one object: the value at a path, or undefined when it is absent. */
export type FieldOf = (path: readonly string[]) => string | undefined
export type Filter = (fieldOf: FieldOf) => boolean

const MAX_FILTERS = 64
const MAX_FILTER_CHARS = 16_384
const MAX_PATTERN_CHARS = 1024
/** A pattern that backtracks for longer than this on one value is refused. */
const MATCH_TIMEOUT_MS = 200

/** One predicate for several filters; no filter at all matches everything. @throws INVALID_ARGUMENT naming filter and position. */
export function parseFilters(filters: readonly string[]): Filter {
  if (filters.length > MAX_FILTERS) throw invalidArgument(`${filters.length} filters given; at most ${MAX_FILTERS} are allowed`)
  const parsed = filters.map(filter => new FilterParser(filter).parse())
  if (parsed.length === 0) return () => true
  return fieldOf => parsed.some(filter => filter(fieldOf))
}

class FilterParser {
  readonly #text: string
  #at = 0

  constructor(text: string) {
    if (text.length > MAX_FILTER_CHARS) throw invalidArgument(`a filter has ${text.length} characters; at most ${MAX_FILTER_CHARS} are allowed`)
    this.#text = text
  }

  parse(): Filter {
    if (this.#text.trim() === '') return () => true
    const selectors: Filter[] = []
    do {
      selectors.push(this.#selector())
      this.#skipSpace()
    } while (this.#take(','))
    if (this.#at < this.#text.length) this.#fail('expected a comma or the end')
    return fieldOf => selectors.every(selector => selector(fieldOf))
  }

  #selector(): Filter {
    this.#skipSpace()
    const path = [this.#field()]
    while (this.#take('.')) path.push(this.#field())
    this.#skipSpace()
    const operator = ['==', '!=', '~='].find(each => this.#text.startsWith(each, this.#at))
    if (operator === undefined) {
      if (this.#at < this.#text.length && this.#text[this.#at] !== ',') this.#fail('expected one of == != ~= , or the end')
      return fieldOf => fieldOf(path) !== undefined
    }
    this.#at += operator.length
    this.#skipSpace()
    const value = this.#value()
    if (operator === '==') return fieldOf => fieldOf(path) === value
    if (operator === '!=') return fieldOf => (fieldOf(path) ?? '') !== value
    const matches = compilePattern(value)
    return fieldOf => matches(fieldOf(path) ?? '')
  }

  #field(): string {
    if (this.#text[this.#at] === '"') return this.#goString()
    return this.#match(/[A-Za-z][A-Za-z0-9_]*/y) ?? this.#fail('expected a field name')
  }

  #value(): string {
    const first = this.#text[this.#at]
    if (first === '"') return this.#goString()
    if (first === '/' || first === '|') {
      const end = this.#text.indexOf(first, this.#at + 1)
      if (end < 0) this.#fail(`the quote ${first} is never closed`)
      const value = this.#text.slice(this.#at + 1, end)
      this.#at = end + 1
      return value
    }
    return this.#match(/[^\s,]+/y) ?? this.#fail('expected a value')
  }

  #goString(): string {
    const quoted = this.#match(/"(?:[^"\\\n]|\\.)*"/y) ?? this.#fail('the quote " is never closed')
    return unquoteGo(quoted) ?? this.#fail(`${quoted} is not a valid quoted string`)
  }

  #match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at
    const found = pattern.exec(this.#text)?.[0]
    if (found !== undefined) this.#at += found.length
    return found
  }

  #take(char: string): boolean {
    if (this.#text[this.#at] !== char) return false
    this.#at += char.length
    return true
  }

  #skipSpace(): void {
    while (/\s/.test(this.#text[this.#at] ?? '')) this.#at++
  }

  #fail(why: string): never {
    throw invalidArgument(`filter ${JSON.stringify(this.#text.slice(0, 200))}, character ${this.#at + 1}: ${why}`)
  }
}

/** Go writes some things differently from JavaScript: inline flags at the start, `(?P<name>`, `\A` and `\z`. */
function translatePattern(pattern: string): RegExp {
  const flags = /^\(\?([ims]+)\)/.exec(pattern)
  const source = pattern
    .slice(flags?.[0].length ?? 0)
    .replaceAll('(?P<', '(?<')
    .replaceAll(/\\(.)/gs, (escape, char: string) => (char === 'A' ? '(?<![\\s\\S])' : char === 'z' ? '(?![\\s\\S])' : escape))
  return new RegExp(source, [...new Set(flags?.[1] ?? '')].join(''))
}

/**
 * JavaScript's expressions backtrack where Go's do not, so a match runs in a vm with a time limit: V8 interrupts an expression
 * only through such a limit.
 */
function compilePattern(pattern: string): (value: string) => boolean {
  if (pattern.length > MAX_PATTERN_CHARS) throw invalidArgument(`a ~= pattern has ${pattern.length} characters; at most ${MAX_PATTERN_CHARS} are allowed`)
  let expression: RegExp
  try {
    expression = translatePattern(pattern)
  } catch (error) {
    throw invalidArgument(`~= pattern ${JSON.stringify(pattern)} is not a valid regular expression: ${error instanceof Error ? error.message : String(error)}`)
  }
  const sandbox = { expression, value: '' }
  const context = createContext(sandbox)
  const script = new Script('expression.test(value)')
  return value => {
    sandbox.value = value
    try {
      return script.runInContext(context, { timeout: MATCH_TIMEOUT_MS }) === true
    } catch {
      throw invalidArgument(`~= pattern ${JSON.stringify(pattern)} takes too long to match; simplify it`)
    }
  }
}
