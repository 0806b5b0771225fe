// What lies below a URL, as real servers tell it, and what hostile pages cannot make of it.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import * as fc from 'fast-check'
import { spawn, spawnSync } from 'node:child_process'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { parseIndexPage } from '../../source/index-page.ts'
import { listIndex } from '../../source/list-index.ts'
import { haveNginx, startNginx } from './nginx-fixture.ts'
import type { RunningNginx } from './nginx-fixture.ts'
import { afterTest, host, read, sources } from './reading.ts'

const names = ['a b', 'plain.txt', "quote's", 'angle<&>', 'hash#mark?x=1', 'percent%2fslash', '100%', 'ünïcode', 'semi;colon', 'plus+plus', 'al..most', 'amp&amp;']
const havePython = spawnSync('python3', ['--version'], { stdio: 'ignore' }).status === 0

describe('directories of real servers', () => {
  let directory: string
  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'skimmer-index-'))
    await mkdir(join(directory, 'top', 'sub dir', 'deep'), { recursive: true })
    for (const name of names) await writeFile(join(directory, 'top', name), name)
    await writeFile(join(directory, 'top', 'sub dir', 'x'), 'x')
  })
  afterAll(() => rm(directory, { recursive: true, force: true }))

  const everything = [...names, 'sub dir/'].toSorted()
  async function check(base: string, options: { files?: boolean } = {}): Promise<void> {
    const made = sources({}, options)
    const entries = await listIndex(made, `${base}/top/`)
    expect(entries.map(({ name }) => name).toSorted()).toEqual(everything)
    for (const entry of entries) {
      expect(entry.url.endsWith('/')).toBe(entry.directory)
      if (!entry.directory) expect((await read(made.open(entry.url))).bytes.toString()).toBe(entry.name)
    }
    const sub = entries.find((entry) => entry.directory)!
    expect((await listIndex(made, sub.url)).map(({ name, directory: folder }) => [name, folder])).toEqual(expect.arrayContaining([['x', false], ['deep/', true]]))
  }

  const describeNginx = haveNginx ? describe : describe.skip
  describeNginx('nginx', () => {
    let nginx: RunningNginx
    beforeAll(async () => {
      nginx = await startNginx({ root: directory, location: 'autoindex on;', server: `location /json/ { alias ${directory}/; autoindex on; autoindex_format json; }` })
    })
    afterAll(() => nginx?.stop())
    test('as a page', () => check(nginx.url))
    test('as JSON, with sizes', async () => {
      await check(`${nginx.url}/json`)
      expect((await listIndex(sources(), `${nginx.url}/json/top`)).find(({ name }) => name === 'a b')).toMatchObject({ size: 3 })
    })
    test('a file is no index, nor is what is not there', async () => {
      await expect(listIndex(sources(), `${nginx.url}/nothing/`)).rejects.toMatchObject({ code: 'NOT_FOUND' })
      await expect(listIndex(sources(), `${nginx.url}/top/`, {}, { maxEntries: 3 })).rejects.toMatchObject({ code: 'LIMIT_EXCEEDED' })
    })
  })

  const testPython = havePython ? test : test.skip
  testPython("python's http.server", async () => {
    const child = spawn('python3', ['-u', '-m', 'http.server', '0', '--bind', '127.0.0.1', '--directory', directory], { stdio: ['ignore', 'pipe', 'ignore'] })
    const gone = new Promise((resolve) => child.once('exit', resolve))
    afterTest(async () => {
      child.kill('SIGKILL')
      await gone
    })
    const [line] = await new Promise<string[]>((resolve) => createInterface(child.stdout).once('line', (text) => resolve([text])))
    await check(`http://127.0.0.1:${/port (\d+)/.exec(line)![1]}`)
  })

  test('this machine', () => check(`file://${directory}`, { files: true }))
})

describe('pages as they are written', () => {
  const base = new URL('http://host.example/pub/')
  const namesOf = (html: string, limit = 100): string[] => parseIndexPage(html, 'text/html; charset=utf-8', base, limit).map(({ name }) => name)

  test("Apache's: sort links and the parent are no files, icons link the same file twice", () => {
    expect(namesOf(`<table><tr><th><a href="?C=N;O=D">Name</a></th><th><a href="?C=M;O=A">Last modified</a></th></tr>
      <tr><td><a href="/"><img src="/icons/back.gif"></a></td><td><a href="/">Parent Directory</a></td></tr>
      <tr><td><a href="data-1.0.tar.gz"><img src="x"></a></td><td><a href="data-1.0.tar.gz">data-1.0.tar.gz</a></td></tr>
      <tr><td><a href="old/">old/</a></td></tr></table>`)).toEqual(['data-1.0.tar.gz', 'old/'])
  })

  test('absolute, relative, quoted, unquoted, with entities and in any case', () => {
    expect(namesOf(`<A HREF='/pub/a'>x</A><a class=b href=b>x</a><a\nhref="http://host.example/pub/c&amp;d">x</a><a href="&#x65;&#102;">x</a><a data-href="no" title="href=&quot;">x</a><a href="./g#top">`)).toEqual(['a', 'b', 'c&d', 'ef', 'g'])
    expect(namesOf('<base href="/pub/deeper/"><a href="x">x</a><a href="../y">y</a><a href="../../z">z</a>')).toEqual(['deeper/x', 'y'])
  })

  test('what is commented out, scripted or elsewhere is no link', () => {
    expect(namesOf(`<!-- <a href="no1"> --><script>'<a href="no2">'</script><style><a href="no3"></style>
      <a href="//evil.example/pub/x"><a href="https://host.example/pub/x"><a href="http://host.example:81/pub/x"><a href="../x"><a href="/pub"><a href="/pub/../etc/passwd"><a href="%2e%2e/x">
      <a href="javascript:alert(1)"><a href="file:///pub/x"><a href="x//y"><a href=""><a href="."><a href="http://user@host.example/pub/x"><a href="x?y">`)).toEqual([])
  })

  test('no page leads out of the directory, whatever it says', () => {
    const piece = fc.oneof(fc.constantFrom('..', '.', '/', '//', '%2e', '%2F', '%5c', '\\', '\0', '%00', '%0a', '&#46;&#46;', '&#47;', 'a', 'b c', '?', '#', ':', 'http:', '%', '%zz', '<', '>', '"'), fc.string({ maxLength: 4 }))
    fc.assert(fc.property(fc.array(fc.array(piece, { maxLength: 6 }).map((pieces) => pieces.join('')), { maxLength: 6 }), (links) => {
      const html = links.map((link) => `<a href="${link}">x</a>`).join('\n')
      for (const { name, url, directory } of parseIndexPage(html, 'text/html', base, 1000)) {
        expect(new URL(url).href.startsWith(base.href)).toBe(true)
        expect(name.startsWith('/') || /\p{Cc}/u.test(name)).toBe(false)
        expect(name.replace(/\/$/, '').split('/').some((part) => part === '' || part === '.' || part === '..')).toBe(false)
        expect(name.endsWith('/')).toBe(directory)
        expect(join('/root/of/download', name).startsWith('/root/of/download/')).toBe(true)
      }
    }), { numRuns: 500 })
    fc.assert(fc.property(fc.array(fc.record({ name: fc.oneof(fc.constantFrom('..', '.', '../x', 'a/b', '/etc', 'a\0b', 'ok'), fc.string({ minLength: 1 })), type: fc.constantFrom('file', 'directory', 'other') })), (list) => {
      for (const { name, url } of parseIndexPage(JSON.stringify(list), 'application/json', base, 1000)) {
        expect(url.startsWith(base.href)).toBe(true)
        expect(join('/root/of/download', name).startsWith('/root/of/download/')).toBe(true)
      }
    }))
  })

  test('endless tags take no endless time', () => {
    for (const text of ['<a '.repeat(100_000), '<a href="'.repeat(100_000), `<a ${'x '.repeat(500_000)}`, '<!--'.repeat(100_000), '<script'.repeat(50_000), `<a ${' '.repeat(8000)}href`.repeat(100)]) {
      expect(parseIndexPage(text, 'text/html', base, 10)).toEqual([])
    }
  })

  test('what is too large, encoded, or no index at all is refused by name', async () => {
    const make = (headers: Record<string, string>, body: string) => host((_request, response) => response.writeHead(200, headers).end(body))
    const cases = [
      [{ 'content-type': 'text/plain' }, 'x', 'INVALID_DATA'], [{ 'content-type': 'application/json' }, '{', 'INVALID_DATA'], [{ 'content-type': 'application/json' }, '{"a":1}', 'INVALID_DATA'],
      [{ 'content-type': 'text/html', 'content-encoding': 'gzip' }, 'x', 'UNSUPPORTED'], [{ 'content-type': 'text/html' }, 'x'.repeat(33 * 1024 * 1024), 'LIMIT_EXCEEDED'],
    ] as const
    for (const [headers, body, code] of cases) {
      const server = await make(headers, body)
      await expect(listIndex(sources(), `${server.url}/?token=hush`)).rejects.toMatchObject({ code, message: expect.not.stringContaining('hush') })
    }
  })
})
