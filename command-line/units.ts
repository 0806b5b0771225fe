// Sizes and times as people write them: `10GiB`, `30s`; read strictly, printed briefly.
import { SkimmerError } from '../oci/errors.ts'

const SIZES: Record<string, number> = { B: 1, KB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40 }
const TIMES: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }

function measured(text: string, units: Record<string, number>, kind: string, example: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([A-Za-z]+)$/.exec(text.trim())
  const unit = match && Object.hasOwn(units, match[2]) ? units[match[2]] : undefined
  if (!match || unit === undefined) {
    throw new SkimmerError('INVALID_ARGUMENT', `${JSON.stringify(text)} is not a ${kind}: write a number with one of ${Object.keys(units).join(', ')}, for instance ${example}`)
  }
  const value = Math.round(Number(match[1]) * unit)
  if (!Number.isSafeInteger(value)) throw new SkimmerError('INVALID_ARGUMENT', `${JSON.stringify(text)} is too large a ${kind}`)
  return value
}

/** Bytes. `0` needs no unit. */
export const parseSize = (text: string): number => (text.trim() === '0' ? 0 : measured(text, SIZES, 'size', '10GiB'))
/** Milliseconds. `0` needs no unit. */
export const parseDuration = (text: string): number => (text.trim() === '0' ? 0 : measured(text, TIMES, 'time', '30s'))

/** `1536` -> `1.5 KiB`. */
export function formatSize(bytes: number): string {
  const unit = ['TiB', 'GiB', 'MiB', 'KiB'].find((name) => Math.abs(bytes) >= SIZES[name])
  if (unit === undefined) return `${bytes} B`
  const value = bytes / SIZES[unit]
  return `${value >= 100 ? value.toFixed(0) : value.toFixed(1)} ${unit}`
}

/** `1234` -> `1.23 s`. */
export function formatDuration(ms: number): string {
  const whole = Math.round(ms)
  if (whole < 1000) return `${whole} ms`
  if (whole < 59_995) return `${(whole / 1000).toFixed(2)} s`
  const seconds = Math.round(whole / 1000)
  return `${Math.floor(seconds / 60)} min ${seconds % 60} s`
}
