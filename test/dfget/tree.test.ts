// --recursive: what index pages list, as a directory of the same shape; from a real nginx, and from a server that lies.
import { afterAll, beforeAll, describe, expect, jest, test } from '@jest/globals'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { haveNginx, startNginx, type RunningNginx } from '../source/nginx-fixture.ts'
import { Home } from './run-dfget.ts'

jest.setTimeout(60_000)

const home = new Home()
afterAll(() => home.remove())
/** Files below a directory, their content as words. */
const filesOf = (directory: string): Record<string, string> =>
  Object.fromEntries((readdirSync(join(home.work, directory), { recursive: true, withFileTypes: true })).filter((entry) => entry.isFile()).map((entry) => {
    const path = join(entry.parentPath, entry.name)
    return [path.slice(join(home.work, directory).length + 1), readFileSync(path, 'utf8')]
  }))

const nginxDescribe = haveNginx ? describe : describe.skip
nginxDescribe('a directory that nginx lists', () => {
  let nginx: RunningNginx
  beforeAll(async () => {
    nginx = await startNginx({ location: 'autoindex on;', server: 'location /tree/locked.deb { return 403; }' })
    for (const [name, content] of Object.entries({ 'one.deb': '1', 'two.txt': '2', 'with space & ü.deb': '3', 'pool/four.deb': '4', 'pool/deep/five.deb': '5' })) {
      mkdirSync(join(nginx.root, 'tree', name, '..'), { recursive: true })
      writeFileSync(join(nginx.root, 'tree', name), content)
    }
  })
  afterAll(() => nginx?.stop())

  test('all of it', async () => {
    const { code, stderr } = await home.dfget(['-r', `${nginx.url}/tree/`, '-O', 'all'])
    expect([code, stderr]).toEqual([0, expect.stringMatching(/^all: 5 of 5 files, 5 B in /)])
    expect(filesOf('all')).toEqual({ 'one.deb': '1', 'two.txt': '2', 'with space & ü.deb': '3', 'pool/four.deb': '4', 'pool/deep/five.deb': '5' })
  })

  test('some of it: --accept-regex, --reject-regex, --level', async () => {
    await home.dfget(['-r', `${nginx.url}/tree/`, '-O', 'some', '--accept-regex', '\\.deb$', '--reject-regex', 'deep/$', '--reject-regex', '%20'])
    expect(Object.keys(filesOf('some')).sort()).toEqual(['one.deb', 'pool/four.deb'])
    await home.dfget(['-r', `${nginx.url}/tree/`, '-O', 'level', '--level', '2'])
    expect(Object.keys(filesOf('level'))).not.toContain('pool/deep/five.deb')
  })

  test('--list says what would be downloaded, and downloads nothing', async () => {
    const { code, stdout } = await home.dfget(['-r', '--list', `${nginx.url}/tree/pool/`, '-O', 'listed'])
    expect([code, stdout.toString()]).toEqual([0, `${nginx.url}/tree/pool/four.deb\n${nginx.url}/tree/pool/deep/five.deb\n`])
    expect(existsSync(join(home.work, 'listed'))).toBe(false)
    const json = await home.dfget(['-r', '--list', '--json', `${nginx.url}/tree/pool/deep/`])
    expect(JSON.parse(json.stdout.toString())).toEqual({ url: `${nginx.url}/tree/pool/deep/`, files: [{ url: `${nginx.url}/tree/pool/deep/five.deb`, name: 'five.deb' }] })
  })

  test('--max-files: nothing is downloaded when there are more', async () => {
    const { code, stderr } = await home.dfget(['-r', `${nginx.url}/tree/`, '-O', 'few', '--max-files', '4'])
    expect([code, stderr, existsSync(join(home.work, 'few'))]).toEqual([6, expect.stringContaining('more than 4 files: nothing was downloaded'), false])
  })

  test('one that fails is named, the others are there, and the exit code says so', async () => {
    writeFileSync(join(nginx.root, 'tree', 'locked.deb'), 'x')
    const { code, stdout, stderr } = await home.dfget(['-r', `${nginx.url}/tree/`, '-O', 'failing', '--json'])
    expect([code, stderr]).toEqual([4, expect.stringMatching(/dfget: locked\.deb: .*403[\s\S]*5 of 6 files, .*1 failed/)])
    const result = JSON.parse(stdout.toString()) as { failed: number; bytes: number; files: { url: string; error?: { code: string } }[] }
    expect(result).toMatchObject({ output: 'failing', failed: 1, bytes: 5 })
    expect(result.files.find(({ url }) => url.endsWith('locked.deb'))?.error?.code).toBe('FORBIDDEN')
    expect(Object.keys(filesOf('failing')).length).toBe(5)
  })

  test('no index page: an error', async () => {
    expect(await home.dfget(['-r', `${nginx.url}/none/`])).toMatchObject({ code: 3, stderr: expect.stringContaining('no index') })
  })

  test('a directory of this machine', async () => {
    expect(await home.dfget(['-r', `file://${join(nginx.root, 'tree', 'pool')}/`, '-O', 'local'])).toMatchObject({ code: 0 })
    expect(filesOf('local')).toEqual({ 'four.deb': '4', 'deep/five.deb': '5' })
  })
})

describe('an index page that lies', () => {
  let server: Server
  let url: string
  beforeAll(async () => {
    server = createServer((request, response) => {
      response.setHeader('content-type', 'text/html')
      if (!request.url!.endsWith('/')) return void response.setHeader('content-type', 'text/plain').end('content')
      // Each directory has itself in it, ways up, other hosts, and names that are none.
      response.end(['again/', '../../up', '/etc/passwd', 'http://other.example/x', '..%2f..%2fup', '%2e%2e/up', 'a%00b', 'a%0ab', 'n'.repeat(300), 'good', './', '.', '?C=N;O=D', 'javascript:x'].map((link) => `<a href="${link}">x</a>`).join('\n'))
    }).listen(0, '127.0.0.1')
    await new Promise((resolve) => server.once('listening', resolve))
    url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/d/`
  })
  afterAll(() => void server.close())

  test('nothing gets out of the directory, and it ends', async () => {
    const { code } = await home.dfget(['-r', url, '-O', 'lies', '--level', '3', '--reject-regex', 'nnn'])
    expect(code).toBe(0)
    const names = Object.keys(filesOf('lies'))
    expect(names).toContain('again/again/good')
    for (const name of names) expect(name.split('/').every((part) => /^(?:again|good|[^/]*%[^/]*)$/.test(part))).toBe(true)
    expect(readdirSync(home.work).sort().filter((name) => /up|passwd/.test(name))).toEqual([])
  })

  test('a name that is too long is refused', async () => {
    expect(await home.dfget(['-r', url, '-O', 'long', '--level', '1'])).toMatchObject({ code: 6, stderr: expect.stringContaining('is no name that a file may get') })
  })

  test('directories without end are ended by --max-files', async () => {
    expect(await home.dfget(['-r', url, '-O', 'endless', '--level', '0', '--reject-regex', 'nnn'])).toMatchObject({ code: 6, stderr: expect.stringContaining('more than 100 files') })
  })
})
