// The `skimmer` command as people meet it: help that teaches, exit codes that mean something, errors that say what to do.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { EXIT_CODES } from '../../command-line/exit-codes.ts'
import { NODE_SETTINGS } from '../../node/config/node-settings.ts'
import { SUPERNODE_SETTINGS } from '../../node/config/supernode-settings.ts'
import { CLI, ROOT, skimmer } from './run-cli.ts'

const COMMANDS = ['supernode', 'node', 'preheat', 'inspect', 'mount', 'umount', 'status', 'explain', 'doctor', 'demo']

let directory: string
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'skimmer-cli-'))
})
afterAll(() => rmSync(directory, { recursive: true, force: true }))

function file(name: string, text: string): string {
  writeFileSync(join(directory, name), text)
  return join(directory, name)
}

describe('help', () => {
  test('skimmer --help names every command, what a node and a supernode are, and the exit codes', async () => {
    const { code, stdout } = await skimmer(['--help'])
    expect(code).toBe(0)
    for (const command of COMMANDS) expect(stdout).toMatch(new RegExp(`^  ${command} `, 'm'))
    expect(stdout).toMatch(/A node runs on every machine/)
    expect(stdout).toMatch(/Exit codes: 0 done, 1 failed, 2 wrong usage/)
    expect(stdout).toContain('npm run demo')
  })

  test.each(COMMANDS)('skimmer %s --help says what it does, every option in words, and the exit codes', async (command) => {
    const { code, stdout, stderr } = await skimmer([command, '--help'])
    expect([code, stderr]).toEqual([0, ''])
    const lines = stdout.split('\n')
    expect(lines[0]).toMatch(new RegExp(`^Usage: skimmer ${command} `))
    expect(lines[2].length).toBeGreaterThan(40)
    expect(stdout).toContain('Exit codes:')
    for (const line of lines.filter((each) => each.startsWith('  -'))) expect(line).toMatch(/^  (-\w, )?--[\w-]+( <[^>]+>)? {2,}\S/)
    if (!['umount', 'demo', 'preheat', 'doctor', 'node', 'supernode'].includes(command)) expect(stdout).toContain('SKIMMER_SOCKET')
  })

  test.each([['node', NODE_SETTINGS], ['supernode', SUPERNODE_SETTINGS]] as const)('skimmer %s --help tells each setting with its environment variable and default, and how to write them', async (command, settings) => {
    const { stdout } = await skimmer([command, '--help'])
    const words = stdout.replaceAll(/\s+/g, ' ')
    for (const [key, setting] of Object.entries(settings)) {
      expect(words).toContain(`--${key.replaceAll('.', '-')} <${setting.placeholder}`)
      expect(words).toContain(setting.help)
      expect(words).toContain(`(environment: SKIMMER_${key.replaceAll(/[.-]/g, '_').toUpperCase()})`)
      if (typeof setting.fallback === 'string' && setting.fallback !== '') expect(words).toContain(`[${setting.fallback}]`)
    }
    expect(words).toMatch(/the flag counts first, then the environment, then the file/)
    expect(words).toMatch(/SIGTERM/)
  })

  test('the version is that of package.json', async () => {
    const { version } = JSON.parse(readFileSync(`${ROOT}package.json`, 'utf8')) as { version: string }
    expect((await skimmer(['--version'])).stdout.trim()).toBe(version)
  })

  test('the README tells every exit code', () => {
    const readme = readFileSync(`${ROOT}README.md`, 'utf8')
    for (const code of Object.values(EXIT_CODES)) expect(readme).toMatch(new RegExp(`\\| ${code} \\|`))
  })
})

describe('mistakes', () => {
  test.each([
    ['no command', [], EXIT_CODES.usage, /Usage: skimmer/],
    ['an unknown command', ['nod'], EXIT_CODES.usage, /unknown command 'nod'[\s\S]*node/],
    ['an unknown flag', ['node', '--cach-size', '1GiB'], EXIT_CODES.usage, /unknown option '--cach-size'[\s\S]*--cache-size/],
    ['a missing argument', ['inspect'], EXIT_CODES.usage, /missing required argument 'IMAGE'/],
    ['a missing supernode', ['preheat', 'debian'], EXIT_CODES.usage, /--supernode/],
    ['a supernode that is no URL', ['preheat', '-s', '10.0.0.1', 'debian'], EXIT_CODES.usage, /--supernode: "10\.0\.0\.1" is not a URL/],
    ['a size without a unit', ['node', '--cache-size', '20'], EXIT_CODES.usage, /--cache-size: "20" is not a size/],
    ['an address that is none', ['node', '--supernodes', 'a b'], EXIT_CODES.usage, /supernodes: /],
    ['a configuration file that is not there', ['supernode', '--config', '/nowhere.yaml'], EXIT_CODES.usage, /\/nowhere\.yaml does not exist/],
    ['a link rate of nothing', ['demo', '--mbit', '0'], EXIT_CODES.usage, /0 is not between 1 and/],
    ['no node listens', ['status', '--socket', '/nowhere/api.sock'], EXIT_CODES.unavailable, /no node listens on \/nowhere\/api\.sock.*skimmer node/],
    ['no supernode listens', ['preheat', '-s', 'http://127.0.0.1:1', 'debian'], EXIT_CODES.unavailable, /the supernode at http:\/\/127\.0\.0\.1:1 does not answer/],
  ])('%s', async (_, words, code, message) => {
    const result = await skimmer(words)
    expect(result.stderr).toMatch(message)
    expect(result.stderr).not.toMatch(/^\s+at /m)
    expect([result.code, result.stdout]).toEqual([code, ''])
  })

  test('an unknown key in the file is named, before anything starts', async () => {
    const result = await skimmer(['node', '--config', file('typo.yaml', 'cache: { szie: 1GiB }')])
    expect(result.code).toBe(EXIT_CODES.usage)
    expect(result.stderr).toMatch(/typo\.yaml: cache\.szie is unknown; known keys: .*cache\.size/)
  })

  test('a reader that stops reading is no error: skimmer doctor | head -1', () => {
    const words = ['doctor', '--root', `${directory}/root`, '--run', `${directory}/run`].map((word) => JSON.stringify(word)).join(' ')
    const { stdout, stderr } = spawnSync('sh', ['-c', `${JSON.stringify(process.execPath)} ${JSON.stringify(CLI)} ${words} | head -n 1`], { encoding: 'utf8' })
    expect([stdout.split('\n').length, stderr]).toEqual([2, ''])
  })

  test('SKIMMER_DEBUG adds the stack', async () => {
    expect((await skimmer(['status', '--socket', '/nowhere'], { env: { SKIMMER_DEBUG: '1' } })).stderr).toMatch(/^\s+at /m)
  })
})

describe('skimmer doctor', () => {
  test('reads the same file as the node, says what works, and prints the configuration for containerd with its paths', async () => {
    const config = file('doctor.yaml', `root: ${directory}/root\nrun: ${directory}/run\nsupernodes: [10.0.0.1:4980]\ncache: { size: 50GiB }\n`)
    const { stdout } = await skimmer(['doctor', '--config', config])
    for (const what of ['root', 'perl', 'fuse', 'resend', 'overlay', 'erofs-file', 'erofs-loop']) expect(stdout).toMatch(new RegExp(`^(ok|without|MISSING) +${what}: `, 'm'))
    expect(stdout).toMatch(/without +node: no node listens/)
    expect(stdout).toContain(`address = "${directory}/run/snapshotter.sock"`)
  })
})
