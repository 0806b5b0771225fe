// dfget's words: what Dragonfly's users write means what it meant, and what is wrong is said before anything happens.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { EXIT_CODES } from '../../command-line/exit-codes.ts'
import { OPTIONS, PASSED_OVER, type DfgetOption } from '../../dfget/options.ts'
import { readWords, type DfgetWords } from '../../dfget/read-options.ts'
import { Home } from './run-dfget.ts'

const URL = 'https://source.example/a/file.bin'
let home: Home
let environment: NodeJS.ProcessEnv
beforeAll(() => {
  home = new Home()
  environment = { HOME: home.path }
})
afterAll(() => home.remove())

const read = (words: string, more: NodeJS.ProcessEnv = {}): DfgetWords => readWords(words.split(' ').filter(Boolean), { ...environment, ...more })
const values = (words: string, more?: NodeJS.ProcessEnv): DfgetWords['values'] => read(`${URL} ${words}`, more).values

describe('spellings', () => {
  test.each([
    ['-O out', '-o out', '--output out'],
    ['--digest md5:d41d8cd98f00b204e9800998ecf8427e', '-m d41d8cd98f00b204e9800998ecf8427e', '--md5 d41d8cd98f00b204e9800998ecf8427e'],
    ['--timeout 90s', '-e 90', '-e 1m30s', '--timeout 90'],
    ['--expire 3m', '--expiretime 3m0s', '--expire 180'],
    ['--pattern cdn', '-p cdn'],
    ['--priority 2', '-p 2'],
    ['--disable-back-to-source', '--disable-back-source', '--notbs', '--back-to-source false'],
    ['--limit 20MiB', '--locallimit 20M', '-s 20971520', '--ratelimit 20m', '--limit 20MiB/s'],
    ['--total-limit 1GiB', '--totallimit 1G'],
    ['--filtered-query-param a --filtered-query-param b', '-f a&b', '--filter a&b', '--filter a,b', '--filtered-query-params a&b'],
    ['-i one', '--identifier one'],
    ['-n h1:4980,h2:8002', '--node h1=3 --node h2:8002=1', '--supernodes h1,h2:8002'],
    ['--alive-time 7m', '--alivetime 7m0s'],
    ['-b', '--showbar'],
    ['--socket /x.sock', '-e /x.sock', '--endpoint unix:///x.sock', '-e unix:/x.sock'],
    ['-r', '--recursive'],
    ['--header A:b', '-H A:b'],
  ])('%s', (...spellings) => {
    const [first, ...others] = spellings.map((words) => values(words))
    expect(first).not.toEqual(values(''))
    for (const other of others) expect(other).toEqual(first)
  })

  test('the URL is a word, or -u', () => {
    expect(read(`-u ${URL}`).url).toBe(URL)
    expect(read(`--url ${URL}`).url).toBe(URL)
    expect(() => read(`-u ${URL} ${URL}x`)).toThrow('two URLs')
    expect(() => read('')).toThrow('what shall be downloaded?')
    expect(() => read('file.bin')).toThrow('no URL')
  })

  test("options of Dragonfly's that mean nothing here are passed over", () => {
    expect(values('--callsystem x --clientqueue 6 --console --dfdaemon --ip 10.0.0.9 --port 15001 --minrate 10k --transfer-from-dfdaemon')).toEqual(values(''))
  })
})

describe('what is wrong is said', () => {
  test.each([
    ['--digest sha256:abc', 'is not a digest of a file'],
    ['--limit fast', '--limit: "fast" is not a size'],
    ['--timeout soon', '--timeout: "soon" is not a time'],
    ['-p often', '--pattern: "often" is none of p2p, cdn, source'],
    ['-p 7', '--priority: "7" is not between 0 and 6'],
    ['--range 9-3', '--range: "9-3" is not a range'],
    ['--mode 9', '--mode: "9" is not a mode'],
    ['-r --accept-regex (', '--accept-regex: "("'],
    ['--accept-regex x', '--accept-regex has a meaning with --recursive only'],
    ['-n http://host:1', '--node: "http://host:1" is no supernode'],
    ['-p source --notbs', 'forbids'],
    ['--json -O -', 'both write to standard output'],
    ['-r -O -', 'takes one file'],
    ['--quiet --verbose', 'the opposite'],
    ['-m 00 --digest sha256:00', '--digest is given twice'],
    ['--cacert /no/such/file', '--cacert: /no/such/file cannot be read (ENOENT)'],
    ['--header-file /no/such/file', '--header-file: /no/such/file cannot be read (ENOENT)'],
    ['--config /no/such/file', '/no/such/file does not exist'],
  ])('%s', (words, said) => {
    expect(() => values(words)).toThrow(said)
  })

  test('a header that is none is named by its place, never by its value', () => {
    expect(() => readWords([URL, '-H', 'A: b', '-H', 'secret-token'], environment)).toThrow('--header: line 2 is not NAME: VALUE')
    expect(() => readWords([URL, '-H', 'secret-token'], environment)).not.toThrow('secret-token')
  })

  test('by the command too, with exit code 2', async () => {
    const unknown = await home.dfget([URL, '--hdfs-delegation-token', 'x'])
    expect([unknown.code, unknown.stderr]).toEqual([2, expect.stringContaining("unknown option '--hdfs-delegation-token'")])
    const limit = await home.dfget([URL, '--limit', 'fast'])
    expect([limit.code, limit.stderr]).toEqual([2, expect.stringContaining('dfget: --limit: "fast"')])
  })
})

describe('where settings come from', () => {
  test('options, then the environment, then the file', () => {
    const file = join(home.path, 'dfget.yaml')
    writeFileSync(file, 'supernodes: [10.0.0.1]\nlimit: 1MiB\nback-to-source: false\npiece-length: 1M\n')
    expect(values(`--config ${file}`)).toMatchObject({ supernodes: ['10.0.0.1:4980'], limit: 2 ** 20, 'back-to-source': false, 'piece-length': 2 ** 20 })
    expect(values(`--config ${file}`, { SKIMMER_LIMIT: '2MiB' }).limit).toBe(2 * 2 ** 20)
    expect(values(`--config ${file} --limit 3MiB`, { SKIMMER_LIMIT: '2MiB' }).limit).toBe(3 * 2 ** 20)
    expect(values('', { SKIMMER_DFGET_CONFIG: file, SKIMMER_SUPERNODES: 'a:1,b:2' }).supernodes).toEqual(['a:1', 'b:2'])
    // A node's own settings file is none of dfget's.
    expect(values('', { SKIMMER_CONFIG: '/no/such/file' }).limit).toBe(0)
  })

  test("the user's own file is found", () => {
    mkdirSync(join(home.path, '.config', 'skimmer'), { recursive: true })
    writeFileSync(join(home.path, '.config', 'skimmer', 'dfget.yaml'), 'tag: mine\n')
    expect(values('').tag).toBe('mine')
    expect(values('', { XDG_CONFIG_HOME: '/nowhere' }).tag).toBeUndefined()
    writeFileSync(join(home.path, '.config', 'skimmer', 'dfget.yaml'), '')
  })

  test('unknown keys, and those that are of one download only, are errors', () => {
    const file = join(home.path, 'wrong.yaml')
    for (const key of ['supernode', 'output', 'json']) {
      writeFileSync(file, `${key}: x\n`)
      expect(() => values(`--config ${file}`)).toThrow(`${key} is unknown`)
    }
  })

  test('headers: options say more than the environment, that more than the file of headers, that more than the settings', () => {
    const [lines, settings] = [join(home.path, 'headers'), join(home.path, 'headers.yaml')]
    writeFileSync(lines, '# of the release system\nAuthorization: Bearer from-lines\nA: lines\nB: lines\n\n')
    writeFileSync(settings, 'headers: ["A: settings", "D: settings"]\n')
    const { headers } = readWords([URL, '--config', settings, '--header-file', lines, '-H', 'B: option', '-H', 'c:'], { ...environment, SKIMMER_HEADERS: 'a: environment\nC: environment', DFGET_HEADERS: 'e: other' })
    expect(headers).toEqual({ authorization: 'Bearer from-lines', a: 'environment', b: 'option', d: 'settings', e: 'other' })
  })
})

test('--help names every option, its groups and the exit codes', async () => {
  const { code, stdout, stderr } = await home.dfget(['--help'])
  expect([code, stderr]).toEqual([0, ''])
  for (const words of ['-O, --output <FILE>', 'Whole directories:', '--notbs', '--md5', '-s --locallimit', '130 interrupted', 'DFGET_HEADERS']) expect(stdout.toString()).toContain(words)
})

test('a user and password in the URL become a header: they are no part of what is asked for', () => {
  expect(read('https://me:p%40ss@source.example/f')).toMatchObject({ url: 'https://source.example/f', headers: { authorization: `Basic ${Buffer.from('me:p@ss').toString('base64')}` } })
})

describe('docs/dfget.md', () => {
  const text = readFileSync(fileURLToPath(new globalThis.URL('../../docs/dfget.md', import.meta.url)), 'utf8')

  test('the options that it names exist', async () => {
    const known = new Set([...Object.values<DfgetOption>(OPTIONS).flatMap(({ spellings }) => spellings), ...PASSED_OVER].flatMap(({ flags }) => flags.split(', ')))
    const named = [...text.matchAll(/`(--?[A-Za-z][\w-]*)/g), ...text.matchAll(/^dfget .*?(-[A-Za-z-]+)/gm)].map(([, flag]) => flag)
    expect(named.length).toBeGreaterThan(80)
    expect(named.filter((flag) => !known.has(flag) && flag !== '--help')).toEqual([])
  })

  test('the settings that it shows are accepted', () => {
    const [, yaml] = /```yaml\n([\s\S]*?)```/.exec(text)!
    const file = join(home.path, 'documented.yaml')
    writeFileSync(file, yaml)
    expect(read(`${URL} --config ${file}`)).toMatchObject({ headers: { 'x-team': 'release' }, values: { supernodes: ['10.0.0.1:4980'], progress: 'off', 'total-limit': 50 * 2 ** 20 } })
  })

  test('its exit codes are those of the command', () => {
    const codes = [...text.matchAll(/^\| (\d+) \|/gm)].map(([, code]) => Number(code))
    expect(codes).toEqual([...Object.values(EXIT_CODES), 141])
  })
})
