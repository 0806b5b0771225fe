// The demo for people without root: it says what is missing, and shows the part that needs nothing: index, share, verify, read.
import { afterAll, beforeAll, describe, expect, jest, test } from '@jest/globals'
import { spawnSync } from 'node:child_process'
import { chmodSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CLI, skimmer } from './run-cli.ts'

// Four daemons in one process: seconds, but not on a machine that is busy with other tests.
jest.setTimeout(180_000)

const NOBODY = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups']
const isRoot = process.getuid?.() === 0
/** As somebody else who may read this checkout; without root we are that already. */
const as = isRoot ? NOBODY : []
const readable = !isRoot || spawnSync(NOBODY[0], [...NOBODY.slice(1), process.execPath, '--check', CLI]).status === 0

let home: string
beforeAll(() => {
  home = mkdtempSync(join(tmpdir(), 'skimmer-home-'))
  chmodSync(home, 0o777)
})
afterAll(() => rmSync(home, { recursive: true, force: true }))

const suite = readable ? describe : describe.skip
suite(`skimmer demo without root ${readable ? '' : '(skipped: user 65534 may not read this checkout)'}`, () => {
  test('says what is missing, then shares an image between three nodes and reads it', async () => {
    const json = join(home, 'result.json')
    const { code, stdout, stderr } = await skimmer(['demo', '--json', json], { as, env: { HOME: home, TMPDIR: home } })
    expect(stderr).toMatch(/not the whole demo: not root: /)
    expect([code, stdout]).toEqual([0, expect.stringMatching(/demo\/small:latest: indexed once, held whole by 3 nodes, every layer proved against its diffID, 119 files read out/)])
    const result = JSON.parse(readFileSync(json, 'utf8')) as { ok: boolean; filesRead: number; nodes: { name: string; proved: boolean; bytes: { peer: number; supernode: number; registry: number } }[] }
    expect(result).toMatchObject({ ok: true, filesRead: 119 })
    expect(result.nodes.map(({ name, proved }) => [name, proved])).toEqual([['node1', true], ['node2', true], ['node3', true]])
    const [first, ...others] = result.nodes
    expect([first.bytes.peer, first.bytes.registry]).toEqual([0, 0])
    // The nodes that came later have it from other nodes too.
    for (const { bytes } of others) expect(bytes.peer).toBeGreaterThan(0)
    // Nothing is left behind.
    expect(readdirSync(home)).toEqual(['result.json'])
  })

  test('an image that cannot be had is a clear error, and nothing is left behind', async () => {
    const { code, stderr } = await skimmer(['demo', '127.0.0.1:1/nothing:here'], { as, env: { HOME: home, TMPDIR: home } })
    expect([3, 5]).toContain(code)
    expect(stderr.trimEnd().split('\n').at(-1)).toMatch(/^skimmer: .*127\.0\.0\.1:1/)
    expect(readdirSync(home).filter((name) => name !== 'result.json')).toEqual([])
  })

  test('Ctrl-C ends it with exit code 130 and takes everything down', async () => {
    const { code, stderr } = await skimmer(['demo'], { as, env: { HOME: home, TMPDIR: home }, signalAfter: /starting; / })
    expect([code, stderr.trimEnd().split('\n').at(-1)]).toEqual([130, 'skimmer: interrupted by SIGINT'])
    expect(readdirSync(home).filter((name) => name !== 'result.json')).toEqual([])
  })

  test('skimmer doctor without root: says that mounting needs it', async () => {
    const { code, stdout } = await skimmer(['doctor', '--root', join(home, 'root'), '--run', join(home, 'run')], { as, env: { HOME: home } })
    expect(code).toBe(1)
    expect(stdout).toMatch(/^MISSING +root: mounting needs root/m)
  })
})
