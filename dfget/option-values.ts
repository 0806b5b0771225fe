// Values of dfget's options: strict as everywhere in Skimmer, and as Dragonfly's users write them.
import { parseSize } from '../command-line/units.ts'
import { refuse, single } from '../command-line/settings.ts'
import { LARGEST_BLOCK, SMALLEST_BLOCK } from '../peer/file-blocks.ts'

const BINARY: Record<string, string> = { k: 'KiB', m: 'MiB', g: 'GiB', t: 'TiB' }
const MILLISECONDS: Record<string, number> = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 }
/** Timers end at 24 days. */
const LONGEST_MS = 20 * 86_400_000
const MAX_PATTERN = 1_000

/** Bytes: `20MiB`, `20MB`, `20M` (MiB, as Dragonfly 1, curl and wget mean it), `20971520`; with `/s` behind it where it is a rate. */
export function readSize(written: string): number {
  const text = written.trim().replace(/\/s$/, '')
  if (/^\d{1,15}$/.test(text)) return Number(text)
  const [, number, unit] = /^(\d+(?:\.\d+)?)([kmgt])$/i.exec(text) ?? []
  return parseSize(unit === undefined ? text : `${number}${BINARY[unit.toLowerCase()]}`)
}

/** Milliseconds: `30s`, `1h30m` (as Go writes durations), and a bare number of seconds. */
export function readTime(written: string): number {
  const text = written.trim()
  let ms = /^\d{1,9}$/.test(text) ? Number(text) * 1_000 : 0
  if (ms === 0 && text !== '0') {
    if (!/^(?:\d{1,9}(?:\.\d{1,9})?(?:ms|[smhd]))+$/.test(text)) refuse(`${JSON.stringify(written)} is not a time: write for instance 30s, 5m or 1h30m; a bare number is seconds`)
    for (const [, number, unit] of text.matchAll(/(\d+(?:\.\d+)?)(ms|[smhd])/g)) ms += Number(number) * MILLISECONDS[unit]
  }
  return Math.round(ms) <= LONGEST_MS ? Math.round(ms) : refuse(`${JSON.stringify(written)} is longer than 20 days`)
}

/** `0-99`: bytes from and to, both included. */
export function readRange(written: string): { start: number; end: number } {
  const [, start, end] = /^(?:bytes=)?(\d{1,15})-(\d{1,15})$/.exec(written.trim()) ?? []
  if (end === undefined || Number(end) < Number(start)) return refuse(`${JSON.stringify(written)} is not a range: write the first and the last byte, for instance 0-1023`)
  return { start: Number(start), end: Number(end) }
}

/** Permission bits. */
export function readMode(written: string): number {
  return /^0?[0-7]{3,4}$/.test(written.trim()) ? Number.parseInt(written, 8) : refuse(`${JSON.stringify(written)} is not a mode: write it in octal, for instance 0644`)
}

export const readPriority = (written: string): number => (/^[0-6]$/.test(written) ? Number(written) : refuse(`${JSON.stringify(written)} is not between 0 and 6`))

export function readPattern(written: string): RegExp {
  if (written.length > MAX_PATTERN) refuse(`the regular expression is longer than ${MAX_PATTERN} characters`)
  try {
    return new RegExp(written, 'u')
  } catch (error) {
    return refuse(`${JSON.stringify(written)} is not a regular expression: ${(error as Error).message}`)
  }
}

/** Dragonfly 1 writes `a&b`; commas do as well. */
export const readNames = (written: readonly string[]): string[] => written.flatMap((text) => text.split(/[&,]/)).map((name) => name.trim()).filter(Boolean)

/** `host:port=weight` as Dragonfly 1 writes it (weights have no meaning here), `host`, several separated by commas, multiaddrs. */
export function readSupernodes(written: readonly string[]): string[] {
  const addresses = written.flatMap((text) => text.split(',')).map((text) => text.trim()).filter(Boolean)
  return [...new Set(addresses.map((address) => {
    if (address.startsWith('/')) return address
    const plain = address.replace(/=\d+$/, '')
    if (!/^(?:\[[0-9a-fA-F:.]+\]|[^\s:/[\]]+)(?::\d{1,5})?$/.test(plain)) return refuse(`${JSON.stringify(address)} is no supernode: write HOST:PORT or /ip4/10.0.0.1/tcp/4980/p2p/<peer id>`)
    return /:\d{1,5}$/.test(plain.replace(/^\[.*\]/, '')) ? plain : `${plain}:${SUPERNODE_PORT}`
  }))]
}
export const SUPERNODE_PORT = 4980

/** Bytes of a block. */
export function readPieceLength(written: string): number {
  const bytes = readSize(written)
  return bytes >= SMALLEST_BLOCK && bytes <= LARGEST_BLOCK ? bytes : refuse(`${JSON.stringify(written)} is not between 64KiB and 4MiB`)
}

export const bytes = single('SIZE', readSize)
export const time = single('TIME', readTime)
/** Left out: undefined. */
export const maybe = <T>(placeholder: string, read: (text: string) => T) =>
  (help: string) => single(placeholder, (text): T | undefined => (text === '' ? undefined : read(text)))('', help)
