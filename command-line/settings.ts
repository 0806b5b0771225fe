// Settings: one place per key for its parser, default and help; from it come the YAML schema, the flags, the environment and --help.
import { existsSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { type Command, Option } from 'commander'
import { SkimmerError } from '../oci/errors.ts'
import { parseDuration, parseSize } from './units.ts'

export interface Setting<T> {
  readonly help: string
  /** As it is written in YAML and on the command line. */
  readonly fallback: T extends readonly string[] ? readonly string[] : string | undefined
  readonly placeholder: string
  readonly list: boolean
  /** Throws SkimmerError INVALID_ARGUMENT. */
  readonly read: (written: string | readonly string[]) => T
}
export type Settings = Readonly<Record<string, Setting<any>>>
export type Values<S extends Settings> = { readonly [K in keyof S]: S[K] extends Setting<infer T> ? T : never }

/** A setting of one word with a reader of its own; the reader throws SkimmerError INVALID_ARGUMENT. */
export const single = <T>(placeholder: string, read: (text: string) => T) => (fallback: string, help: string): Setting<T> =>
  ({ help, fallback, placeholder, list: false, read: (written: string | readonly string[]) => read(String(written)) }) as unknown as Setting<T>

/** INVALID_ARGUMENT in these words. */
export const refuse = (words: string): never => {
  throw new SkimmerError('INVALID_ARGUMENT', words)
}

export const text = single('TEXT', (value) => value)
export const path = single('PATH', (value) => value)
export const size = single('SIZE', parseSize)
export const duration = single('TIME', parseDuration)
/** A time that something waits for: timers end at 24 days, and nobody means more than a day. */
export const wait = single('TIME', (value) => {
  const ms = parseDuration(value)
  return ms <= 86_400_000 ? ms : refuse(`${JSON.stringify(value)} is longer than a day`)
})
export const count = (fallback: string, help: string, { least = 0, most = 999_999_999 } = {}): Setting<number> =>
  single('N', (value) => {
    if (!/^\d{1,9}$/.test(value)) refuse(`${JSON.stringify(value)} is not a whole number`)
    return Number(value) >= least && Number(value) <= most ? Number(value) : refuse(`${value} is not between ${least} and ${most}`)
  })(fallback, help)
export const toggle = single('true|false', (value) => (value === 'true' || value === 'false' ? value === 'true' : refuse(`${JSON.stringify(value)} is neither true nor false`)))
/** Where to listen; an empty host is every address. */
export const endpoint = (fallback: string, help: string): Setting<Endpoint | undefined> =>
  single('HOST:PORT', (value): Endpoint | undefined => {
    if (value === '') return undefined
    const [, host, port] = /^(\[[0-9a-fA-F:.]+\]|[^:[\]/]*):(\d{1,5})$/.exec(value) ?? []
    if (port === undefined || Number(port) > 65_535) refuse(`${JSON.stringify(value)} is not HOST:PORT, for instance 0.0.0.0:4981`)
    return { host: host.replace(/^\[(.*)\]$/, '$1') || '0.0.0.0', port: Number(port) }
  })(fallback, help)
export interface Endpoint {
  readonly host: string
  readonly port: number
}
export const choice = <const C extends readonly string[]>(choices: C, fallback: C[number], help: string): Setting<C[number]> =>
  single(choices.join('|'), (value): C[number] => (choices.includes(value) ? value : refuse(`${JSON.stringify(value)} is none of ${choices.join(', ')}`)))(fallback, help)
/** May be left out. */
export const optional = (placeholder: string, help: string): Setting<string | undefined> =>
  ({ help, fallback: '', placeholder, list: false, read: (written: string | readonly string[]) => (String(written) === '' ? undefined : String(written)) }) as unknown as Setting<string | undefined>
/** Repeated as a flag, a list in YAML, separated by commas in the environment. */
export const list = (placeholder: string, fallback: readonly string[], help: string): Setting<readonly string[]> =>
  ({ help, fallback, placeholder, list: true, read: (written: string | readonly string[]) => (typeof written === 'string' ? [written] : [...written]) }) as unknown as Setting<readonly string[]>

const flagOf = (key: string): string => `--${key.replaceAll('.', '-')}`
export const environmentOf = (key: string): string => `SKIMMER_${key.replaceAll(/[.-]/g, '_').toUpperCase()}`

/** How settings are written, for a command's --help. */
export const SETTINGS_HELP = `Each setting is a flag, an environment variable and a key of the YAML file; the flag counts first, then the environment, then the file.
--cache-size 50GiB, SKIMMER_CACHE_SIZE=50GiB and "cache: { size: 50GiB }" say the same. Lists: repeat the flag's words, separate by commas in
the environment, write a YAML list. Sizes have a unit (B, KB, MB, GB, TB, KiB, MiB, GiB, TiB), times too (ms, s, m, h, d). Unknown keys are errors.`

/** Adds `--config FILE` and a flag for every setting to a command; the environment is read by loadSettings. */
export function addSettings(command: Command, settings: Settings): Command {
  command.option('-c, --config <FILE>', 'YAML file with these settings; flags and environment come before it (environment: SKIMMER_CONFIG)')
  for (const [key, setting] of Object.entries(settings)) {
    const written = Array.isArray(setting.fallback) ? setting.fallback.join(',') : setting.fallback
    command.addOption(new Option(`${flagOf(key)} <${setting.placeholder}${setting.list ? '...' : ''}>`, `${setting.help}${written ? ` [${written}]` : ''} (environment: ${environmentOf(key)})`))
  }
  return command
}

/** Where settings may be written: what is written for a key, and how that place is named in messages. */
export interface SettingsLayer {
  readonly written: (key: string) => string | readonly string[] | undefined
  readonly where: (key: string) => string
}

/** The first layer that says something counts, then the default. Everything is read and checked before anything happens. */
export function chooseSettings<S extends Settings>(settings: S, layers: readonly SettingsLayer[]): Values<S> {
  const values: Record<string, unknown> = {}
  for (const [key, setting] of Object.entries(settings)) {
    const layer = layers.find((each) => each.written(key) !== undefined)
    try {
      values[key] = setting.read((layer?.written(key) ?? setting.fallback) as string)
    } catch (error) {
      throw new SkimmerError('INVALID_ARGUMENT', `${layer?.where(key) ?? key}: ${(error as Error).message}`, { cause: error })
    }
  }
  return values as Values<S>
}

/** `SKIMMER_CACHE_SIZE` for `cache.size`; lists are separated by commas. An empty variable says something: the empty text. */
export function environmentLayer(settings: Settings, environment: NodeJS.ProcessEnv): SettingsLayer {
  return {
    written: (key) => {
      const text = environment[environmentOf(key)]
      return text === undefined || !settings[key].list ? text : text.split(',').filter(Boolean)
    },
    where: environmentOf,
  }
}

/** INVALID_ARGUMENT as of readSettingsFile. */
export function fileLayer(file: string, settings: Settings): SettingsLayer {
  const written = readSettingsFile(file, settings)
  return { written: (key) => written.get(key), where: (key) => `${file}: ${key}` }
}

/** Flags, then environment, then file, then defaults. */
export function loadSettings<S extends Settings>(settings: S, flags: Record<string, unknown>, environment: NodeJS.ProcessEnv = process.env): Values<S> {
  const file = (flags.config as string | undefined) ?? environment.SKIMMER_CONFIG
  const flag = (key: string): string => flagOf(key).slice(2).replaceAll(/-([a-z0-9])/g, (_, letter: string) => letter.toUpperCase())
  return chooseSettings(settings, [
    { written: (key) => flags[flag(key)] as string | string[] | undefined, where: flagOf },
    environmentLayer(settings, environment),
    ...(file === undefined ? [] : [fileLayer(file, settings)]),
  ])
}

/** What a YAML file says, key by key, as it is written. INVALID_ARGUMENT: no such file, no YAML, an unknown key, a value of the wrong kind. */
function readSettingsFile(file: string, settings: Settings): Map<string, string | string[]> {
  if (!existsSync(file)) throw new SkimmerError('INVALID_ARGUMENT', `the configuration file ${file} does not exist`)
  let document: unknown
  try {
    // Loaded only when there is a file: commands start without it.
    const { parse: parseYaml } = createRequire(import.meta.url)('yaml') as typeof import('yaml')
    document = parseYaml(readFileSync(file, 'utf8'), { maxAliasCount: 10, logLevel: 'error' })
  } catch (error) {
    throw new SkimmerError('INVALID_ARGUMENT', `${file} is not YAML: ${(error as Error).message}`, { cause: error })
  }
  const written = new Map<string, string | string[]>()
  flatten(document ?? {}, '', file, settings, written)
  return written
}

const isScalar = (value: unknown): value is string | number | boolean => typeof value === 'string' || typeof value === 'number' || typeof value === 'boolean'

function flatten(value: unknown, key: string, file: string, settings: Settings, written: Map<string, string | string[]>): void {
  const setting = Object.hasOwn(settings, key) ? settings[key] : undefined
  const isSection = key === '' || Object.keys(settings).some((known) => known.startsWith(`${key}.`))
  if (setting?.list && Array.isArray(value) && value.every(isScalar)) {
    written.set(key, value.map(String))
  } else if (setting && isScalar(value)) {
    written.set(key, setting.list ? [String(value)] : String(value))
  } else if (setting) {
    const kind = value === null ? 'empty' : Array.isArray(value) ? (setting.list ? 'a list of more than words' : 'a list') : 'a mapping'
    refuse(`${file}: ${key} is ${kind}; write ${setting.list ? `a list of ${setting.placeholder}` : setting.placeholder}`)
  } else if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
    for (const [name, inner] of Object.entries(value)) flatten(inner, key === '' ? name : `${key}.${name}`, file, settings, written)
  } else if (!(isSection && value === null)) {
    refuse(`${file}: ${key === '' ? 'the document is not a mapping of keys' : `${key} is unknown`}; known keys: ${Object.keys(settings).join(', ')}`)
  }
}
