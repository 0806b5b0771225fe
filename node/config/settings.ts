// Settings: one place per key for its parser, default and help; from it come the YAML schema, the flags, the environment and --help.
import { existsSync, readFileSync } from 'node:fs'
import { type Command, Option } from 'commander'
import { parse as parseYaml } from 'yaml'
import { SkimmerError } from '../../oci/errors.ts'
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

const single = <T>(placeholder: string, read: (text: string) => T) => (fallback: string, help: string): Setting<T> =>
  ({ help, fallback, placeholder, list: false, read: (written: string | readonly string[]) => read(String(written)) }) as unknown as Setting<T>

export const text = single('TEXT', (value) => value)
export const path = single('PATH', (value) => value)
export const size = single('SIZE', parseSize)
export const duration = single('TIME', parseDuration)
export const count = single('N', (value) => {
  if (!/^\d{1,9}$/.test(value)) throw new SkimmerError('INVALID_ARGUMENT', `${JSON.stringify(value)} is not a whole number`)
  return Number(value)
})
export const toggle = single('true|false', (value) => {
  if (value !== 'true' && value !== 'false') throw new SkimmerError('INVALID_ARGUMENT', `${JSON.stringify(value)} is neither true nor false`)
  return value === 'true'
})
export const choice = <const C extends readonly string[]>(choices: C, fallback: C[number], help: string): Setting<C[number]> =>
  single(choices.join('|'), (value): C[number] => {
    if (!choices.includes(value)) throw new SkimmerError('INVALID_ARGUMENT', `${JSON.stringify(value)} is none of ${choices.join(', ')}`)
    return value
  })(fallback, help)
/** May be left out. */
export const optional = (placeholder: string, help: string): Setting<string | undefined> =>
  ({ help, fallback: '', placeholder, list: false, read: (written: string | readonly string[]) => (String(written) === '' ? undefined : String(written)) }) as unknown as Setting<string | undefined>
/** Repeated as a flag, a list in YAML, separated by commas in the environment. */
export const list = (placeholder: string, fallback: readonly string[], help: string): Setting<readonly string[]> =>
  ({ help, fallback, placeholder, list: true, read: (written: string | readonly string[]) => (typeof written === 'string' ? [written] : [...written]) }) as unknown as Setting<readonly string[]>

const flagOf = (key: string): string => `--${key.replaceAll('.', '-')}`
const environmentOf = (key: string): string => `SKIMMER_${key.replaceAll(/[.-]/g, '_').toUpperCase()}`

/** Adds `--config FILE` and a flag for every setting to a command; the environment is read by loadSettings. */
export function addSettings(command: Command, settings: Settings): Command {
  command.option('-c, --config <FILE>', 'YAML file with these settings; flags and environment come before it (environment: SKIMMER_CONFIG)')
  for (const [key, setting] of Object.entries(settings)) {
    const written = Array.isArray(setting.fallback) ? setting.fallback.join(',') : setting.fallback
    const option = new Option(`${flagOf(key)} <${setting.placeholder}${setting.list ? '...' : ''}>`, `${setting.help}${written ? ` [${written}]` : ''} (environment: ${environmentOf(key)})`)
    command.addOption(option)
  }
  return command
}

/** Flags, then environment, then file, then defaults. Everything is read and checked before anything happens. */
export function loadSettings<S extends Settings>(settings: S, flags: Record<string, unknown>, environment: NodeJS.ProcessEnv = process.env): Values<S> {
  const file = (flags.config as string | undefined) ?? environment.SKIMMER_CONFIG
  const written = file === undefined ? new Map<string, string | string[]>() : readFile(file, settings)
  const values: Record<string, unknown> = {}
  for (const [key, setting] of Object.entries(settings)) {
    const flag = flags[flagOf(key).slice(2).replaceAll(/-([a-z0-9])/g, (_, letter: string) => letter.toUpperCase())] as string | string[] | undefined
    const fromEnvironment = environment[environmentOf(key)]
    const chosen = flag ?? (fromEnvironment === undefined ? undefined : setting.list ? fromEnvironment.split(',').filter(Boolean) : fromEnvironment) ?? written.get(key) ?? setting.fallback
    try {
      values[key] = setting.read(chosen as string)
    } catch (error) {
      const where = flag !== undefined ? flagOf(key) : fromEnvironment !== undefined ? environmentOf(key) : `${file}: ${key}`
      throw new SkimmerError('INVALID_ARGUMENT', `${where}: ${(error as Error).message}`, { cause: error })
    }
  }
  return values as Values<S>
}

function readFile(file: string, settings: Settings): Map<string, string | string[]> {
  if (!existsSync(file)) throw new SkimmerError('INVALID_ARGUMENT', `the configuration file ${file} does not exist`)
  let document: unknown
  try {
    document = parseYaml(readFileSync(file, 'utf8'), { maxAliasCount: 10 })
  } catch (error) {
    throw new SkimmerError('INVALID_ARGUMENT', `${file} is not YAML: ${(error as Error).message}`, { cause: error })
  }
  const written = new Map<string, string | string[]>()
  flatten(document ?? {}, '', file, settings, written)
  return written
}

function flatten(value: unknown, prefix: string, file: string, settings: Settings, written: Map<string, string | string[]>): void {
  const setting = settings[prefix]
  if (setting?.list && Array.isArray(value)) {
    written.set(prefix, value.map(String))
  } else if (setting && (typeof value === 'string' || typeof value === 'number' || typeof value === 'boolean')) {
    written.set(prefix, setting.list ? [String(value)] : String(value))
  } else if (!setting && typeof value === 'object' && value !== null && !Array.isArray(value)) {
    for (const [key, inner] of Object.entries(value)) flatten(inner, prefix === '' ? key : `${prefix}.${key}`, file, settings, written)
  } else {
    const known = setting ? `is ${Array.isArray(value) ? 'a list' : typeof value}; write ${setting.placeholder}` : `is unknown; known keys: ${Object.keys(settings).join(', ')}`
    throw new SkimmerError('INVALID_ARGUMENT', `${file}: ${prefix === '' ? 'the document' : prefix} ${known}`)
  }
}
