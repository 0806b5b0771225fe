// All options of dfget, one place each: how Dragonfly 1, Dragonfly 2 and we spell it, what it takes, what it means.
import { choice, count, list, optional, path, refuse, toggle, type Setting, type Values } from '../command-line/settings.ts'
import { bytes, maybe, readMode, readNames, readPattern, readPieceLength, readPriority, readRange, readSupernodes, readTime, time } from './option-values.ts'

export const GROUPS = ['What and where to', 'How', 'Bytes per second', 'Through whom', 'Whole directories', 'What is said'] as const

export interface Spelling {
  /** As commander reads it, without the value: `-O, --output`. */
  readonly flags: string
  /** Takes no value and says this one. */
  readonly says?: string
  /** What the value says, when that is not the value itself, of this option or of another. */
  readonly means?: (value: string) => readonly [key: string, value: string]
}

export interface DfgetOption {
  readonly group: (typeof GROUPS)[number]
  readonly setting: Setting<any>
  /** The first is ours, and the one in --help; the others are read all the same. */
  readonly spellings: readonly Spelling[]
  /** May it stand in the configuration file and the environment too? */
  readonly lasting: boolean
}

const again = <T>(setting: Setting<readonly string[]>, read: (written: readonly string[]) => T): Setting<T> =>
  ({ ...setting, read: (written: string | readonly string[]) => read(typeof written === 'string' ? [written] : written) }) as unknown as Setting<T>

const spelled = (flags: readonly (string | Spelling)[]): Spelling[] => flags.map((each) => (typeof each === 'string' ? { flags: each } : each))
const once = <T>(group: DfgetOption['group'], setting: Setting<T>, ...flags: (string | Spelling)[]) => ({ group, setting, spellings: spelled(flags), lasting: false as const })
const lasting = <T>(group: DfgetOption['group'], setting: Setting<T>, ...flags: (string | Spelling)[]) => ({ group, setting, spellings: spelled(flags), lasting: true as const })

const [WHAT, HOW, RATES, WHOM, TREE, SAID] = GROUPS
const says = (flags: string, value: string): Spelling => ({ flags, says: value })

export const OPTIONS = {
  url: once(WHAT, optional('URL', 'what to download, the same as the word URL: http(s)://, oci://, s3://, file://'), '-u, --url'),
  output: once(WHAT, optional('FILE', "where to; a directory takes the URL's last word as name; - is standard output; -o too [the URL's last word]"), '-O, --output', { flags: '-o' }),
  digest: once(WHAT, optional('DIGEST', 'the content must have it, or there is no FILE: sha256:…, sha512:…, md5:…, crc32:…'), '--digest', { flags: '-m, --md5', means: (value) => ['digest', `md5:${value.replace(/^md5:/, '')}`] }),
  range: once(WHAT, maybe('FROM-TO', readRange)('only these bytes of it, both ends included, for instance 0-1023'), '--range'),
  mode: once(WHAT, maybe('OCTAL', readMode)('permissions of FILE, for instance 0640 [as the umask says]'), '--mode'),
  overwrite: once(WHAT, toggle('true', 'refuse when FILE is there already [it is replaced]'), says('--no-overwrite', 'false'), says('--overwrite', 'true')),
  headers: lasting(WHAT, list("'NAME: VALUE'", [], 'request header for the source; repeat it. Secrets are safer in a --header-file'), '-H, --header'),
  'header-file': lasting(WHAT, optional('FILE', 'request headers, one a line; - is standard input. SKIMMER_HEADERS and DFGET_HEADERS hold such lines too'), '--header-file'),

  pattern: lasting(HOW, choice(['p2p', 'cdn', 'source'], 'p2p', 'where bytes may come from: peers and supernode, the supernode alone, straight from the source (-p too; -p 0 to -p 6 is --priority)'), '--pattern', {
    // Dragonfly 1's pattern and Dragonfly 2's priority: what stands behind tells which.
    flags: '-p', means: (value) => [/^\d+$/.test(value) ? 'priority' : 'pattern', value],
  }),
  'back-to-source': lasting(HOW, toggle('true', 'never read the source from here: supernode and peers, or an error'), says('--disable-back-to-source', 'false'), says('--disable-back-source', 'false'), says('--notbs', 'false'), { flags: '--back-to-source' }),
  timeout: lasting(HOW, time('0', 'give up when it is not here after that; 0: only when nothing comes any more (-e too; -e PATH is --socket)'), '--timeout', {
    // Dragonfly 1's timeout and Dragonfly 2's endpoint.
    flags: '-e', means: (value) => (/^(?:unix:|\/|\.)/.test(value) ? ['socket', value] : ['timeout', value]),
  }),
  expire: lasting(HOW, maybe('TIME', readTime)('how long a copy is good without asking the source [3m; 10s when it has ETag or Last-Modified]'), '--expire', '--expiretime'),
  fresh: once(HOW, toggle('false', 'have the source asked again now, whatever the supernode knows'), says('--fresh', 'true')),
  priority: lasting(HOW, maybe('0-6', readPriority)('when a supernode has much to do: 0 first, 6 last [3]'), '--priority'),
  connections: lasting(HOW, count('4', 'connections to a source that is read straight', { least: 1, most: 64 }), '--connections'),
  'piece-length': lasting(HOW, maybe('SIZE', readPieceLength)('size of the blocks, 64KiB to 4MiB [by the length]'), '--piece-length'),
  'filtered-query-params': lasting(HOW, again(list('NAME', [], "query parameters that do not make another file, for instance signatures: repeat it, or 'a&b'"), readNames), '--filtered-query-param', '-f, --filter', '--filtered-query-params'),
  tag: lasting(HOW, optional('TEXT', 'downloads of one URL with different tags are different files'), '--tag'),
  application: lasting(HOW, optional('TEXT', 'as --tag'), '--application'),
  identifier: lasting(HOW, optional('TEXT', 'as --tag'), '-i, --identifier'),
  cacert: lasting(HOW, again(list('FILE', [], 'certificate authorities of the source, PEM; repeat it'), (files) => files.flatMap((file) => file.split(','))), '--cacert', '--cacerts'),
  insecure: lasting(HOW, toggle('false', "do not check the source's certificate"), says('--insecure', 'true')),
  'storage-endpoint': lasting(HOW, optional('URL', "server of s3:// URLs [Amazon's; AWS_REGION, AWS_ACCESS_KEY_ID and so on count as for every AWS tool]"), '--storage-endpoint'),
  'storage-region': lasting(HOW, optional('NAME', 'region of s3:// URLs'), '--storage-region'),
  'storage-access-key-id': lasting(HOW, optional('ID', 'key of s3:// URLs; safer in the environment or the file'), '--storage-access-key-id'),
  'storage-access-key-secret': lasting(HOW, optional('SECRET', 'and its secret'), '--storage-access-key-secret'),
  'storage-session-token': lasting(HOW, optional('TOKEN', 'and its session'), '--storage-session-token'),

  limit: lasting(RATES, bytes('0', 'for this download, for instance 20MiB; 0: none'), '--limit', '-s, --locallimit', '--ratelimit'),
  'total-limit': lasting(RATES, bytes('0', 'for all downloads of this user on this host while this one runs; 0: none'), '--total-limit', '--totallimit'),

  socket: lasting(WHOM, again(list('PATH', ['/run/skimmer/api.sock'], "the node's API socket; an empty one: never ask a node"), ([socket]) => (socket ?? '').replace(/^unix:(?:\/\/)?/, '')), '--socket', '--endpoint'),
  supernodes: lasting(WHOM, again(list('HOST:PORT', [], 'supernodes, where no node runs here: dfget becomes a peer itself; commas or repeat it'), readSupernodes), '-n, --node', '--supernodes'),
  'alive-time': lasting(WHOM, time('5m', 'so long that peer serves others after the last download'), '--alive-time', '--alivetime'),
  home: lasting(WHOM, optional('DIR', 'its cache [$XDG_CACHE_HOME/skimmer or ~/.cache/skimmer]'), '--home'),
  'cache-size': lasting(WHOM, bytes('10GiB', 'how large'), '--cache-size'),
  listen: lasting(WHOM, list('ADDRESS', ['/ip4/0.0.0.0/tcp/0'], 'where other peers reach it'), '--listen'),
  announce: lasting(WHOM, list('ADDRESS', [], 'addresses to tell others instead'), '--announce'),
  labels: lasting(WHOM, list('NAME=VALUE', [], 'where it is, for instance zone=a: near peers are asked first'), '--label', '--labels'),
  'join-token-file': lasting(WHOM, optional('FILE', 'file with the token the supernodes ask for'), '--join-token-file'),
  'upload-rate': lasting(WHOM, bytes('0', 'bytes per second it gives to others; 0: no limit'), '--upload-rate'),

  recursive: once(TREE, toggle('false', 'URL is an index page: download what it lists, and what that lists, into the directory FILE'), says('-r, --recursive', 'true')),
  'accept-regex': once(TREE, again(list('REGEX', [], 'only files whose URL matches; repeat it'), (all) => all.map(readPattern)), '--accept-regex'),
  'reject-regex': once(TREE, again(list('REGEX', [], 'no files, and no directories, whose URL matches; repeat it'), (all) => all.map(readPattern)), '--reject-regex'),
  level: once(TREE, count('5', 'so many directories deep; 0: no end', { most: 1000 }), '--level'),
  list: once(TREE, toggle('false', 'only print what would be downloaded'), says('--list', 'true')),
  'max-files': lasting(TREE, count('100', 'more is an error, before anything is downloaded', { least: 1, most: 1_000_000 }), '--max-files'),
  'max-concurrent-requests': lasting(TREE, count('5', 'files at the same time', { least: 1, most: 64 }), '--max-concurrent-requests'),

  quiet: lasting(SAID, toggle('false', 'errors only'), says('-q, --quiet', 'true')),
  verbose: lasting(SAID, toggle('false', 'also which ways were tried, and why'), says('-v, --verbose', 'true')),
  progress: lasting(SAID, choice(['auto', 'on', 'off'], 'auto', 'no bar on a terminal, no lines on a pipe'), says('--no-progress', 'off'), says('-b, --showbar', 'on')),
  json: once(SAID, toggle('false', 'the result as one JSON object on standard output'), says('--json', 'true')),
  config: once(SAID, path('', 'YAML file with these settings [/etc/skimmer/dfget.yaml, ~/.config/skimmer/dfget.yaml]'), '-c, --config'),
} satisfies Record<string, DfgetOption>

export type OptionKey = keyof typeof OPTIONS
type SettingsOf<O extends Record<string, DfgetOption>> = { readonly [K in keyof O]: O[K]['setting'] }
export type DfgetValues = Values<SettingsOf<typeof OPTIONS>>

/** Of Dragonfly 1 and 2: they say how their dfget does its work, and what they are about does not exist here. Read, and passed over. */
export const PASSED_OVER: readonly { readonly flags: string; readonly value: boolean }[] = [
  ...['--callsystem', '--clientqueue', '--ip', '--port', '--minrate', '--log-level', '--log-dir', '--log-max-files'].map((flags) => ({ flags, value: true })),
  ...['--console', '--dfdaemon', '--transfer-from-dfdaemon', '--log-to-stdout'].map((flags) => ({ flags, value: false })),
]

export const settingsOf = (keys: (option: DfgetOption) => boolean): Record<string, Setting<any>> =>
  Object.fromEntries(Object.entries<DfgetOption>(OPTIONS).filter(([, option]) => keys(option)).map(([key, { setting }]) => [key, setting]))

/** Options that cannot stand together. INVALID_ARGUMENT. */
export function checkTogether(values: DfgetValues): void {
  const { recursive, output, json, pattern } = values
  if (output === '-' && json) refuse('--json and -O - both write to standard output')
  if (output === '-' && recursive) refuse('-O - takes one file, --recursive brings many')
  if (values.quiet && values.verbose) refuse('--quiet and --verbose say the opposite')
  if (pattern === 'source' && !values['back-to-source']) refuse('--pattern source reads the source, which --disable-back-to-source forbids')
  if (recursive && (values.digest !== undefined || values.range !== undefined)) refuse('--digest and --range are of one file, --recursive brings many')
  const tree = (['list', 'accept-regex', 'reject-regex'] as const).find((key) => (typeof values[key] === 'boolean' ? values[key] : values[key].length > 0))
  if (!recursive && tree !== undefined) refuse(`--${tree} has a meaning with --recursive only`)
}
