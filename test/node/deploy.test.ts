// The examples in deploy/ and the documents: what is written there is true.
import { describe, expect, test } from '@jest/globals'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parse as parseToml } from 'smol-toml'
import { checkNodeConfig } from '../../node/config/node-check.ts'
import { NODE_SETTINGS } from '../../node/config/node-settings.ts'
import { hostsConfig } from '../../node/config/registries.ts'
import { loadSettings } from '../../command-line/settings.ts'
import { SUPERNODE_SETTINGS } from '../../node/config/supernode-settings.ts'
import { ROOT } from './run-cli.ts'

const read = (path: string): string => readFileSync(join(ROOT, path), 'utf8')
const has = (program: string): boolean => spawnSync('sh', ['-c', `command -v ${program}`]).status === 0

describe('example configuration', () => {
  test('node.yaml is one that a node accepts', () => {
    const config = loadSettings(NODE_SETTINGS, { config: join(ROOT, 'deploy/config/node.yaml') }, {})
    expect(config).toMatchObject({ supernodes: ['10.0.0.1:4980'], 'join-token-file': '/etc/skimmer/join-token', 'cache.size': 50 * 2 ** 30, 'metrics.listen': { host: '0.0.0.0', port: 4982 } })
    checkNodeConfig({ ...config, 'join-token-file': undefined })
  })

  test('supernode.yaml is one that a supernode accepts', () => {
    const config = loadSettings(SUPERNODE_SETTINGS, { config: join(ROOT, 'deploy/config/supernode.yaml') }, {})
    expect(config).toMatchObject({ 'http.listen': { host: '0.0.0.0', port: 4981 }, 'cache.ttl': 30 * 86_400_000 })
    expect(Object.keys(hostsConfig(config))).toEqual(['registry.example:5000'])
  })

  test('the YAML in the README is accepted too', () => {
    const examples = [...read('README.md').matchAll(/```yaml\n([\s\S]*?)```/g)].map(([, yaml]) => yaml)
    expect(examples.length).toBeGreaterThan(0)
    const directory = mkdtempSync(join(tmpdir(), 'skimmer-readme-'))
    for (const [number, yaml] of examples.entries()) {
      const file = join(directory, `${number}.yaml`)
      writeFileSync(file, yaml)
      const config = loadSettings(NODE_SETTINGS, { config: file }, {})
      checkNodeConfig({ ...config, 'join-token-file': undefined })
    }
    rmSync(directory, { recursive: true })
  })
})

describe('containerd', () => {
  test.each(['containerd-1.toml', 'containerd-2.toml'])('%s names the socket where a node listens by default', (name) => {
    const config = parseToml(read(`deploy/containerd/${name}`)) as { version: number; proxy_plugins: Record<string, { type: string; address: string; exports: { root: string } }> }
    expect(config.proxy_plugins['skimmer']).toMatchObject({ type: 'snapshot', address: `${NODE_SETTINGS.run.fallback}/snapshotter.sock`, exports: { root: NODE_SETTINGS.root.fallback } })
  })

  const containerd = has('containerd') ? test : test.skip
  containerd('containerd itself understands the example of its version', () => {
    const version = /containerd \S+ v?(\d)/.exec(spawnSync('containerd', ['--version'], { encoding: 'utf8' }).stdout)?.[1] === '2' ? 2 : 1
    const { status, stdout, stderr } = spawnSync('containerd', ['--config', join(ROOT, `deploy/containerd/containerd-${version}.toml`), 'config', 'dump'], { encoding: 'utf8' })
    expect([status, stderr]).toEqual([0, expect.not.stringContaining('unknown')])
    const config = parseToml(stdout) as { proxy_plugins: Record<string, { address: string }>; plugins: Record<string, { snapshotter?: string; disable_snapshot_annotations?: boolean; containerd?: { snapshotter?: string; disable_snapshot_annotations?: boolean } }> }
    expect(config.proxy_plugins['skimmer'].address).toBe('/run/skimmer/snapshotter.sock')
    const cri = version === 1 ? config.plugins['io.containerd.grpc.v1.cri'].containerd : config.plugins['io.containerd.cri.v1.images']
    expect(cri).toMatchObject({ snapshotter: 'skimmer', disable_snapshot_annotations: false })
  })
})

describe('systemd units', () => {
  const units = readdirSync(join(ROOT, 'deploy/systemd'))

  test('they start commands that exist, with the example files', () => {
    expect(units.sort()).toEqual(['skimmer-node.service', 'skimmer-supernode.service'])
    for (const unit of units) {
      const what = /skimmer-(\w+)\.service/.exec(unit)?.[1]
      expect(read(`deploy/systemd/${unit}`)).toMatch(new RegExp(`^ExecStart=/opt/skimmer/node/bin/skimmer ${what} --config /etc/skimmer/${what}\\.yaml$`, 'm'))
    }
  })

  const verify = has('systemd-analyze') ? test : test.skip
  verify('systemd finds nothing wrong with them', () => {
    const directory = mkdtempSync(join(tmpdir(), 'skimmer-units-'))
    for (const unit of units) writeFileSync(join(directory, unit), read(`deploy/systemd/${unit}`).replaceAll('/opt/skimmer/', ROOT))
    const { status, stderr } = spawnSync('systemd-analyze', ['verify', '--man=no', ...units.map((unit) => join(directory, unit))], { encoding: 'utf8' })
    rmSync(directory, { recursive: true })
    expect([status, stderr.split('\n').filter((line) => line.includes('skimmer'))]).toEqual([0, []])
  })
})

describe('documents', () => {
  const documents = ['README.md', ...readdirSync(join(ROOT, 'docs')).filter((name) => name.endsWith('.md')).map((name) => `docs/${name}`)]

  test.each(documents)('%s: files and metrics that it names exist', (document) => {
    const text = read(document)
    const sources = spawnSync('sh', ['-c', "grep -rhoE 'skimmer_[a-z]+_[a-z_]+' --include=*.ts oci source image peer supernode blockdev snapshotter registry-proxy dfget node"], { cwd: ROOT, encoding: 'utf8' }).stdout
    for (const [, metric] of text.matchAll(/`(skimmer_(?!node_)[a-z]+_[a-z_]+)`/g)) expect(sources.split('\n')).toContain(metric)
    const links = [...text.matchAll(/\]\(([^)#:]+)\)/g)].map(([, path]) => path)
    const paths = [...text.matchAll(/`((?:oci|source|image|peer|supernode|blockdev|snapshotter|registry-proxy|dfget|command-line|node|bench|deploy|docs|test)\/[\w./-]+\.\w+)`/g)].map(([, path]) => path)
    const folder = document.includes('/') ? 'docs/' : ''
    for (const path of [...links.map((link) => folder + link), ...paths]) expect([path, spawnSync('test', ['-e', path], { cwd: ROOT }).status]).toEqual([path, 0])
  })

  test('what they tell to run with npm exists', () => {
    const { scripts } = JSON.parse(read('package.json')) as { scripts: Record<string, string> }
    for (const document of documents) for (const [, script] of read(document).matchAll(/npm run (\w[\w:]*)/g)) expect(Object.keys(scripts)).toContain(script)
  })

  test('and the commands of skimmer that they tell of exist, with their flags', () => {
    const help = new Map<string, string>()
    for (const document of documents) {
      for (const [, command, rest] of read(document).matchAll(/skimmer (supernode|node|proxy|setup|preheat|inspect|mount|umount|status|explain|doctor|demo)((?: [^`\n#|]*)?)/g)) {
        for (const [flag] of rest.matchAll(/--[a-z][\w-]+/g)) {
          if (!help.has(command)) help.set(command, spawnSync(process.execPath, [join(ROOT, 'node/cli.ts'), command, '--help'], { encoding: 'utf8' }).stdout)
          expect([command, help.get(command)]).toEqual([command, expect.stringContaining(flag)])
        }
      }
    }
  })
})
