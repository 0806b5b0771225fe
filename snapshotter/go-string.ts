// Double-quoted Go string literals, as `%q` writes them into containerd's filters (Go language specification, "String literals").

const SIMPLE: Record<string, string> = { a: '\x07', b: '\b', f: '\f', n: '\n', r: '\r', t: '\t', v: '\v', '\\': '\\', '"': '"' }
const ESCAPE = /\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([0-7]{3})|([abfnrtv\\"]))/y

/** The text of a quoted literal, or undefined when an escape is not one of Go's. `\x` and octal escapes are bytes of UTF-8. */
export function unquoteGo(literal: string): string | undefined {
  if (literal.length < 2 || !literal.startsWith('"') || !literal.endsWith('"')) return undefined
  const inner = literal.slice(1, -1)
  if (!inner.includes('\\')) return /["\n]/.test(inner) ? undefined : inner
  const parts: Buffer[] = []
  let at = 0
  while (at < inner.length) {
    const next = inner.indexOf('\\', at)
    const plain = inner.slice(at, next < 0 ? undefined : next)
    if (/["\n]/.test(plain)) return undefined
    parts.push(Buffer.from(plain, 'utf8'))
    if (next < 0) break
    ESCAPE.lastIndex = next
    const escape = ESCAPE.exec(inner)
    if (escape === null) return undefined
    const bytes = escapeBytes(escape)
    if (bytes === undefined) return undefined
    parts.push(bytes)
    at = ESCAPE.lastIndex
  }
  return Buffer.concat(parts).toString('utf8')
}

function escapeBytes([, hex, short, long, octal, simple]: RegExpExecArray): Buffer | undefined {
  if (simple !== undefined) return Buffer.from(SIMPLE[simple], 'utf8')
  if (hex !== undefined) return Buffer.of(Number.parseInt(hex, 16))
  if (octal !== undefined) {
    const byte = Number.parseInt(octal, 8)
    return byte > 255 ? undefined : Buffer.of(byte)
  }
  const point = Number.parseInt(short ?? long, 16)
  if (point > 0x10ffff || (point >= 0xd800 && point <= 0xdfff)) return undefined
  return Buffer.from(String.fromCodePoint(point), 'utf8')
}
