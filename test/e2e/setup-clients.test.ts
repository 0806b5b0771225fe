// Real clients with the configuration that `skimmer setup` writes: they ask the proxy, and the registry when the proxy is away.
import { execFileSync, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { LabContainerd } from '../../bench/lab/containerd.ts'
import { unmountBelow } from '../../bench/lab/mounts.ts'
import { LabProcess, run } from '../../bench/lab/process.ts'
import { ClientFiles } from '../../node/setup/client-files.ts'
import { containerd as containerdSetup } from '../../node/setup/containerd.ts'
import { docker as dockerSetup } from '../../node/setup/docker.ts'
import { podman as podmanSetup } from '../../node/setup/registries-conf.ts'
import { planSetup, planUndo } from '../../node/setup/setup.ts'
import type { SetupClient } from '../../node/setup/setup-client.ts'
import { digestOf } from '../../oci/digest.ts'
import { parseReference } from '../../oci/reference.ts'
import { RegistryClient } from '../../oci/registry-client.ts'
import { type MadeImage, pushImage } from '../oci/image-fixture.ts'
import { haveRegistry, type RunningRegistry, startRegistry } from '../oci/registry-fixture.ts'
import { ForwardLab } from '../registry-proxy/forward-lab.ts'
import { tarOf } from '../registry-proxy/forward-tar.ts'
import { type ProxyFixture, startProxy } from '../registry-proxy/proxy-fixture.ts'

const have = (program: string): boolean => spawnSync('sh', ['-c', `command -v ${program}`]).status === 0
/** A test of a program that is not there is skipped. */
const withTools = (...programs: string[]): typeof test.skip => (haveRegistry && process.getuid!() === 0 && programs.every(have) ? test : test.skip)
const AWAY = 'http://127.0.0.1:1'

describe('clients that were set up', () => {
  const directory = mkdtempSync(join(tmpdir(), 'sk-su-'))
  const lab = new ForwardLab()
  let plain: RunningRegistry
  let secure: RunningRegistry
  let image: MadeImage
  let proxy: ProxyFixture
  let server: ReturnType<ForwardLab['certificate']>

  beforeAll(async () => {
    if (!haveRegistry) return
    server = lab.certificate('server')
    plain = await startRegistry()
    secure = await startRegistry({ tls: { certificate: server.certFile, key: server.keyFile } })
    const hosts = { [secure.host]: { ca: server.cert } }
    const client = new RegistryClient({ hosts })
    const layers = [await tarOf('large', randomBytes(2_000_000)), await tarOf('small', randomBytes(1_000))]
    for (const { host } of [plain, secure]) image = await pushImage(client, parseReference(`${host}/team/app:1`), layers)
    await client.close()
    proxy = await startProxy({ hosts, options: { registry: plain.host } })
  }, 60_000)
  afterAll(async () => {
    await proxy?.stop()
    await lab.end()
    await plain?.stop()
    await secure?.stop()
    await unmountBelow(directory)
    rmSync(directory, { recursive: true, force: true })
  }, 60_000)

  let roots = 0
  const rootOf = (contents: Record<string, string> = {}): ClientFiles => {
    const root = join(directory, `root${roots++}`)
    for (const [path, text] of Object.entries({ 'etc/.keep': '', ...contents })) {
      mkdirSync(join(root, path, '..'), { recursive: true })
      writeFileSync(join(root, path), text)
    }
    return new ClientFiles(root)
  }
  const setUp = (client: SetupClient, files: ClientFiles, proxyUrl: string, registries: string[] = []): void => void planSetup(client, { proxy: proxyUrl, registries }, files).perform()
  /** Blobs that somebody else than the proxy was given. */
  const straight = async ({ log }: RunningRegistry): Promise<number> => (await log()).split('\n').filter((line) => /"GET \/v2\/[^ ]+\/blobs\//.test(line) && !line.includes('level=') && !line.includes('"skimmer"') && !line.includes('"node"')).length

  withTools('containerd', 'ctr')('containerd: hosts.toml for all registries, and for one that has a file', async () => {
    const lone = await LabContainerd.start({ directory: join(directory, 'c') })
    try {
      const certs = (files: ClientFiles): string => join(files.root, 'etc/containerd/certs.d')
      const pull = async (files: ClientFiles): Promise<void> => {
        await lone.ctr(['images', 'pull', '--hosts-dir', certs(files), `${plain.host}/team/app:1`], { timeoutMs: 60_000 })
        const { stdout } = await lone.ctr(['content', 'ls', '-q'])
        for (const { digest } of image.layers) expect(stdout).toContain(digest)
        await lone.ctr(['images', 'rm', '--sync', `${plain.host}/team/app:1`])
      }
      const before = await straight(plain)
      const all = rootOf()
      setUp(containerdSetup, all, proxy.url)
      await pull(all)
      const one = rootOf({ [`etc/containerd/certs.d/${plain.host}/hosts.toml`]: `server = "${plain.url}" # mine\n\n[host."${AWAY}"]\n  capabilities = ["pull"]\n` })
      setUp(containerdSetup, one, proxy.url, [plain.host])
      await pull(one)
      expect(await straight(plain)).toBe(before)
      // Away: containerd goes on to the next host, and at last to the registry.
      const away = rootOf()
      setUp(containerdSetup, away, AWAY)
      await pull(away)
      expect(await straight(plain)).toBeGreaterThan(before)
      planUndo(containerdSetup, { proxy: proxy.url, registries: [] }, one).perform()
      await pull(one)
    } finally {
      await lone.stop()
    }
  }, 120_000)

  withTools('containerd')('containerd: config.toml as it is written is read by containerd', async () => {
    const files = rootOf({ 'etc/containerd/config.toml': 'version = 2\n\n[plugins]\n  [plugins."io.containerd.grpc.v1.cri"]\n    [plugins."io.containerd.grpc.v1.cri".cni]\n      bin_dir = "/usr/lib/cni"\n' })
    setUp(containerdSetup, files, proxy.url)
    const { stdout } = await run(['containerd', '--config', join(files.root, 'etc/containerd/config.toml'), 'config', 'dump'])
    expect(stdout).toMatch(/\[plugins\."io\.containerd\.grpc\.v1\.cri"\.registry\]\n +config_path = "\/etc\/containerd\/certs\.d"/)
    expect(stdout).toMatch(/bin_dir = "\/usr\/lib\/cni"/)
  })

  /** podman and skopeo read the directory of their user instead of /etc/containers. */
  const homeOf = (files: ClientFiles): Record<string, string> => {
    const home = join(files.root, 'home')
    mkdirSync(join(home, '.config'), { recursive: true })
    symlinkSync(join(files.root, 'etc/containers'), join(home, '.config/containers'))
    writeFileSync(join(home, 'auth.json'), '{"auths":{}}')
    return { HOME: home, XDG_CONFIG_HOME: join(home, '.config'), REGISTRY_AUTH_FILE: join(home, 'auth.json'), SSL_CERT_FILE: server.certFile }
  }
  const registriesConf = (): ClientFiles => rootOf({ 'etc/containers/registries.conf': `# mine\n[[registry]]\nlocation = "${plain.host}"\ninsecure = true\n`, 'etc/containers/policy.json': '{"default":[{"type":"insecureAcceptAnything"}]}' })
  const both = (): string[] => [plain.host, secure.host]

  withTools('skopeo')('skopeo: an entry that was there and one of the drop-in', async () => {
    const before = [await straight(plain), await straight(secure)]
    const copy = async (files: ClientFiles, name: string): Promise<void> => {
      const env = homeOf(files)
      for (const host of both()) {
        const target = join(directory, `${name}-${host.split(':')[1]}`)
        await run(['skopeo', 'copy', '--insecure-policy', `docker://${host}/team/app:1`, `dir:${target}`], { env, timeoutMs: 60_000 })
        expect(digestOf(readFileSync(join(target, 'manifest.json')))).toBe(image.manifestDigest)
        for (const { digest, bytes } of image.layers) expect(readFileSync(join(target, digest.slice(7))).equals(bytes)).toBe(true)
      }
    }
    const files = registriesConf()
    setUp(podmanSetup, files, proxy.url, both())
    await copy(files, 'there')
    expect([await straight(plain), await straight(secure)]).toEqual(before)
    const away = registriesConf()
    setUp(podmanSetup, away, AWAY, both())
    await copy(away, 'away')
    expect(await straight(plain)).toBeGreaterThan(before[0])
    expect(await straight(secure)).toBeGreaterThan(before[1])
  }, 120_000)

  withTools('podman')('podman', async () => {
    const podman = (words: string[], env: Record<string, string>) =>
      run(['podman', '--root', join(directory, 'p'), '--runroot', join(directory, 'pr'), '--storage-driver', 'vfs', '--cgroup-manager', 'cgroupfs', '--events-backend', 'none', ...words], { env, timeoutMs: 120_000 })
    const before = await straight(secure)
    const files = registriesConf()
    setUp(podmanSetup, files, proxy.url, both())
    const name = `${secure.host}/team/app:1`
    const env = homeOf(files)
    await podman(['pull', name], env)
    expect(await straight(secure)).toBe(before)
    expect((await podman(['image', 'inspect', '--format', '{{.Digest}}', name], env)).stdout.trim()).toBe(image.manifestDigest)
    const info = JSON.parse((await podman(['info', '--format', 'json'], env)).stdout) as { registries: Record<string, { Mirrors: { Location: string }[] }> }
    for (const host of both()) expect(info.registries[host].Mirrors[0].Location).toBe(`${proxy.host}/${host.replace(':', '__')}`)
    await podman(['image', 'rm', name], env)
    const away = registriesConf()
    setUp(podmanSetup, away, AWAY, both())
    await podman(['pull', name], homeOf(away))
    expect(await straight(secure)).toBeGreaterThan(before)
  }, 180_000)

  withTools('dockerd', 'docker')('Docker: reloaded by a signal, and without the proxy at Docker Hub itself', async () => {
    const files = rootOf({ 'etc/docker/daemon.json': '{\n  "registry-mirrors": ["https://m.example"]\n}\n' })
    // What stands for Docker Hub here is reached through a forward proxy: its name leads to the registry of this test.
    const authority = lab.certificate('authority', { authority: true })
    lab.metrics.clear()
    await lab.start({
      rules: [{ match: '^https://registry-1\\.docker\\.io/', through: 'direct', redirect: secure.host }], otherwise: 'refuse',
      intercept: { cert: authority.cert, key: authority.key, hosts: [{ match: '^registry-1\\.docker\\.io$', ca: server.cert }] },
    })
    const own = await startProxy({ options: { registry: plain.host } })
    let running = true
    const socket = join(directory, 'd.sock')
    const dockerd = new LabProcess('dockerd', [
      'dockerd', '--config-file', join(files.root, 'etc/docker/daemon.json'), '--data-root', join(directory, 'd'), '--exec-root', join(directory, 'dx'), '--pidfile', join(directory, 'd.pid'), '--host', `unix://${socket}`,
      '--iptables=false', '--ip6tables=false', '--ip-forward=false', '--bridge=none', '--storage-driver=vfs',
    ], { logFile: join(directory, 'dockerd.log'), env: { HTTPS_PROXY: lab.url, NO_PROXY: '', SSL_CERT_FILE: authority.certFile } })
    const docker = (...words: string[]) => run(['docker', '--host', `unix://${socket}`, ...words], { env: { DOCKER_CONFIG: join(directory, 'docker-config') }, timeoutMs: 60_000, mayFail: words[0] === 'version' })
    const mirrors = async (): Promise<string[]> => (JSON.parse((await docker('info', '--format', '{{json .RegistryConfig.Mirrors}}')).stdout) as string[] | null) ?? []
    const reload = async (until: (now: string[]) => boolean): Promise<void> => {
      dockerd.child.kill('SIGHUP')
      await dockerd.until('it read daemon.json again', async () => until(await mirrors()))
    }
    try {
      await dockerd.until('it answered', async () => (await docker('version')).code === 0)
      expect(await mirrors()).toEqual(['https://m.example/'])
      setUp(dockerSetup, files, own.url)
      await reload((now) => now[0] === `${own.url}/`)
      const before = await straight(secure)
      expect((await docker('pull', 'team/app:1')).stdout).toContain(`Digest: ${image.manifestDigest}`)
      expect(await straight(secure)).toBe(before)
      await docker('image', 'rm', 'team/app:1')
      // The proxy goes; the configuration stays.
      await own.stop()
      running = false
      expect((await docker('pull', 'team/app:1')).stdout).toContain(`Digest: ${image.manifestDigest}`)
      expect(await straight(secure)).toBeGreaterThan(before)
      planUndo(dockerSetup, { proxy: own.url, registries: [] }, files).perform()
      await reload((now) => now.join() === 'https://m.example/')
    } finally {
      await dockerd.stop(20_000)
      if (running) await own.stop()
    }
  }, 180_000)

  withTools('containerd', 'ctr')('nothing of it reaches outside of its root', () => {
    expect(execFileSync('sh', ['-c', 'ls -A /etc/containerd /etc/docker /etc/containers 2>/dev/null'], { encoding: 'utf8' })).not.toMatch(/skimmer/)
  })
})
