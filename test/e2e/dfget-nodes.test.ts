// dfget through real node daemons: one copy leaves the source for all, and what dies on the way.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { createHash, randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { type LabNode, dfgetArgv } from '../../bench/lab/cluster.ts'
import { LabFileServer } from '../../bench/lab/file-server.ts'
import type { RunResult } from '../../bench/lab/process.ts'
import { daemonPid, eventually, NodeLab, untilServing, whyNoNodes } from './node-lab.ts'

const why = whyNoNodes || (existsSync('/usr/sbin/nginx') ? '' : 'nginx is not installed')
const suite = why === '' ? describe : describe.skip
const MIB = 1024 * 1024
const NAMES = ['n1', 'n2', 'n3']

suite(`dfget through nodes${why && ` (skipped: ${why})`}`, () => {
  let lab: NodeLab
  let server: LabFileServer
  let nodes: LabNode[]
  let files: string

  beforeAll(async () => {
    lab = await NodeLab.start({ nodes: NAMES, mbit: { registry: 100, supernode: 300, n1: 300, n2: 300, n3: 300 } })
    files = join(lab.directory, 'files')
    mkdirSync(files)
    server = await LabFileServer.start(lab.network.host('registry'), { files, directory: join(lab.directory, 'nginx') })
    nodes = await Promise.all(NAMES.map((name) => lab.startNode(name, { containerd: false })))
  })
  afterAll(() => lab?.stop())

  /** A file of the server's; its sha256. */
  function publish(name: string, bytes: number): string {
    const content = randomBytes(bytes)
    writeFileSync(join(files, name), content)
    return createHash('sha256').update(content).digest('hex')
  }
  const target = (node: LabNode, name: string): string => join(lab.directory, `${node.name}-${name}`)
  const dfget = (node: LabNode, name: string, ...words: string[]): Promise<RunResult> =>
    node.host.run(dfgetArgv(`${server.url}/${name}`, '-O', target(node, name), ...words), { mayFail: true, timeoutMs: 120_000, env: { SKIMMER_SOCKET: node.apiSocket } })
  const sha256 = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex')
  /** Nothing but files that were asked for: no temporary one was left. */
  const leftovers = (): string[] => readdirSync(lab.directory).filter((name) => name.includes('.dfget-'))
  /** So much of it came to the node. */
  const begun = (node: LabNode, name: string, bytes: number): Promise<void> =>
    eventually(() => {
      const temporary = readdirSync(lab.directory).find((entry) => entry.startsWith(`.${node.name}-${name}.dfget-`))
      if (temporary === undefined || statSync(join(lab.directory, temporary)).size < bytes) throw new Error('not so far yet')
    })

  test('one copy leaves the source for three nodes at once, and they share it', async () => {
    const sum = publish('shared.bin', 48 * MIB + 4321)
    const results = await Promise.all(nodes.map((node) => dfget(node, 'shared.bin', '--json', '--disable-back-to-source', '--digest', `sha256:${sum}`)))
    for (const [index, result] of results.entries()) {
      expect([result.code, result.stderr]).toEqual([0, expect.any(String)])
      expect(sha256(target(nodes[index], 'shared.bin'))).toBe(sum)
    }
    const received = results.map(({ stdout }) => (JSON.parse(stdout) as { received: { peer: number; supernode: number; source: number } }).received)
    expect(received.map(({ source }) => source)).toEqual([0, 0, 0])
    expect(received.reduce((bytes, { peer }) => bytes + peer, 0)).toBeGreaterThan(24 * MIB)
    expect(server.served('/shared.bin')).toBe(48 * MIB + 4321)
    // Again: it is here.
    const again = await dfget(nodes[0], 'shared.bin', '--json', '--digest', `sha256:${sum}`)
    expect(JSON.parse(again.stdout)).toMatchObject({ route: 'node', received: { local: 48 * MIB + 4321, peer: 0, supernode: 0, source: 0 } })
    expect(server.served('/shared.bin')).toBe(48 * MIB + 4321)
    expect(leftovers()).toEqual([])
  })

  test('a daemon that is killed in the middle is waited for, and the download goes on', async () => {
    const sum = publish('killed.bin', 64 * MIB)
    const running = dfget(nodes[1], 'killed.bin')
    await begun(nodes[1], 'killed.bin', 8 * MIB)
    const pid = daemonPid(nodes[1])!
    process.kill(pid, 'SIGKILL')
    const result = await running
    expect([result.code, result.stderr]).toEqual([0, expect.any(String)])
    expect(sha256(target(nodes[1], 'killed.bin'))).toBe(sum)
    await untilServing(nodes[1], pid)
    expect(leftovers()).toEqual([])
  })

  test('an interrupted one leaves no file, and what came is not asked for again', async () => {
    const sum = publish('interrupted.bin', 64 * MIB)
    const stopped = nodes[0].host.run(['timeout', '--signal=INT', '2', ...dfgetArgv(`${server.url}/interrupted.bin`, '-O', target(nodes[0], 'interrupted.bin'), '--disable-back-to-source')], {
      mayFail: true, env: { SKIMMER_SOCKET: nodes[0].apiSocket },
    })
    expect((await stopped).code).toBe(124)
    expect(existsSync(target(nodes[0], 'interrupted.bin'))).toBe(false)
    expect(leftovers()).toEqual([])
    expect((await dfget(nodes[0], 'interrupted.bin', '--disable-back-to-source')).code).toBe(0)
    expect(sha256(target(nodes[0], 'interrupted.bin'))).toBe(sum)
    expect(server.served('/interrupted.bin')).toBe(64 * MIB)
  })

  // The last one: the lab has no supernode any more.
  test('a supernode that dies in the middle: the source gives the rest, or there is a plain error and no file', async () => {
    const sum = publish('orphaned.bin', 64 * MIB)
    const with_ = dfget(nodes[0], 'orphaned.bin', '--json')
    const without = dfget(nodes[2], 'orphaned.bin', '--json', '--disable-back-to-source', '--timeout', '20')
    await Promise.all([begun(nodes[0], 'orphaned.bin', 8 * MIB), begun(nodes[2], 'orphaned.bin', 1)])
    process.kill(lab.supernode.process.child.pid!, 'SIGKILL')
    const [one, other] = await Promise.all([with_, without])
    expect([one.code, one.stderr]).toEqual([0, expect.any(String)])
    expect(sha256(target(nodes[0], 'orphaned.bin'))).toBe(sum)
    // It got the rest from the first node, or none.
    if (other.code === 0) expect(sha256(target(nodes[2], 'orphaned.bin'))).toBe(sum)
    else {
      expect(JSON.parse(other.stdout)).toMatchObject({ error: { message: expect.any(String) }, exitCode: 5 })
      expect(other.code).toBe(5)
      expect(existsSync(target(nodes[2], 'orphaned.bin'))).toBe(false)
    }
    expect(leftovers()).toEqual([])
  })
})
