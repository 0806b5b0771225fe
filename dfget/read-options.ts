// dfget's words, environment and files become one set of checked values.
import { readFileSync, existsSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { Command, Option } from 'commander'
import { chooseSettings, environmentLayer, fileLayer, refuse, type SettingsLayer } from '../command-line/settings.ts'
import { VERSION } from '../command-line/version.ts'
import { basicAuthorization } from '../source/source-url.ts'
import { parseContentDigest } from '../source/content-digest.ts'
import { checkTogether, OPTIONS, PASSED_OVER, settingsOf, type DfgetOption, type DfgetValues, type Spelling } from './options.ts'
import { EPILOGUE } from './help.ts'
import { mergeHeaders, readHeaderLines } from './header-lines.ts'

const SYSTEM_FILE = '/etc/skimmer/dfget.yaml'
const MAX_CA_BYTES = 256 * 1024
const MAX_HEADER_FILE_BYTES = 1024 * 1024

/** What was asked for: everything is read and checked, nothing has happened. */
export interface DfgetWords {
  readonly url: string
  readonly values: DfgetValues
  readonly headers: Readonly<Record<string, string>>
  /** PEM. */
  readonly ca?: string
}

/** One option as commander sees it: several spellings write to one key, and some say a value by themselves. */
class SpelledOption extends Option {
  readonly #key: string

  constructor({ flags, says }: Spelling, option: DfgetOption, key: string) {
    super(says === undefined ? `${flags} <${option.setting.placeholder}>` : flags, describe(option))
    this.#key = key
    // `--no-…` says a value like any other.
    this.negate = false
    if (says !== undefined) this.preset(says)
    this.argParser((value: string, before: string[] | undefined) => [...(before ?? []), value])
    this.helpGroup(`${option.group}:`)
  }

  override attributeName(): string {
    return this.#key
  }
}

function describe({ setting, spellings }: DfgetOption): string {
  const others = spellings.slice(1).filter(({ says, flags }) => says === spellings[0].says && flags.length > 2).map(({ flags }) => flags.replace(', ', ' '))
  const fallback = typeof setting.fallback === 'string' && !['', '0', 'true', 'false', 'auto'].includes(setting.fallback) ? ` [${setting.fallback}]` : ''
  return `${setting.help}${fallback}${others.length > 0 ? ` (also ${others.join(' ')})` : ''}`
}

export function dfgetCommand(): Command {
  const command = new Command('dfget')
    .usage('[options] URL [-O FILE]')
    .description('Downloads what a URL answers: from other hosts that have it and from a supernode that reads the source once; without one, straight from the source.')
    .argument('[URL]')
    .version(VERSION, '-V, --version', 'say the version')
    .helpOption('-h, --help', 'say all this')
    .allowExcessArguments(false)
    .showSuggestionAfterError()
    .exitOverride()
    .configureOutput({ getOutHelpWidth: () => process.stdout.columns ?? 140, getErrHelpWidth: () => process.stderr.columns ?? 140 })
    .addHelpText('after', `\n${EPILOGUE}`)
  for (const [key, option] of Object.entries<DfgetOption>(OPTIONS)) {
    for (const [number, spelling] of option.spellings.entries()) {
      command.addOption(new SpelledOption(spelling, option, spelling.means === undefined ? key : spelling.flags).hideHelp(number > 0))
    }
  }
  for (const { flags, value } of PASSED_OVER) command.addOption(new Option(value ? `${flags} <VALUE>` : flags).hideHelp())
  return command
}

/** `words` without the program's own. CommanderError: asked for help or version (exitCode 0), or the words are none of ours; INVALID_ARGUMENT: their values. */
export function readWords(words: readonly string[], environment: NodeJS.ProcessEnv = process.env): DfgetWords {
  const command = dfgetCommand().parse(words, { from: 'user' })
  const written = command.opts<Record<string, string[]>>()
  const flags = new Map(Object.keys(OPTIONS).filter((key) => command.getOptionValueSource(key) === 'cli').map((key) => [key, written[key]]))
  for (const { flags: spelling, means } of Object.values<DfgetOption>(OPTIONS).flatMap(({ spellings }) => spellings)) {
    for (const value of means === undefined ? [] : (written[spelling] ?? [])) {
      const [key, meant] = means!(value)
      if (flags.has(key)) refuse(`${spelling} ${value}: --${key} is given twice`)
      flags.set(key, [meant])
    }
  }
  const lists = new Set(Object.entries<DfgetOption>(OPTIONS).filter(([, { setting }]) => setting.list).map(([key]) => key))
  const flagLayer: SettingsLayer = {
    written: (key) => (lists.has(key) ? flags.get(key) : flags.get(key)?.at(-1)),
    where: (key) => OPTIONS[key as keyof typeof OPTIONS].spellings[0].flags.split(', ').at(-1)!,
  }
  const lasting = settingsOf(({ lasting }) => lasting)
  const onlyLasting = ({ written, where }: SettingsLayer): SettingsLayer => ({ written: (key) => (Object.hasOwn(lasting, key) ? written(key) : undefined), where })
  const files = configFiles(flags.get('config')?.at(-1), environment).map((file) => fileLayer(file, lasting))
  const environmentWords = environmentLayer(lasting, environment)
  const layers = [flagLayer, ...[environmentWords, ...files].map(onlyLasting)]
  const values = chooseSettings(settingsOf(() => true), layers) as DfgetValues
  checkTogether(values)
  if (values.digest !== undefined) parseContentDigest(values.digest)
  const [word] = command.args
  if (word !== undefined && values.url !== undefined && word !== values.url) refuse('two URLs: one is enough')
  const url = word ?? values.url ?? refuse('what shall be downloaded? Write its URL; dfget --help tells the rest')
  if (!URL.canParse(url)) refuse('this is no URL: write it like https://host/path')
  const headers = headersOf(values, flags.get('headers'), files, environment)
  return { ...withoutUser(url, headers), values, ...(values.cacert.length > 0 && { ca: readAuthorities(values.cacert) }) }
}

/** Who asks is said by a header, never by the URL: it is no part of what is asked for. */
function withoutUser(text: string, headers: Record<string, string>): { url: string; headers: Record<string, string> } {
  const url = new URL(text)
  const authorization = basicAuthorization(url)
  if (authorization === undefined) return { url: text, headers }
  url.username = url.password = ''
  return { url: url.href, headers: { authorization, ...headers } }
}

function configFiles(named: string | undefined, environment: NodeJS.ProcessEnv): string[] {
  const given = named ?? environment.SKIMMER_DFGET_CONFIG
  if (given !== undefined) return given === '' ? [] : [given]
  const own = join(environment.XDG_CONFIG_HOME || join(environment.HOME || homedir(), '.config'), 'skimmer', 'dfget.yaml')
  return [own, SYSTEM_FILE].filter((file) => existsSync(file))
}

/** By name, the nearest says: flags, environment, header file, configuration files. */
function headersOf(values: DfgetValues, flags: readonly string[] | undefined, files: readonly SettingsLayer[], environment: NodeJS.ProcessEnv): Record<string, string> {
  const file = values['header-file']
  const lines = (text: string): string[] => text.split(/\r?\n/)
  return mergeHeaders([
    ...files.toReversed().map((layer) => readHeaderLines((layer.written('headers') ?? []) as readonly string[], layer.where('headers'))),
    file === undefined ? {} : readHeaderLines(lines(readBounded(file, MAX_HEADER_FILE_BYTES, '--header-file')), file),
    readHeaderLines(lines(environment.DFGET_HEADERS ?? ''), 'DFGET_HEADERS'),
    readHeaderLines(lines(environment.SKIMMER_HEADERS ?? ''), 'SKIMMER_HEADERS'),
    readHeaderLines(flags ?? [], '--header'),
  ])
}

const readAuthorities = (files: readonly string[]): string => {
  const text = files.map((file) => readBounded(file, MAX_CA_BYTES, '--cacert')).join('\n')
  return text.includes('-----BEGIN CERTIFICATE-----') ? text : refuse(`--cacert: ${files.join(', ')} holds no certificate in PEM`)
}

function readBounded(file: string, most: number, option: string): string {
  try {
    const text = readFileSync(file === '-' ? 0 : file, 'utf8')
    return text.length <= most ? text : refuse(`${option}: ${file} is larger than ${most} bytes`)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === undefined || (error as Error).name === 'SkimmerError') throw error
    return refuse(`${option}: ${file} cannot be read (${(error as NodeJS.ErrnoException).code})`)
  }
}
