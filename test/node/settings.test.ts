// Settings: flags before environment before file before defaults; every mistake is an error that names the key.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import * as fc from 'fast-check'
import { checkNodeConfig } from '../../node/config/node-check.ts'
import { labelsOf, NODE_SETTINGS, type NodeConfig } from '../../node/config/node-settings.ts'
import { hostsConfig } from '../../node/config/registries.ts'
import { loadSettings } from '../../command-line/settings.ts'
import { SUPERNODE_SETTINGS, supernodeConfig } from '../../node/config/supernode-settings.ts'
import { formatDuration, formatSize, parseDuration, parseSize } from '../../command-line/units.ts'
import { SkimmerError } from '../../oci/errors.ts'
import { supernodeConfigSchema } from '../../supernode/supernode-config.ts'

let directory: string
let files = 0

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'skimmer-settings-'))
})
afterAll(() => rmSync(directory, { recursive: true, force: true }))

function file(text: string): string {
  const path = join(directory, `${files++}.yaml`)
  writeFileSync(path, text)
  return path
}

const node = (yaml: string, flags: Record<string, unknown> = {}, environment: Record<string, string> = {}): NodeConfig => loadSettings(NODE_SETTINGS, { config: file(yaml), ...flags }, environment)

const http = (listen: string): unknown => supernodeConfig(loadSettings(SUPERNODE_SETTINGS, { httpListen: listen }, {})).http

function mistake(work: () => unknown): string {
  try {
    work()
  } catch (error) {
    expect(error).toBeInstanceOf(SkimmerError)
    expect((error as SkimmerError).code).toBe('INVALID_ARGUMENT')
    return (error as Error).message
  }
  throw new Error('this should have been refused')
}

describe('where a setting comes from', () => {
  test('nothing is written: defaults', () => {
    const config = loadSettings(NODE_SETTINGS, {}, {})
    expect(config).toMatchObject({ root: '/var/lib/skimmer', 'cache.size': 20 * 2 ** 30, 'demand.timeout': 30_000, 'prefetch.enabled': true, supernodes: [], 'metrics.listen': undefined })
  })

  test('a flag counts before the environment, that before the file, that before the default', () => {
    const yaml = 'cache: { size: 1GiB }\nupload: { slots: 3 }\nprefetch: { enabled: false }'
    const environment = { SKIMMER_CACHE_SIZE: '2GiB', SKIMMER_UPLOAD_SLOTS: '4' }
    const config = node(yaml, { cacheSize: '3GiB' }, environment)
    expect([config['cache.size'], config['upload.slots'], config['prefetch.enabled'], config['fuse.threads']]).toEqual([3 * 2 ** 30, 4, false, 2])
  })

  test('the environment can name the file', () => {
    expect(loadSettings(NODE_SETTINGS, {}, { SKIMMER_CONFIG: file('log: { level: debug }') })['log.level']).toBe('debug')
  })

  test('lists: YAML lists or one word, commas in the environment, words after a flag; none of them are joined with others', () => {
    expect(node('supernodes: [a:1, b:2]').supernodes).toEqual(['a:1', 'b:2'])
    expect(node('supernodes: a:1').supernodes).toEqual(['a:1'])
    expect(node('supernodes: [a:1]', {}, { SKIMMER_SUPERNODES: 'c:3,d:4' }).supernodes).toEqual(['c:3', 'd:4'])
    expect(node('supernodes: [a:1]', {}, { SKIMMER_SUPERNODES: '' }).supernodes).toEqual([])
    expect(node('supernodes: [a:1]', { supernodes: ['e:5'] }, { SKIMMER_SUPERNODES: 'c:3' }).supernodes).toEqual(['e:5'])
  })

  test('keys may be nested or written with dots; a section may be empty', () => {
    expect(node('cache.size: 5GiB')['cache.size']).toBe(5 * 2 ** 30)
    expect(node('cache:\n  # size: 5GiB\nupload:\n')['cache.size']).toBe(20 * 2 ** 30)
    expect(node('').root).toBe('/var/lib/skimmer')
  })
})

describe('mistakes name the key and say what to write', () => {
  test.each([
    ['cahce: { size: 1GiB }', /cahce\.size is unknown; known keys: .*cache\.size/],
    ['cache: { sizes: 1GiB }', /cache\.sizes is unknown/],
    ['constructor: x', /constructor is unknown/],
    ['toString: { x: 1 }', /toString\.x is unknown/],
    ['__proto__: { root: /x }', /unknown/],
    ['cache: { size: 20 }', /cache\.size: "20" is not a size.*10GiB/],
    ['cache: { size: [1GiB] }', /cache\.size is a list; write SIZE/],
    ['cache: { size: { gib: 1 } }', /cache\.size is a mapping; write SIZE/],
    ['cache: { size: }', /cache\.size is empty; write SIZE/],
    ['labels: { zone: a }', /labels is a mapping; write a list of NAME=VALUE/],
    ['labels: [{ zone: a }]', /labels is a list of more than words/],
    ['demand: { timeout: 30 }', /demand\.timeout: "30" is not a time.*30s/],
    ['demand: { timeout: 40d }', /demand\.timeout: "40d" is longer than a day/],
    ['fuse: { threads: 0 }', /fuse\.threads: 0 is not between 1 and 64/],
    ['fuse: { threads: two }', /fuse\.threads: "two" is not a whole number/],
    ['fuse: { mode: nbd }', /fuse\.mode: "nbd" is none of auto, file, loop/],
    ['prefetch: { enabled: yes please }', /prefetch\.enabled: "yes please" is neither true nor false/],
    ['metrics: { listen: 4982 }', /metrics\.listen: "4982" is not HOST:PORT/],
    ['metrics: { listen: "a:70000" }', /metrics\.listen/],
    ['- a\n- b', /the document is not a mapping of keys/],
    ['just words', /the document is not a mapping of keys/],
    ['a: [', /is not YAML/],
    ['a: &a [x]\nb: [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a, *a, *a]', /is not YAML|unknown/],
  ])('%j', (yaml, expected) => {
    expect(mistake(() => node(yaml))).toMatch(expected)
  })

  test('the message says whether flag, environment or file is wrong', () => {
    expect(mistake(() => loadSettings(NODE_SETTINGS, { cacheSize: 'big' }, {}))).toMatch(/^--cache-size: "big"/)
    expect(mistake(() => loadSettings(NODE_SETTINGS, {}, { SKIMMER_CACHE_SIZE: 'big' }))).toMatch(/^SKIMMER_CACHE_SIZE: "big"/)
    expect(mistake(() => node('cache: { size: big }'))).toMatch(/\.yaml: cache\.size: "big"/)
    expect(mistake(() => loadSettings(NODE_SETTINGS, { config: '/nowhere.yaml' }, {}))).toMatch(/\/nowhere\.yaml does not exist/)
  })

  test('what a daemon would fail on is found before one is started', () => {
    expect(mistake(() => checkNodeConfig(node('supernodes: ["not an address"]')))).toMatch(/^supernodes: .*10\.0\.0\.1/)
    expect(mistake(() => checkNodeConfig(node('listen: [10.0.0.1:4979]')))).toMatch(/^listen: /)
    expect(mistake(() => checkNodeConfig(node('labels: [zone]')))).toMatch(/^labels: "zone" is not NAME=VALUE/)
    expect(mistake(() => checkNodeConfig(node('registry: { ca: [cert.pem] }')))).toMatch(/registry\.ca: "cert\.pem" is not HOST=VALUE/)
    expect(mistake(() => checkNodeConfig(node('join-token-file: /nowhere')))).toMatch(/join-token-file: \/nowhere cannot be read: ENOENT/)
    checkNodeConfig(node('supernodes: [10.0.0.1:4980, "host.example:4980"]\nlabels: [zone=a, note=a=b]'))
  })

  test('any document at all gives settings or one clear error', () => {
    fc.assert(fc.property(fc.oneof(fc.string(), fc.json()), (text) => {
      const path = file(text)
      try {
        loadSettings(NODE_SETTINGS, { config: path }, {})
      } catch (error) {
        expect(error).toBeInstanceOf(SkimmerError)
        expect((error as Error).message).toContain(path)
      }
      rmSync(path)
    }), { numRuns: 200 })
  })
})

describe('what settings become', () => {
  test('secrets come from files, trimmed; a missing or too short one is an error that does not tell it', () => {
    const token = file('a-long-secret\n')
    const config = supernodeConfig(loadSettings(SUPERNODE_SETTINGS, { joinTokenFile: token, httpTokenFile: token }, {}))
    expect(config).toMatchObject({ joinToken: 'a-long-secret', http: { token: 'a-long-secret' } })
    const message = mistake(() => supernodeConfig(loadSettings(SUPERNODE_SETTINGS, { httpTokenFile: file('abc\n') }, {})))
    expect(message).toMatch(/http\.token-file: .* holds 3 characters; a secret has at least 8/)
    expect(message).not.toContain('abc')
    expect(mistake(() => supernodeConfig(loadSettings(SUPERNODE_SETTINGS, { joinTokenFile: '/nowhere' }, {})))).toMatch(/join-token-file: \/nowhere cannot be read/)
  })

  test('the supernode accepts what its defaults become, and addresses of every kind', () => {
    expect(supernodeConfigSchema.parse(supernodeConfig(loadSettings(SUPERNODE_SETTINGS, {}, {})))).toMatchObject({ dataDir: '/var/lib/skimmer-supernode', http: { host: '0.0.0.0', port: 4981 } })
    expect(http('[::1]:80')).toMatchObject({ host: '::1', port: 80 })
    expect(http(':80')).toMatchObject({ host: '0.0.0.0', port: 80 })
    expect(http('localhost:0')).toMatchObject({ host: 'localhost', port: 0 })
  })

  test('labels and registries', () => {
    expect(labelsOf({ labels: ['zone=a', 'note=b=c', 'empty='] })).toEqual({ zone: 'a', note: 'b=c', empty: '' })
    expect(hostsConfig(node('registry: { plain-http: [r:5000], insecure: [r:5000], ca: [s=/ca.pem], mirrors: [s=https://m1, s=https://m2] }'))).toEqual({
      'r:5000': { plainHttp: true, insecureSkipVerify: true },
      s: { ca: '/ca.pem', mirrors: ['https://m1', 'https://m2'] },
    })
  })
})

describe('units', () => {
  const UNITS = { B: 1, KB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40 }

  test('every size unit, with and without a space', () => {
    fc.assert(fc.property(fc.integer({ min: 0, max: 8000 }), fc.constantFrom(...(Object.keys(UNITS) as (keyof typeof UNITS)[])), fc.constantFrom('', ' '), (number, unit, space) => {
      expect(parseSize(`${number}${space}${unit}`)).toBe(number * UNITS[unit])
    }))
  })

  test('any other words are refused, never read as a number', () => {
    fc.assert(fc.property(fc.string(), (text) => {
      for (const parse of [parseSize, parseDuration]) {
        try {
          expect(Number.isSafeInteger(parse(text))).toBe(true)
          expect(text.trim()).toMatch(/^\d+(\.\d+)?\s*[A-Za-z]+$|^0$/)
        } catch (error) {
          expect(error).toBeInstanceOf(SkimmerError)
        }
      }
    }))
    for (const text of ['', '10', '-1GiB', '1e3B', '10gib', '1 G', 'GiB', '0x10B', '10constructor', '10toString', '99999999999TiB', 'Infinity s', '1,5GiB']) {
      expect(() => parseSize(text)).toThrow(SkimmerError)
      expect(() => parseDuration(text)).toThrow(SkimmerError)
    }
    expect([parseDuration('1.5s'), parseDuration('2 h'), parseDuration('0'), parseSize('0'), parseSize('1.5KiB')]).toEqual([1500, 7_200_000, 0, 0, 1536])
  })

  test('what is printed can be read again, as nearly as it is printed', () => {
    fc.assert(fc.property(fc.integer({ min: 0, max: 2 ** 50 }), (bytes) => {
      expect(Math.abs(parseSize(formatSize(bytes)) - bytes)).toBeLessThanOrEqual(bytes * 0.06)
    }))
    expect([formatSize(1536), formatSize(0), formatDuration(999), formatDuration(1234), formatDuration(61_000)]).toEqual(['1.5 KiB', '0 B', '999 ms', '1.23 s', '1 min 1 s'])
    // Minutes are rounded as a whole: never "60 s".
    expect(formatDuration(119_900)).toBe('2 min 0 s')
  })
})
