// Real clients pull through the registry proxy, with and without a login; what they get is what the registry has, and without the proxy they go to the registry.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { execFileSync, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { LabContainerd } from '../../bench/lab/containerd.ts'
import { unmountBelow } from '../../bench/lab/mounts.ts'
import { LabProcess, run } from '../../bench/lab/process.ts'
import { staticCredentials } from '../../oci/credentials.ts'
import { digestOf } from '../../oci/digest.ts'
import { parseReference } from '../../oci/reference.ts'
import { RegistryClient } from '../../oci/registry-client.ts'
import { pushImage } from '../oci/image-fixture.ts'
import type { MadeImage } from '../oci/image-fixture.ts'
import { haveRegistry, startRegistry } from '../oci/registry-fixture.ts'
import type { RegistryOptions, RunningRegistry } from '../oci/registry-fixture.ts'
import { startProxy } from './proxy-fixture.ts'
import type { ProxyFixture } from './proxy-fixture.ts'
import { startTokenServer } from './token-server.ts'
import type { TokenServer } from './token-server.ts'

const isRoot = process.getuid!() === 0
const have = (program: string): boolean => spawnSync('sh', ['-c', `command -v ${program}`]).status === 0
/** A test of a program that is not there is skipped, and its name says so. */
const withTools = (...programs: string[]): typeof test.skip => (haveRegistry && isRoot && programs.every(have) ? test : test.skip)

const USER = { username: 'anna', password: 'a long secret' }
const CREDENTIALS = `${USER.username}:${USER.password}`

interface Place { readonly registry: RunningRegistry; readonly open: MadeImage; readonly closed: MadeImage }

describe('clients of Debian', () => {
  const directory = mkdtempSync(join(tmpdir(), 'sk-pc-'))
  const places: Record<'plain' | 'basic' | 'token', Place> = {} as never
  let tokens: TokenServer
  let proxy: ProxyFixture
  let containerd: LabContainerd | undefined

  const tarOf = (name: string, bytes: Buffer): Buffer => {
    mkdirSync(join(directory, 'tar'), { recursive: true })
    writeFileSync(join(directory, 'tar', name), bytes)
    const tar = execFileSync('tar', ['-C', join(directory, 'tar'), '-cf', '-', '--owner=0', '--group=0', name], { maxBuffer: 2 ** 28 })
    rmSync(join(directory, 'tar', name))
    return tar
  }
  const makePlace = async (options: RegistryOptions): Promise<Place> => {
    const registry = await startRegistry(options)
    const client = new RegistryClient({ credentials: staticCredentials({ [registry.host]: USER }) })
    const image = (name: string): Promise<MadeImage> => pushImage(client, parseReference(`${registry.host}/${name}:1`), [tarOf('large', randomBytes(3_000_000)), tarOf('small', randomBytes(1_000))])
    const place = { registry, open: await image('public/app'), closed: await image('private/app') }
    await client.close()
    return place
  }
  /** Blobs that came to this registry's clients other than the proxy. */
  const straight = async ({ registry }: Place): Promise<string[]> =>
    (await registry.log()).split('\n').filter((line) => /"GET \/v2\/[^ ]+\/blobs\//.test(line) && !line.includes('level=') && !line.includes('"skimmer"') && !line.includes('"node"'))

  beforeAll(async () => {
    if (!haveRegistry || !isRoot) return
    tokens = await startTokenServer(directory, USER)
    places.plain = await makePlace({})
    places.basic = await makePlace({ auth: USER })
    places.token = await makePlace({ token: tokens.token })
    proxy = await startProxy()
    if (have('containerd') && have('ctr')) containerd = await LabContainerd.start({ directory: join(directory, 'c') })
  }, 60_000)
  afterAll(async () => {
    await containerd?.stop()
    await proxy?.stop()
    for (const { registry } of Object.values(places)) await registry.stop()
    await tokens?.stop()
    await unmountBelow(directory)
    rmSync(directory, { recursive: true, force: true })
  }, 60_000)

  const hostsDirectory = (name: string, proxyUrl: string): string => {
    const hosts = join(directory, name)
    for (const { registry } of Object.values(places)) {
      mkdirSync(join(hosts, registry.host), { recursive: true })
      writeFileSync(join(hosts, registry.host, 'hosts.toml'), `server = "${registry.url}"\n\n[host."${proxyUrl}"]\n  capabilities = ["pull", "resolve"]\n`)
    }
    return hosts
  }
  const contentOf = async (image: MadeImage): Promise<boolean> => {
    const { stdout } = await containerd!.ctr(['content', 'ls', '-q'])
    return [image.manifestDigest, ...image.layers.map(({ digest }) => digest)].every((digest) => stdout.includes(digest))
  }

  withTools('containerd', 'ctr')('containerd, from three registries at once, two of them with a login', async () => {
    const hosts = hostsDirectory('certs.d', proxy.url)
    await Promise.all(Object.values(places).map(async (place) => {
      await containerd!.ctr(['images', 'pull', '--hosts-dir', hosts, '--user', CREDENTIALS, `${place.registry.host}/private/app:1`], { timeoutMs: 60_000 })
      expect(await contentOf(place.closed)).toBe(true)
      expect(await straight(place)).toEqual([])
    }))
    const { layers } = places.token.closed
    for (const { digest, bytes } of layers) {
      const { stdout } = await run(['sh', '-c', `ctr --address ${containerd!.address} content get ${digest} | sha256sum`])
      expect(`sha256:${stdout.slice(0, 64)}`).toBe(digestOf(bytes))
    }
    const refused = await containerd!.ctr(['images', 'pull', '--hosts-dir', hosts, `${places.basic.registry.host}/public/app:1`], { mayFail: true, timeoutMs: 60_000 })
    expect(refused.code).not.toBe(0)
  }, 120_000)

  withTools('containerd', 'ctr')('containerd goes to the registry when the proxy is away', async () => {
    const hosts = hostsDirectory('away.d', 'http://127.0.0.1:1')
    await containerd!.ctr(['images', 'pull', '--hosts-dir', hosts, `${places.plain.registry.host}/public/app:1`], { timeoutMs: 60_000 })
    expect(await contentOf(places.plain.open)).toBe(true)
    expect((await straight(places.plain)).length).toBeGreaterThan(0)
  }, 120_000)

  /** registries.conf with the proxy as a mirror of each registry, named by the path. */
  const registriesConf = (name: string, proxyHost: string): Record<string, string> => {
    const file = join(directory, name)
    writeFileSync(file, Object.values(places).map(({ registry: { host } }) => `[[registry]]\nprefix = "${host}"\nlocation = "${host}"\ninsecure = true\n[[registry.mirror]]\nlocation = "${proxyHost}/${host.replace(':', '__')}"\ninsecure = true\n`).join('\n'))
    writeFileSync(join(directory, 'no-auth.json'), '{"auths":{}}')
    return { CONTAINERS_REGISTRIES_CONF: file, REGISTRY_AUTH_FILE: join(directory, 'no-auth.json'), HOME: directory }
  }
  const copied = (target: string, image: MadeImage): void => {
    const manifest = readFileSync(join(target, 'manifest.json'))
    expect(digestOf(manifest)).toBe(image.manifestDigest)
    for (const { digest, bytes } of image.layers) expect(readFileSync(join(target, digest.slice(7))).equals(bytes)).toBe(true)
    for (const name of readdirSync(target).filter((file) => /^[0-9a-f]{64}$/.test(file))) expect(digestOf(readFileSync(join(target, name)))).toBe(`sha256:${name}`)
  }

  withTools('skopeo')('skopeo by way of registries.conf, from an open registry and anonymously from one with tokens', async () => {
    const env = registriesConf('mirrors.conf', proxy.host)
    for (const name of ['plain', 'token'] as const) {
      const place = places[name]
      const before = (await straight(place)).length
      const target = join(directory, `skopeo-${name}`)
      await run(['skopeo', '--registries-conf', env.CONTAINERS_REGISTRIES_CONF, 'copy', '--src-no-creds', `docker://${place.registry.host}/public/app:1`, `dir:${target}`], { env, timeoutMs: 60_000 })
      copied(target, place.open)
      expect((await straight(place)).length).toBe(before)
    }
  }, 120_000)

  withTools('skopeo')('skopeo with a login, at the proxy itself', async () => {
    for (const name of ['basic', 'token'] as const) {
      const place = places[name]
      const own = await startProxy({ options: { registry: place.registry.host } })
      try {
        const target = join(directory, `skopeo-login-${name}`)
        await run(['skopeo', 'copy', '--src-tls-verify=false', '--src-creds', CREDENTIALS, `docker://${own.host}/private/app:1`, `dir:${target}`], { timeoutMs: 60_000 })
        copied(target, place.closed)
        expect(await own.count('blob', 'miss')).toBeGreaterThan(0)
        const refused = await run(['skopeo', 'copy', '--src-tls-verify=false', '--src-no-creds', `docker://${own.host}/private/app:1`, `dir:${target}-refused`], { mayFail: true, timeoutMs: 60_000 })
        expect(refused.code).not.toBe(0)
        const { stdout } = await run(['skopeo', 'list-tags', '--tls-verify=false', '--creds', CREDENTIALS, `docker://${own.host}/private/app`], { timeoutMs: 60_000 })
        expect((JSON.parse(stdout) as { Tags: string[] }).Tags).toEqual(['1'])
      } finally {
        await own.stop()
      }
    }
  }, 120_000)

  withTools('skopeo')('skopeo goes to the registry when the proxy is away, and when it does not serve what is private', async () => {
    const before = (await straight(places.basic)).length
    for (const [name, host] of [['there', proxy.host], ['away', '127.0.0.1:1']] as const) {
      const target = join(directory, `skopeo-${name}`)
      const env = registriesConf(`${name}.conf`, host)
      await run(['skopeo', '--registries-conf', env.CONTAINERS_REGISTRIES_CONF, 'copy', '--src-creds', CREDENTIALS, `docker://${places.basic.registry.host}/private/app:1`, `dir:${target}`], { env, timeoutMs: 60_000 })
      copied(target, places.basic.closed)
    }
    expect((await straight(places.basic)).length).toBeGreaterThan(before)
  }, 120_000)

  const podman = (words: string[], env: Record<string, string>) =>
    run(['podman', '--root', join(directory, 'p'), '--runroot', join(directory, 'pr'), '--storage-driver', 'vfs', '--cgroup-manager', 'cgroupfs', '--events-backend', 'none', ...words], { env, timeoutMs: 120_000 })

  withTools('podman')('podman', async () => {
    const place = places.plain
    const name = `${place.registry.host}/private/app:1`
    const before = (await straight(place)).length
    await podman(['pull', name], registriesConf('podman.conf', proxy.host))
    expect((await straight(place)).length).toBe(before)
    const { stdout } = await podman(['image', 'inspect', name], {})
    const [image] = JSON.parse(stdout) as { Digest: string; RootFS: { Layers: string[] } }[]
    expect([image.Digest, image.RootFS.Layers]).toEqual([place.closed.manifestDigest, place.closed.layers.map(({ diffId }) => diffId)])
    await podman(['image', 'rm', name], {})
    await podman(['pull', name], registriesConf('podman-away.conf', '127.0.0.1:1'))
    expect((await straight(place)).length).toBeGreaterThan(before)
  }, 180_000)

  withTools('dockerd', 'docker')("Docker, as its registry mirror, also with a registry that wants tokens", async () => {
    const place = places.token
    const client = new RegistryClient({ credentials: staticCredentials({ [place.registry.host]: USER }) })
    const image = await pushImage(client, parseReference(`${place.registry.host}/public/docker:1`), [tarOf('large', randomBytes(3_000_000))])
    await client.close()
    const own = await startProxy({ options: { registry: place.registry.host } })
    const socket = `unix://${directory}/d.sock`
    const dockerd = new LabProcess('dockerd', [
      'dockerd', '--data-root', join(directory, 'd'), '--exec-root', join(directory, 'dx'), '--pidfile', join(directory, 'd.pid'), '--host', socket, '--iptables=false', '--ip6tables=false', '--bridge=none',
      '--storage-driver=vfs', '--registry-mirror', own.url, ...(containerd === undefined ? [] : ['--containerd', containerd.address]),
    ], { logFile: join(directory, 'dockerd.log') })
    try {
      const docker = (...words: string[]) => run(['docker', '--host', socket, ...words], { env: { DOCKER_CONFIG: join(directory, 'docker-config') }, timeoutMs: 60_000, mayFail: words[0] === 'version' })
      await dockerd.until('it answered', async () => (await docker('version')).code === 0)
      await docker('pull', 'public/docker:1')
      const { stdout } = await docker('image', 'inspect', 'public/docker:1')
      const [pulled] = JSON.parse(stdout) as { RepoDigests: string[]; RootFS: { Layers: string[] } }[]
      expect(pulled.RepoDigests).toEqual([`public/docker@${image.manifestDigest}`])
      expect(pulled.RootFS.Layers).toEqual(image.layers.map(({ diffId }) => diffId))
      expect(await own.count('blob', 'miss')).toBeGreaterThan(0)
    } finally {
      await dockerd.stop(20_000)
      await own.stop()
      if (existsSync(join(directory, 'd'))) await unmountBelow(directory)
    }
  }, 180_000)
})
