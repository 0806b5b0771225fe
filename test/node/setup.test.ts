// `skimmer setup` as its user sees it: what is shown, asked, written, refused and undone.
import { execFileSync, spawnSync } from 'node:child_process'
import { chmodSync, chownSync, existsSync, lstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, describe, expect, jest, test } from '@jest/globals'
import { Command } from 'commander'
import { exitCodeOf } from '../../command-line/exit-codes.ts'
import { addSetup } from '../../node/commands/setup.ts'
import { CLI, type CliResult, skimmer } from './run-cli.ts'

let root: string
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'skimmer-setup-'))
})
afterEach(() => rmSync(root, { recursive: true, force: true }))

/** The command in this process: many runs, and no time for as many processes. */
async function setup(client: string, ...words: string[]): Promise<CliResult> {
  const said = { stdout: '', stderr: '' }
  const spies = (['stdout', 'stderr'] as const).map((name) => jest.spyOn(process[name], 'write').mockImplementation((chunk) => {
    said[name] += String(chunk)
    return true
  }))
  const before = process.exitCode
  process.exitCode = 0
  try {
    const program = new Command()
    addSetup(program)
    await program.parseAsync(['setup', client, '--root', root, ...words], { from: 'user' })
  } catch (error) {
    said.stderr += (error as Error).message
    process.exitCode = exitCodeOf(error)
  } finally {
    for (const spy of spies) spy.mockRestore()
  }
  const code = Number(process.exitCode)
  process.exitCode = before
  return { code, ...said }
}
const at = (path: string): string => join(root, path)
function write(path: string, text: string): void {
  mkdirSync(dirname(at(path)), { recursive: true })
  writeFileSync(at(path), text)
}
const read = (path: string): string => readFileSync(at(path), 'utf8')
const listed = (): string[] => (readdirSync(root, { recursive: true }) as string[]).sort()

const DEBIAN_CONFIG = `version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
`
const HOSTS = 'etc/containerd/certs.d/_default/hosts.toml'

describe('what is shown and asked', () => {
  test('without a terminal and without --yes it only shows, and says so by its exit code', async () => {
    write('etc/containerd/config.toml', DEBIAN_CONFIG)
    const { code, stdout, stderr } = await skimmer(['setup', 'containerd', '--root', root])
    expect(code).toBe(2)
    expect(stderr).toMatch(/nothing was changed: there is no terminal to ask on/)
    expect(stdout).toMatch(/^--- \/etc\/containerd\/config\.toml\n\+\+\+ \/etc\/containerd\/config\.toml\n@@ /m)
    expect(stdout).toMatch(/^--- \/dev\/null\n\+\+\+ \/etc\/containerd\/certs\.d\/_default\/hosts\.toml\n/m)
    expect(listed()).toEqual(['etc', 'etc/containerd', 'etc/containerd/config.toml'])
  })

  test('what is shown is a patch that makes what --yes makes', async () => {
    write('etc/docker/daemon.json', '{\n  "log-driver": "local"\n}\n')
    const { code, stdout } = await setup('docker', '--dry-run')
    expect(code).toBe(0)
    const patched = join(root, 'patched')
    mkdirSync(join(patched, 'etc/docker'), { recursive: true })
    writeFileSync(join(patched, 'etc/docker/daemon.json'), read('etc/docker/daemon.json'))
    if (spawnSync('patch', ['--version']).status === 0) {
      execFileSync('patch', ['-s', '-p1', '-d', patched], { input: stdout.slice(stdout.indexOf('---')) })
      await setup('docker', '--yes')
      expect(readFileSync(join(patched, 'etc/docker/daemon.json'), 'utf8')).toBe(read('etc/docker/daemon.json'))
    }
  })

  const haveScript = spawnSync('script', ['--version'], { stdio: 'ignore' }).status === 0
  ;(haveScript ? test : test.skip).each([['y', 0], ['n', 1], ['', 1]])('on a terminal it asks; the answer %j ends with %d', (answer, code) => {
    const command = `${process.execPath} ${CLI} setup podman --root ${root}`
    const { status, stdout } = spawnSync('script', ['-qec', command, '/dev/null'], { input: `${answer}\n`, encoding: 'utf8' })
    expect(stdout).toMatch(/Change these files\? \[y\/N\]/)
    expect(status).toBe(code)
    expect(existsSync(at('etc/containers/registries.conf.d/50-skimmer.conf'))).toBe(code === 0)
  })

  test.each([
    [['nobody'], /Allowed choices are containerd, docker, podman, crio/],
    [['podman', '--registry', 'a/b'], /--registry: "a\/b" is not HOST/],
    [['podman', '--registry', '[::1]:5000'], /not HOST or HOST:PORT/],
    [['containerd', '--proxy', 'ftp://x'], /--proxy: "ftp:\/\/x" is not an http or https URL/],
    [['containerd', '--proxy', 'http://a:b@x'], /--proxy/],
    [['docker', '--certs-dir', '/x'], /--certs-dir is for containerd alone/],
    [['crio', '--config', '/x'], /--config: crio reads/],
    [['docker', '--check', '--undo'], /do not go together/],
    [['containerd', '--root', '/no/such/place'], /--root \/no\/such\/place: ENOENT/],
  ])('%j is wrong usage', async (words, message) => {
    const { code, stderr } = await skimmer(['setup', ...words, ...(words.includes('--root') ? [] : ['--root', root])])
    expect([code, stderr]).toEqual([2, expect.stringMatching(message)])
    expect(listed()).toEqual([])
  })
})

describe('files', () => {
  test('keep mode and owner, and their place when they are links', async () => {
    write('data/daemon.json', '{}')
    mkdirSync(at('etc/docker'), { recursive: true })
    symlinkSync('../../data/daemon.json', at('etc/docker/daemon.json'))
    chmodSync(at('data/daemon.json'), 0o640)
    if (process.getuid!() === 0) chownSync(at('data/daemon.json'), 12, 34)
    const before = statSync(at('data/daemon.json'))
    expect((await setup('docker', '-y')).code).toBe(0)
    expect(lstatSync(at('etc/docker/daemon.json')).isSymbolicLink()).toBe(true)
    for (const path of ['data/daemon.json', 'etc/docker/daemon.json.skimmer-backup']) {
      const { mode, uid, gid } = statSync(at(path))
      expect([mode, uid, gid]).toEqual([before.mode, before.uid, before.gid])
    }
    expect((await setup('docker', '-y', '--undo')).code).toBe(0)
    expect(read('data/daemon.json')).toBe('{}')
    expect(listed()).toEqual(['data', 'data/daemon.json', 'etc', 'etc/docker', 'etc/docker/daemon.json'])
  })

  test('a link that leads out of the root is not followed', async () => {
    mkdirSync(at('inside/etc/docker'), { recursive: true })
    write('outside.json', '{}')
    symlinkSync(at('outside.json'), at('inside/etc/docker/daemon.json'))
    const { code, stderr } = await skimmer(['setup', 'docker', '--root', at('inside'), '-y'])
    expect([code, stderr]).toEqual([4, expect.stringMatching(/leads out of/)])
    expect(read('outside.json')).toBe('{}')
  })

  test('an older backup is never written over', async () => {
    write('etc/docker/daemon.json', '{"debug": true}')
    write('etc/docker/daemon.json.skimmer-backup', 'precious')
    const { stdout } = await setup('docker', '-y')
    expect(stdout).toMatch(/kept \/etc\/docker\/daemon\.json\.skimmer-backup\.1\n/)
    expect(read('etc/docker/daemon.json.skimmer-backup')).toBe('precious')
    expect(read('etc/docker/daemon.json.skimmer-backup.1')).toBe('{"debug": true}')
    await setup('docker', '-y', '--undo')
    expect(listed()).toEqual(['etc', 'etc/docker', 'etc/docker/daemon.json', 'etc/docker/daemon.json.skimmer-backup'])
  })

  test('what was changed since is kept: only the own entries are taken out', async () => {
    write('etc/containerd/config.toml', DEBIAN_CONFIG)
    write('etc/docker/daemon.json', '{"registry-mirrors": ["https://m.example"]}')
    await setup('containerd', '-y')
    await setup('docker', '-y')
    write('etc/containerd/config.toml', `# mine\n${read('etc/containerd/config.toml')}[metrics]\n  address = "x"\n`)
    write(HOSTS, `${read(HOSTS)}[host."https://mine.example"]\n`)
    write('etc/docker/daemon.json', JSON.stringify({ ...JSON.parse(read('etc/docker/daemon.json')) as object, debug: true }))
    const { stdout } = await setup('containerd', '-y', '--uninstall')
    expect(stdout).toMatch(/config\.toml was changed since the setup: only Skimmer's entries are taken out; as it was before the setup it is in \/etc\/containerd\/config\.toml\.skimmer-backup/)
    expect(read('etc/containerd/config.toml')).toBe(`# mine\n${DEBIAN_CONFIG}[metrics]\n  address = "x"\n`)
    expect(read(HOSTS)).toBe('[host."https://mine.example"]\n')
    await setup('docker', '-y', '--undo')
    expect(JSON.parse(read('etc/docker/daemon.json'))).toEqual({ 'registry-mirrors': ['https://m.example'], debug: true })
  })

  test('an undo without the record goes by the marks, and leaves a Docker mirror alone', async () => {
    write('etc/containerd/config.toml', DEBIAN_CONFIG)
    await setup('containerd', '-y')
    await setup('docker', '-y')
    rmSync(at('var'), { recursive: true })
    rmSync(at('etc/containerd/config.toml.skimmer-backup'))
    const { stdout } = await setup('containerd', '-y', '--undo')
    expect(stdout).toMatch(/There is no record of the setup/)
    expect(read('etc/containerd/config.toml')).toBe(DEBIAN_CONFIG)
    expect(existsSync(at(HOSTS))).toBe(false)
    expect((await setup('docker', '-y', '--undo')).stdout).toMatch(/nothing to undo/)
    expect(read('etc/docker/daemon.json')).toMatch(/4001/)
  })

  test('entries of the same kind that somebody else wrote stay through setup and undo', async () => {
    const daemon = '{"registry-mirrors":["http://127.0.0.1:4001/","https://m.example"]}'
    const hosts = '[host."http://127.0.0.1:4001"]\n  capabilities = ["pull"]\n'
    write('etc/docker/daemon.json', daemon)
    write('etc/containerd/config.toml', 'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/etc/containerd/certs.d"\n')
    write(HOSTS, hosts)
    for (const client of ['docker', 'containerd']) {
      expect((await setup(client)).stdout).toMatch(/nothing to change: it is set up already/)
      await setup(client, '--undo', '-y')
    }
    expect([read('etc/docker/daemon.json'), read(HOSTS)]).toEqual([daemon, hosts])
  })

  test('a broken record stops it before anything is touched', async () => {
    write('var/lib/skimmer/setup/docker.json', '{"version":2}')
    expect(await setup('docker', '-y')).toMatchObject({ code: 6, stderr: expect.stringMatching(/record of the setup, is wrong/) })
    expect(existsSync(at('etc'))).toBe(false)
  })

  test.each([['docker', 'etc/docker/daemon.json', '{"a": }'], ['containerd', HOSTS, 'a = ='], ['podman', 'etc/containers/registries.conf', '[[registry]'], ['containerd', 'etc/containerd/config.toml', '= 1']])('%s: a %s that its client could not read either is refused', async (client, path, text) => {
    write(path, text)
    expect(await setup(client, '-y')).toMatchObject({ code: 6, stderr: expect.stringMatching(/nothing was changed/) })
    expect(read(path)).toBe(text)
  })
})

describe('containerd', () => {
  test.each([
    [2, 'version = 2\n', '[plugins."io.containerd.grpc.v1.cri".registry]'],
    [3, 'version = 3\n', '[plugins."io.containerd.cri.v1.images".registry]'],
    ['none', '[metrics]\n', '[plugins."cri".registry]'],
    ['no file', undefined, 'version = 2\n\n[plugins."io.containerd.grpc.v1.cri".registry]'],
  ])('configuration version %s', async (_, text, written) => {
    if (text !== undefined) write('etc/containerd/config.toml', text)
    await setup('containerd', '-y')
    expect(read('etc/containerd/config.toml')).toContain(`${written}\n  config_path = "/etc/containerd/certs.d"\n`)
  })

  test('an existing config_path is honoured, and no restart is asked for', async () => {
    write('etc/containerd/config.toml', 'version = 3\n[plugins."io.containerd.cri.v1.images".registry]\nconfig_path = "/opt/certs"\n')
    const { stdout } = await setup('containerd', '-y')
    expect(existsSync(at('opt/certs/_default/hosts.toml'))).toBe(true)
    expect(stdout).toMatch(/nothing to restart/)
  })

  test('also in an imported file', async () => {
    write('etc/containerd/config.toml', 'version = 2\nimports = ["/etc/containerd/conf.d/*.toml"]\n')
    write('etc/containerd/conf.d/registry.toml', 'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/opt/certs"\n')
    await setup('containerd', '-y')
    expect(existsSync(at('opt/certs/_default/hosts.toml'))).toBe(true)
  })

  test('of several directories the one that hides nothing', async () => {
    write('etc/containerd/config.toml', 'version = 3\n[plugins."io.containerd.cri.v1.images".registry]\nconfig_path = "/etc/containerd/certs.d:/etc/docker/certs.d"\n')
    write('etc/docker/certs.d/mine.example/ca.crt', 'x')
    const { stdout } = await setup('containerd', '-y')
    expect(existsSync(at('etc/docker/certs.d/_default/hosts.toml'))).toBe(true)
    expect(stdout).toMatch(/note: config_path names 2 directories\. containerd 2\.2 /)
    expect(stdout).toMatch(/_default is not read for registries with a directory of their own: \/etc\/docker\/certs\.d\/mine\.example/)
  })

  test('old mirrors keep config_path out, and that is said', async () => {
    write('etc/containerd/config.toml', 'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]\nendpoint = ["https://m.example"]\n')
    const before = read('etc/containerd/config.toml')
    expect((await setup('containerd', '-y')).stdout).toMatch(/note: .*registry\.mirrors, which containerd allows only without config_path/)
    expect(read('etc/containerd/config.toml')).toBe(before)
    expect(existsSync(at(HOSTS))).toBe(true)
  })

  test('with CRI disabled config.toml is left alone', async () => {
    write('etc/containerd/config.toml', 'disabled_plugins = ["cri"]\n')
    expect((await setup('containerd', '-y')).stdout).toMatch(/disables containerd's CRI plugin/)
    expect(read('etc/containerd/config.toml')).toBe('disabled_plugins = ["cri"]\n')
  })

  test('registries by name, one file each, found where containerd finds them', async () => {
    write('etc/containerd/certs.d/registry.example_5000_/hosts.toml', 'server = "http://registry.example:5000" # mine\n')
    await setup('containerd', '-y', '--registry', 'registry.example:5000', 'docker.io')
    expect(read('etc/containerd/certs.d/registry.example_5000_/hosts.toml')).toMatch(/^server = "http:\/\/registry\.example:5000" # mine\n# >>> skimmer setup\n\[host\./)
    expect(read('etc/containerd/certs.d/docker.io/hosts.toml')).toMatch(/server = "https:\/\/registry-1\.docker\.io"/)
    const { stdout } = await setup('containerd', '-y', '--registry', 'quay.io')
    expect(stdout).toMatch(/certs\.d\/quay\.io\/hosts\.toml/)
    await setup('containerd', '-y', '--undo')
    expect(listed()).toEqual(['etc', 'etc/containerd', 'etc/containerd/certs.d', 'etc/containerd/certs.d/registry.example_5000_', 'etc/containerd/certs.d/registry.example_5000_/hosts.toml'])
  })

  test("somebody's _default is not hidden by a directory of ours", async () => {
    write(HOSTS, '[host."https://m.example"]\n')
    expect(await setup('containerd', '-y', '--registry', 'docker.io')).toMatchObject({ code: 1, stderr: expect.stringMatching(/_default\/hosts\.toml holds for docker\.io now/) })
    await setup('containerd', '-y')
    expect(Object.keys((await import('smol-toml')).parse(read(HOSTS)).host as object)).toEqual(['http://127.0.0.1:4001', 'https://m.example'])
    expect((await setup('containerd', '-y', '--registry', 'docker.io')).stdout).toMatch(/docker\.io needs no file of its own/)
  })

  test("certificates in docker's way are not put out of force", async () => {
    write('etc/containerd/certs.d/mine.example/ca.crt', 'x')
    expect(await setup('containerd', '-y', '--registry', 'mine.example')).toMatchObject({ code: 6, stderr: expect.stringMatching(/holds certificates in docker's way \(ca\.crt\)/) })
    expect(listed()).not.toContain('var')
  })

  test('another proxy takes the place of the one before', async () => {
    await setup('containerd', '-y', '--registry', 'quay.io')
    await setup('containerd', '-y', '--proxy', 'http://10.0.0.1:4001/', '--registry', 'docker.io')
    expect(existsSync(at('etc/containerd/certs.d/quay.io/hosts.toml'))).toBe(false)
    expect(read('etc/containerd/certs.d/docker.io/hosts.toml')).toMatch(/\[host\."http:\/\/10\.0\.0\.1:4001"\]/)
    await setup('containerd', '-y', '--undo')
    expect(listed()).toEqual([])
  })
})

describe('Docker', () => {
  test('a flag for the same setting would keep dockerd from starting', async () => {
    write('etc/systemd/system/docker.service.d/mirror.conf', '[Service]\n# --registry-mirror in a note\nExecStart=\nExecStart=/usr/bin/dockerd --registry-mirror=https://m.example\n')
    expect(await setup('docker', '-y')).toMatchObject({ code: 1, stderr: expect.stringMatching(/docker\.service\.d\/mirror\.conf gives dockerd the flag --registry-mirror/) })
  })

  test('other registries than docker.io are refused, and the way for them is told', async () => {
    expect(await setup('docker', '-y', '--registry', 'quay.io')).toMatchObject({ code: 6, stderr: expect.stringMatching(/docker\.io alone, not for quay\.io; .*forward proxy/) })
  })
})

describe('podman and CRI-O', () => {
  const DROP_IN = 'etc/containers/registries.conf.d/50-skimmer.conf'

  test('share one drop-in and one undo; registries add up', async () => {
    await setup('podman', '-y', '--registry', 'quay.io')
    expect(await setup('crio', '--registry', 'quay.io')).toMatchObject({ code: 0, stdout: expect.stringMatching(/set up already/) })
    await setup('crio', '-y', '--registry', 'registry.example:5000')
    expect([...read(DROP_IN).matchAll(/location = "(127[^"]+)"/g)].map(([, location]) => location)).toEqual(['127.0.0.1:4001/quay.io', '127.0.0.1:4001/registry.example__5000'])
    await setup('podman', '-y', '--undo')
    expect(listed()).toEqual([])
  })

  test('an entry that is there gets the mirror itself, with the place it really leads to', async () => {
    write('etc/containers/registries.conf', '[[registry]]\nprefix = "docker.io"\nlocation = "mirror.corp/hub"\ninsecure = true\n[[registry.mirror]]\nlocation = "other.corp"\n')
    write('etc/containers/registries.conf.d/zz.conf', '[[registry]]\nlocation = "quay.io"\nblocked = true\n')
    const { stdout } = await setup('podman', '-y', '--registry', 'docker.io', 'quay.io')
    expect(read('etc/containers/registries.conf')).toBe('[[registry]]\nprefix = "docker.io"\nlocation = "mirror.corp/hub"\ninsecure = true\n# >>> skimmer setup\n[[registry.mirror]]\nlocation = "127.0.0.1:4001/mirror.corp/hub"\ninsecure = true\n# <<< skimmer setup\n[[registry.mirror]]\nlocation = "other.corp"\n')
    expect(stdout).toMatch(/zz\.conf blocks quay\.io: left as it is/)
    expect(existsSync(at(DROP_IN))).toBe(false)
  })
})

describe('--check', () => {
  test('tells whether it is set up, and whether the proxy answers', async () => {
    const server = createServer((request, response) => void response.writeHead(request.url === '/v2/' ? 200 : 404).end())
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const proxy = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
    try {
      expect(await setup('podman', '--check', '--proxy', proxy)).toMatchObject({ code: 1, stdout: expect.stringMatching(/missing {2}.*50-skimmer\.conf[^]*ok {7}the registry proxy at/) })
      await setup('podman', '-y', '--proxy', proxy)
      expect(await setup('podman', '--check', '--proxy', proxy)).toMatchObject({ code: 0 })
    } finally {
      await new Promise((resolve) => server.close(resolve))
    }
    expect(await setup('podman', '--check', '--proxy', proxy)).toMatchObject({ code: 5, stderr: expect.stringMatching(/does not answer .*clients go to the registries themselves/) })
  })
})
