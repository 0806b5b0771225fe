// `npm run build`: the JavaScript it makes runs as the sources do, with its workers, its page and its protocol files.
import { afterAll, describe, expect, jest, test } from '@jest/globals'
import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ROOT, skimmer } from './run-cli.ts'

jest.setTimeout(180_000)

// Below node_modules: packages are found, and Node strips no types there, so that a forgotten .ts fails.
const directory = join(ROOT, 'node_modules', `.skimmer-build-${process.pid}`)
const home = mkdtempSync(join(tmpdir(), 'skimmer-built-'))
afterAll(() => {
  for (const each of [directory, home]) rmSync(each, { recursive: true, force: true })
})

describe('the build', () => {
  test('indexes, shares, proves and reads an image, and holds all files that are read at run time', async () => {
    const built = spawnSync(process.execPath, [join(ROOT, 'deploy/build.ts'), directory], { encoding: 'utf8' })
    expect([built.status, built.stdout, built.stderr]).toEqual([0, '', ''])
    const cli = join(directory, 'node/cli.js')
    const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { version: string }
    expect(await skimmer(['--version'], { cli })).toEqual({ code: 0, stdout: `${version}\n`, stderr: '' })
    // Whatever the sources look for beside themselves, by its path, lies in the same place.
    const sources = spawnSync('git', ['ls-files', '*.ts', ':!test', ':!deploy'], { cwd: ROOT, encoding: 'utf8' }).stdout.trim().split('\n').filter((file) => existsSync(join(ROOT, file)))
    const wanted = sources.flatMap((file) => [...readFileSync(join(ROOT, file), 'utf8').matchAll(/'(\.{1,2}\/[\w./-]+\.js)'/g)].map(([, path]) => join(file, '..', path)))
    expect(wanted).toContain('blockdev/fuse-thread.js')
    expect([...wanted, 'snapshotter/proto', 'supernode/console.html', 'blockdev/supervisor-shim.pl'].filter((path) => !existsSync(join(directory, path)))).toEqual([])
    // As nobody if we are root: the part of the demo that needs nothing of the machine.
    const as = process.getuid?.() === 0 ? ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', 'env', `TMPDIR=${home}`] : []
    spawnSync('chmod', ['777', home])
    expect(await skimmer(['demo'], { cli, as, env: { HOME: home } })).toMatchObject({ code: 0, stdout: expect.stringContaining('held whole by 3 nodes') })
  })
})
