// Lines of ours in somebody's configuration file, between two marks, so that they can be found again and taken out without touching a byte of the rest.
const BEGIN = '# >>> skimmer setup'
const END = '# <<< skimmer setup'
const WAS = '# was: '

const eolOf = (text: string): string => (text.includes('\r\n') ? '\r\n' : '\n')

export const hasBlock = (text: string): boolean => blocks(text).length > 0

/**
 * `text` with `lines` between marks at `at`, which is the beginning of a line or the end of the text. With `replace`, that one line
 * (without its end) is taken out and kept in the block as a comment. removeBlocks gives back the very same bytes.
 */
export function insertBlock(text: string, at: number, lines: readonly string[], replace = ''): string {
  const eol = eolOf(text)
  const block = [BEGIN, ...lines, ...(replace === '' ? [] : [WAS + replace]), END].join(eol)
  const rest = text.slice(at + replace.length)
  if (replace !== '') return text.slice(0, at) + block + rest
  if (at > 0 && at === text.length && !text.endsWith('\n')) return text + eol + block
  return text.slice(0, at) + block + eol + rest
}

/** What is left when all blocks are gone. A begin mark without an end mark is no block. */
export function removeBlocks(text: string): string {
  for (const { from, to, was } of blocks(text).toReversed()) {
    const before = text.slice(0, from)
    const after = text.slice(to)
    if (was !== undefined) text = before + was + after
    else if (after === '' && before !== '') text = before.replace(/\r?\n$/, '')
    else text = before + after.replace(/^\r?\n/, '')
  }
  return text
}

/** `from`: where the begin mark's line begins; `to`: where the end mark's line ends, before its line end. */
function blocks(text: string): { from: number; to: number; was: string | undefined }[] {
  const found: { from: number; to: number; was: string | undefined }[] = []
  let open: { from: number; was: string | undefined } | undefined
  let from = 0
  while (from < text.length) {
    const newline = text.indexOf('\n', from)
    const end = newline < 0 ? text.length : newline
    const to = end > from && text[end - 1] === '\r' ? end - 1 : end
    const line = text.slice(from, to)
    if (line === BEGIN) open = { from, was: undefined }
    else if (open !== undefined && line.startsWith(WAS)) open.was = line.slice(WAS.length)
    else if (open !== undefined && line === END) {
      found.push({ ...open, to })
      open = undefined
    }
    from = end + 1
  }
  return found
}
