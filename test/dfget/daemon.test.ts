// Through a daemon: a peer of dfget's own where supernodes are named, the node's socket where there is one, and what happens when it goes.
import { afterAll, beforeAll, describe, expect, jest, test } from '@jest/globals'
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { haveNginx, startNginx, type RunningNginx } from '../source/nginx-fixture.ts'
import { Home, sampleBytes, until } from './run-dfget.ts'

jest.setTimeout(120_000)

const MIB = 1024 * 1024
const content = sampleBytes(12 * MIB + 17)
const sha256 = createHash('sha256').update(content).digest('hex')
const nginxDescribe = haveNginx ? describe : describe.skip

nginxDescribe('through a daemon', () => {
  const home = new Home()
  let nginx: RunningNginx
  /** No supernode answers there: the peer goes back to the source. */
  const lost = ['-n', '127.0.0.1:1', '--listen', '/ip4/127.0.0.1/tcp/0', '--alive-time', '60s']
  const runtime = join(home.environment.XDG_RUNTIME_DIR, 'skimmer-dfget')
  const socket = (): string => join(runtime, readdirSync(runtime).find((name) => name.endsWith('.sock'))!)
  const file = (name: string): Buffer => readFileSync(join(home.work, name))
  /** What is written of a file that is not there yet. */
  const writing = (name: string): number => {
    const found = readdirSync(home.work).find((each) => each.startsWith(`.${name}.dfget-`))
    return found === undefined ? 0 : statSync(join(home.work, found)).size
  }

  beforeAll(async () => {
    nginx = await startNginx({ location: 'autoindex on;', server: 'location /secret { if ($http_authorization != "Bearer right") { return 401; } try_files /file.bin =404; }' })
    writeFileSync(join(nginx.root, 'file.bin'), content)
  })
  afterAll(async () => {
    await nginx?.stop()
    home.remove()
  })

  test('the first starts a peer, the next find it, and what is here is not read again', async () => {
    const first = await home.dfget([...lost, `${nginx.url}/file.bin`, '-O', 'a', '--digest', sha256, '--json'])
    expect([first.code, JSON.parse(first.stdout.toString())]).toEqual([0, expect.objectContaining({ route: 'peer', bytes: content.length, digest: `sha256:${sha256}`, received: { local: 0, peer: 0, supernode: 0, source: content.length } })])
    expect(file('a').equals(content)).toBe(true)
    const peers = home.peers()
    expect(peers.length).toBe(1)
    const second = await home.dfget([...lost, `${nginx.url}/file.bin`, '-O', 'b', '--json'])
    expect(JSON.parse(second.stdout.toString())).toMatchObject({ route: 'peer', received: { peer: 0, supernode: 0 } })
    expect(file('b').equals(content)).toBe(true)
    expect(home.peers()).toEqual(peers)
    expect(readdirSync(home.work).sort()).toEqual(['a', 'b'])
  })

  test('a node is asked on its socket; standard output, ranges, headers, directories go that way too', async () => {
    const node = ['--socket', socket(), '--json']
    const plain = await home.dfget([...node, `${nginx.url}/file.bin`, '-O', 'c', '--mode', '0640'])
    expect([plain.code, JSON.parse(plain.stdout.toString())]).toEqual([0, expect.objectContaining({ route: 'node' })])
    expect([file('c').equals(content), statSync(join(home.work, 'c')).mode & 0o777]).toEqual([true, 0o640])
    const out = await home.dfget(['-e', socket(), `${nginx.url}/file.bin`, '-O', '-', '-q', '--digest', sha256])
    expect([out.code, out.stdout.equals(content)]).toEqual([0, true])
    const stopped = await home.dfget(['-e', socket(), `${nginx.url}/file.bin`, '-O', '-', '--no-progress'], { started: (child) => child.stdout!.once('data', () => child.stdout!.destroy()) })
    expect([stopped.code, stopped.stderr]).toEqual([141, ''])
    await home.dfget([...node, `${nginx.url}/file.bin`, '-O', 'd', '--range', '100-299'])
    expect(file('d').equals(content.subarray(100, 300))).toBe(true)
    expect(await home.dfget([...node, `${nginx.url}/secret`, '-O', 'e'])).toMatchObject({ code: 4 })
    expect(await home.dfget([...node, `${nginx.url}/secret`, '-O', 'e'], { env: { SKIMMER_HEADERS: 'Authorization: Bearer right' } })).toMatchObject({ code: 0 })
    const tree = await home.dfget([...node, '-r', `${nginx.url}/`, '-O', 'tree'])
    expect(JSON.parse(tree.stdout.toString())).toMatchObject({ failed: 0, files: [{ route: 'node' }] })
  })

  test("the source's own answers are final", async () => {
    const { code, stderr } = await home.dfget(['--socket', socket(), `${nginx.url}/none`, '-O', 'none'])
    expect([code, stderr.split('\n').length, existsSync(join(home.work, 'none'))]).toEqual([3, 2, false])
    expect(await home.dfget(['--socket', socket(), `${nginx.url}/file.bin`, '-O', 'none', '--digest', 'crc32:11111111'])).toMatchObject({ code: 6 })
    expect(readdirSync(home.work).filter((name) => name.includes('none'))).toEqual([])
  })

  test('interrupted: nothing stays but what the daemon keeps; killed: the next one removes it', async () => {
    const words = ['--socket', socket(), `${nginx.url}/file.bin`, '-O', 'i', '--tag', 'interrupted', '--limit', '3M']
    const interrupted = await home.dfget(words, { started: (child) => void until(() => writing('i') > MIB).then(() => child.kill('SIGINT')) })
    expect([interrupted.code, readdirSync(home.work).filter((name) => name.includes('.i.'))]).toEqual([130, []])
    await home.dfget(words, { started: (child) => void until(() => writing('i') > MIB).then(() => child.kill('SIGKILL')) })
    expect(readdirSync(home.work).filter((name) => name.includes('.i.')).length).toBe(1)
    expect(await home.dfget(words.slice(0, -2))).toMatchObject({ code: 0 })
    expect([file('i').equals(content), readdirSync(home.work).filter((name) => name.includes('.i.'))]).toEqual([true, []])
  })

  test('its own peer is killed in the middle: another one goes on', async () => {
    const [peer] = home.peers()
    const words = [...lost, `${nginx.url}/file.bin`, '-O', 'k', '--tag', 'killed', '--limit', '4M', '-v', '--json', '--digest', sha256]
    const { code, stdout, stderr } = await home.dfget(words, { started: () => void until(() => writing('k') > 2 * MIB).then(() => process.kill(peer, 'SIGKILL')) })
    expect([code, stderr]).toEqual([0, expect.stringContaining('asked again from there')])
    expect(JSON.parse(stdout.toString())).toMatchObject({ route: 'peer', bytes: content.length })
    expect(file('k').equals(content)).toBe(true)
    expect(home.peers()).not.toEqual([peer])
  })

  test('changed at the source while the daemon is away: begun again, never a mixture', async () => {
    const source = join(nginx.root, 'changes.bin')
    writeFileSync(source, content)
    const [peer] = home.peers()
    const other = sampleBytes(content.length, 2)
    const words = [...lost, `${nginx.url}/changes.bin`, '-O', 'v', '--limit', '4M', '-v']
    const { code, stderr } = await home.dfget(words, { started: () => void until(() => writing('v') > 2 * MIB).then(() => {
      writeFileSync(source, other)
      utimesSync(source, 1, 1)
      process.kill(peer, 'SIGKILL')
    }) })
    expect([code, stderr]).toEqual([0, expect.stringContaining('begun again')])
    expect(file('v').equals(other)).toBe(true)
  })

  test('the node goes in the middle and does not return: straight from the source, and it says so', async () => {
    const [peer] = home.peers()
    const words = ['--socket', socket(), `${nginx.url}/file.bin`, '-O', 'g', '--tag', 'gone', '--limit', '4M']
    const { code, stderr } = await home.dfget(words, { started: () => void until(() => writing('g') > 2 * MIB).then(() => process.kill(peer, 'SIGKILL')) })
    expect([code, stderr]).toEqual([0, expect.stringMatching(/^dfget: the node on .* does not answer \(ECONNREFUSED\); now straight from the source$/m)])
    expect(file('g').equals(content)).toBe(true)
  })

  test('what listens there is no node: straight from the source', async () => {
    const path = join(home.path, 'run', 'other.sock')
    const server = createServer((connection) => connection.on('error', () => {}).end('220 mail\r\n\r\n')).listen(path)
    await new Promise((resolve) => server.once('listening', resolve))
    const { code, stderr } = await home.dfget(['--socket', path, `${nginx.url}/file.bin`, '-O', 'm'])
    server.close()
    expect([code, stderr]).toEqual([0, expect.stringContaining('is not HTTP/1.1')])
    expect(file('m').equals(content)).toBe(true)
  })

  test('no node, no supernode that answers, and the source is not to be read: an error', async () => {
    const { code, stderr } = await home.dfget([...lost, `${nginx.url}/file.bin`, '-O', 'n', '--tag', 'none', '--notbs', '--timeout', '2s', '--no-progress'])
    expect([code, stderr, existsSync(join(home.work, 'n'))]).toEqual([5, 'dfget: not here after 2 s (--timeout)\n', false])
  })
})
