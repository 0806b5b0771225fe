// skimmer setup on configuration files of any shape: undone byte for byte, others' entries never changed, twice is once.
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, describe, expect, test } from '@jest/globals'
import { array, assert, boolean, constant, constantFrom, dictionary, integer, jsonValue, oneof, option, property, record, shuffledSubarray, string, stringMatching, tuple, type Arbitrary } from 'fast-check'
import { parse, type TomlTable } from 'smol-toml'
import { SkimmerError } from '../../oci/errors.ts'
import { ClientFiles } from '../../node/setup/client-files.ts'
import { configPath, readContainerdConfig } from '../../node/setup/containerd-config.ts'
import { hostsToml } from '../../node/setup/containerd-hosts.ts'
import { containerd } from '../../node/setup/containerd.ts'
import { daemonJson, docker } from '../../node/setup/docker.ts'
import { podman } from '../../node/setup/registries-conf.ts'
import { planSetup, planUndo } from '../../node/setup/setup.ts'
import type { SetupClient } from '../../node/setup/setup-client.ts'

const PROXY = 'http://127.0.0.1:4001'
const runs = { numRuns: 150 }

// --- configuration files as people write them ---
const name = stringMatching(/^[a-z][a-z0-9-]{0,8}$/)
const host = tuple(name, option(integer({ min: 1, max: 65_535 }))).map(([label, port]) => `${label}.example${port === null ? '' : `:${port}`}`)
const text = string({ maxLength: 12, unit: 'grapheme' }).map((value) => JSON.stringify(value).replaceAll('\x7f', ''))
const noise = constantFrom('', '', '', '# a note', '  # [host."x"] in a note', '\t', '# >>> not a mark')
const value = oneof(text, integer().map(String), boolean().map(String), constant('[\n  1,\n  # in between\n  2,\n]'), constant('"""\n[host."http://not-a-table"]\n"""'), constant("'''\n[[registry]]\n'''"), constant('1979-05-27T07:32:00Z'), constant('{ a = 1, b = { c = "x" } }'))
const lines = (parts: Arbitrary<readonly string[]>): Arbitrary<string> =>
  tuple(parts, constantFrom('\n', '\r\n'), boolean(), array(noise, { maxLength: 30 })).map(([all, eol, ends, notes]) => {
    const noisy = all.flatMap((line, index) => (notes[index] ? [notes[index], line] : [line]))
    return noisy.join('\n').replaceAll('\n', eol) + (ends ? eol : '')
  })
const keys = (reserved: readonly string[]): Arbitrary<string[]> =>
  dictionary(name.filter((key) => !reserved.includes(key)), value, { maxKeys: 3 }).map((table) => Object.entries(table).map(([key, written]) => `${key} = ${written}`))

const hostsFile = lines(tuple(option(host), keys(['server', 'host', 'header']), dictionary(host, keys(['header']), { maxKeys: 4 }), boolean(), option(keys([])))
  .map(([server, root, hosts, quoted, header]) => [
    ...(server === null ? [] : [`server = "https://${server}"`]), ...root,
    ...(header === null ? [] : ['[header]', ...header]),
    ...Object.entries(hosts).flatMap(([url, table]) => [quoted ? `[host."https://${url}"]` : `  [ host . 'https://${url}' ] # mine`, ...table, ...(table.length > 1 ? [`[host."https://${url}".header]`, 'x = ["a"]'] : [])]),
  ]))

const registriesFile = lines(tuple(keys(['registry']), array(tuple(host, keys(['prefix', 'location', 'mirror', 'blocked']), array(host, { maxLength: 3 }), boolean(), option(host)), { maxLength: 4 }).map((all) => [...new Map(all.map((one) => [one[0], one])).values()]), option(keys([])))
  .map(([root, registries, aliases]) => [
    ...root,
    ...registries.flatMap(([prefix, table, mirrors, written, location]) => ['[[registry]]', ...(written ? [`prefix = "${prefix}"`, `location = "${location ?? prefix}"`] : [`location = "${prefix}"`]), ...table, ...mirrors.flatMap((mirror) => ['  [[registry.mirror]]', `  location = "${mirror}"`])]),
    ...(aliases === null ? [] : ['[aliases]', ...aliases]),
  ]))

const configFile = lines(tuple(constantFrom(2, 3), keys(['version', 'plugins', 'imports', 'disabled_plugins']), boolean(), option(tuple(option(constantFrom('""', "''")), keys(['config_path', 'mirrors', 'configs']), boolean())), keys([]))
  .map(([version, root, other, registry, tail]) => {
    const plugin = version === 2 ? 'io.containerd.grpc.v1.cri' : 'io.containerd.cri.v1.images'
    return [
      `version = ${version}`, ...root,
      ...(other ? ['[plugins]', `  [plugins."${plugin}"]`, `    [plugins."${plugin}".cni]`, '      bin_dir = "/opt/cni/bin"'] : []),
      ...(registry === null ? [] : [registry[2] ? `  [plugins."${plugin}".registry]` : `[ plugins . '${plugin}' . registry ]`, ...(registry[0] === null ? [] : [`    config_path = ${registry[0]} # none yet`]), ...registry[1]]),
      ...(tail.length > 0 ? ['[metrics]', ...tail] : []),
    ]
  }))

const mirrorList = array(host.map((one) => `https://${one}`), { maxLength: 3 })
const daemonFile = tuple(dictionary(name, jsonValue({ maxDepth: 2 }), { maxKeys: 5 }), option(mirrorList), option(integer({ min: 1, max: 8 })), boolean(), boolean(), boolean())
  .map(([others, mirrors, indent, first, eol, tab]) => {
    const all = mirrors === null ? others : first ? { 'registry-mirrors': mirrors, ...others } : { ...others, 'registry-mirrors': mirrors }
    return JSON.stringify(all, null, indent === null ? undefined : tab ? '\t' : indent) + (eol ? '\n' : '')
  })

// --- the same, on disk ---
const place = mkdtempSync(join(tmpdir(), 'skimmer-setup-'))
afterAll(() => rmSync(place, { recursive: true, force: true }))
let roots = 0
function rootWith(contents: Record<string, string>): ClientFiles {
  const root = join(place, String(roots++))
  mkdirSync(root)
  for (const [path, written] of Object.entries(contents)) {
    mkdirSync(dirname(join(root, path)), { recursive: true })
    writeFileSync(join(root, path), written)
  }
  return new ClientFiles(root)
}
function everything(root: string, below = ''): Record<string, string> {
  return Object.assign({}, ...readdirSync(join(root, below)).map((entry) => {
    const path = join(below, entry)
    return statSync(join(root, path)).isDirectory() ? { [`${path}/`]: '', ...everything(root, path) } : { [path]: readFileSync(join(root, path)).toString('latin1') }
  })) as Record<string, string>
}
/** False: the file is one that setup refuses, and then it changes nothing. */
function roundTrip(client: SetupClient, files: ClientFiles, request: { proxy: string; registries: string[] }): boolean {
  const before = everything(files.root)
  let plan: ReturnType<typeof planSetup>
  try {
    plan = planSetup(client, request, files)
  } catch (error) {
    if (!(error instanceof SkimmerError)) throw error
    expect(everything(files.root)).toEqual(before)
    return false
  }
  plan.perform()
  const after = everything(files.root)
  const again = planSetup(client, request, files)
  expect(again.changes).toEqual([])
  again.perform()
  expect(everything(files.root)).toEqual(after)
  planUndo(client, request, files).perform()
  expect(everything(files.root)).toEqual(before)
  return true
}
const toml = (written: string): TomlTable => JSON.parse(JSON.stringify(parse(written))) as TomlTable
const isToml = (written: string): boolean => {
  try {
    parse(written)
    return true
  } catch {
    return false
  }
}

describe('hosts.toml', () => {
  const file = hostsFile.filter(isToml)
  test('the proxy comes first, and nothing else changes', () => {
    assert(property(file, (written) => {
      const { apply, remove } = hostsToml('hosts.toml', PROXY, undefined)
      const edited = apply(written)
      const { host: hosts, ...rest } = toml(edited) as { host: Record<string, unknown> }
      const before = toml(written) as { host?: Record<string, unknown> }
      const { [PROXY]: ours, ...others } = hosts
      expect(ours).toMatchObject({ capabilities: ['pull', 'resolve'] })
      expect(Object.keys(hosts)).toEqual([PROXY, ...Object.keys(before.host ?? {})])
      expect({ ...rest, ...(before.host === undefined ? {} : { host: others }) }).toEqual(before)
      // Also when nobody remembers what was there before.
      expect(remove(edited)).toBe(written)
      expect(apply(edited)).toBe(edited)
    }), runs)
  })

  test('on disk', () => {
    assert(property(file, (written) => roundTrip(containerd, rootWith({ 'etc/containerd/config.toml': 'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/etc/containerd/certs.d"\n', 'etc/containerd/certs.d/_default/hosts.toml': written }), { proxy: PROXY, registries: [] })), { numRuns: 30 })
  })
})

describe("containerd's config.toml", () => {
  const file = configFile.filter(isToml)
  test('config_path is set, and nothing else changes', () => {
    assert(property(file, (written) => {
      const { edit } = readContainerdConfig('/config.toml', rootWith({ 'config.toml': written }))
      const edited = edit!.apply(written)
      const before = toml(written) as { version: number; plugins?: Record<string, { registry?: object }> }
      const plugin = before.version === 2 ? 'io.containerd.grpc.v1.cri' : 'io.containerd.cri.v1.images'
      expect(toml(edited)).toEqual({ ...before, plugins: { ...before.plugins, [plugin]: { ...before.plugins?.[plugin], registry: { ...before.plugins?.[plugin]?.registry, config_path: '/etc/containerd/certs.d' } } } })
      expect(edit!.remove(edited)).toBe(written)
    }), runs)
  })

  test('on disk', () => {
    assert(property(file, (written) => roundTrip(containerd, rootWith({ 'etc/containerd/config.toml': written }), { proxy: PROXY, registries: ['docker.io'] })), { numRuns: 30 })
  })

  test('written with dots it is refused, never broken', () => {
    const { apply } = configPath('/c', 'io.containerd.grpc.v1.cri', '/d')
    expect(() => apply('version = 2\n[plugins]\n"io.containerd.grpc.v1.cri".registry.headers.x = ["1"]\n')).toThrow(expect.objectContaining({ code: 'UNSUPPORTED' }))
  })
})

describe('registries.conf', () => {
  const file = registriesFile.filter(isToml)
  test('the proxy is the first mirror of the entries that were there; all else stays', () => {
    let edited = 0
    assert(property(file, shuffledSubarray(['a.example', 'b.example:5000']), (written, more) => {
      const files = rootWith({ 'etc/containers/registries.conf': written })
      const mine = (toml(written).registry as { prefix?: string; location?: string; mirror?: unknown[] }[] | undefined) ?? []
      const named = [...mine.map((entry) => entry.prefix ?? entry.location!), ...more].filter((one) => /^[a-z0-9.:-]+$/.test(one)).slice(0, 3)
      if (named.length === 0) return
      try {
        const plan = planSetup(podman, { proxy: PROXY, registries: named }, files)
        plan.perform()
      } catch (error) {
        if (error instanceof SkimmerError) return
        throw error
      }
      edited++
      const now = toml(readFileSync(join(files.root, 'etc/containers/registries.conf'), 'utf8')) as { registry?: { mirror?: { location: string }[] }[] }
      for (const entry of now.registry ?? []) if (entry.mirror?.[0].location.startsWith('127.0.0.1:4001/')) {
        entry.mirror.shift()
        if (entry.mirror.length === 0) delete entry.mirror
      }
      expect(now).toEqual(toml(written))
    }), runs)
    expect(edited).toBeGreaterThan(runs.numRuns / 3)
  })

  test('on disk', () => {
    assert(property(file, (written) => roundTrip(podman, rootWith({ 'etc/containers/registries.conf': written }), { proxy: PROXY, registries: ['docker.io', 'a.example'] })), { numRuns: 30 })
  })
})

describe('daemon.json', () => {
  test('the proxy is the first mirror, and nothing else changes', () => {
    assert(property(daemonFile, (written) => {
      const { apply, remove } = daemonJson('daemon.json', PROXY)
      const before = JSON.parse(written) as { 'registry-mirrors'?: string[] }
      const edited = apply(written)
      expect(JSON.parse(edited)).toEqual({ ...before, 'registry-mirrors': [PROXY, ...(before['registry-mirrors'] ?? [])] })
      expect(apply(edited)).toBe(edited)
      const { 'registry-mirrors': mirrors, ...others } = before
      expect(JSON.parse(remove(edited))).toEqual(mirrors === undefined || mirrors.length === 0 ? others : before)
    }), runs)
  })

  test('on disk', () => {
    assert(property(daemonFile, (written) => roundTrip(docker, rootWith({ 'etc/docker/daemon.json': written }), { proxy: PROXY, registries: [] })), { numRuns: 30 })
  })
})

test('any bytes at all are edited rightly or refused', () => {
  const bytes = oneof(string({ maxLength: 200 }), array(constantFrom('[', ']', '"', "'", '=', '\n', '\r', '#', 'a', '.', '{', '}', 'registry', 'host', '\\', '"""'), { maxLength: 40 }).map((all) => all.join('')))
  assert(property(bytes, record({ which: constantFrom('containerd', 'docker', 'podman') }), (written, { which }) => {
    const [client, path] = which === 'containerd' ? [containerd, 'etc/containerd/certs.d/_default/hosts.toml'] : which === 'docker' ? [docker, 'etc/docker/daemon.json'] : [podman, 'etc/containers/registries.conf']
    roundTrip(client as SetupClient, rootWith({ [path as string]: written }), { proxy: PROXY, registries: [] })
  }), { numRuns: 100 })
})
