// Without a node and without supernodes: dfget reads the source itself, from a real nginx.
import { afterAll, beforeAll, describe, expect, jest, test } from '@jest/globals'
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, symlinkSync, truncateSync, utimesSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { haveNginx, startNginx, type RunningNginx } from '../source/nginx-fixture.ts'
import { Home, sampleBytes, until } from './run-dfget.ts'

jest.setTimeout(120_000)

const MIB = 1024 * 1024
const content = sampleBytes(12 * MIB + 17)
const sha256 = createHash('sha256').update(content).digest('hex')
const nginxDescribe = haveNginx ? describe : describe.skip

nginxDescribe('straight from the source', () => {
  let nginx: RunningNginx
  const home = new Home()
  const at = (name: string): string => join(home.work, name)
  /** What lies in the directory, hidden names too. */
  const names = (directory = home.work): string[] => (existsSync(directory) ? readdirSync(directory).sort() : [])
  let place = 0
  /** A directory of its own for a test. */
  const fresh = (): string => {
    const directory = at(`t${place++}`)
    mkdirSync(directory)
    return directory
  }

  beforeAll(async () => {
    nginx = await startNginx({
      server: [
        'location /secret/ { alias ROOT/; if ($http_authorization != "Bearer right") { return 401; } }',
        'location /plain/ { alias ROOT/; etag off; add_header Last-Modified ""; max_ranges 0; limit_rate 4m; }',
        'location /moved/ { return 302 /file.bin; }',
      ].join('\n').replaceAll('ROOT', join(home.path, 'root')),
      root: join(home.path, 'root'),
    })
    writeFileSync(join(nginx.root, 'file.bin'), content)
    writeFileSync(join(nginx.root, 'empty'), '')
    writeFileSync(join(nginx.root, 'one'), 'x')
  })
  afterAll(async () => {
    await nginx?.stop()
    if (mounted) spawnSync('umount', [small], { stdio: 'ignore' })
    home.remove()
  })

  test('FILE is there, whole, with the permissions of the umask, and nothing beside it', async () => {
    const cwd = fresh()
    const { code, stdout, stderr } = await home.dfget([`${nginx.url}/file.bin`], { cwd })
    expect([code, stdout.toString(), stderr]).toEqual([0, '', expect.stringMatching(/^file\.bin: 12\.0 MiB in [^,]+, .*\/s; source 100 % \(straight from the source\)\n$/)])
    expect(names(cwd)).toEqual(['file.bin'])
    expect(readFileSync(join(cwd, 'file.bin')).equals(content)).toBe(true)
    expect(statSync(join(cwd, 'file.bin')).mode & 0o777).toBe(0o666 & ~process.umask())
  })

  test('in parallel ranges, each byte once', async () => {
    const before = (await nginx.requests()).length
    const cwd = fresh()
    expect(await home.dfget([`${nginx.url}/file.bin?parallel`, '-o', 'f', '-q', '--mode', '0600', '--digest', `sha256:${sha256}`], { cwd })).toMatchObject({ code: 0, stderr: '' })
    const asked = (await nginx.requests()).slice(before)
    expect(asked.length).toBeGreaterThan(1)
    expect(asked.every(({ range, status }) => range.startsWith('bytes=') && status === 206)).toBe(true)
    expect(asked.reduce((sum, { bytes }) => sum + bytes, 0)).toBe(content.length)
    expect(statSync(join(cwd, 'f')).mode & 0o777).toBe(0o600)
  })

  test('small, empty, redirected, a range, from this machine', async () => {
    const cwd = fresh()
    for (const [words, expected] of [
      [[`${nginx.url}/one`, '-O', 'a'], 'x'],
      [[`${nginx.url}/empty`, '-O', 'a'], ''],
      [[`${nginx.url}/moved/`, '-O', 'a', '--range', '5-20'], content.subarray(5, 21)],
      [[`file://${join(nginx.root, 'file.bin')}`, '-O', 'a', '--range', '0-99'], content.subarray(0, 100)],
    ] as const) {
      expect(await home.dfget(words, { cwd })).toMatchObject({ code: 0 })
      expect(readFileSync(join(cwd, 'a')).equals(Buffer.from(expected))).toBe(true)
    }
  })

  test('-O -: standard output', async () => {
    const { code, stdout, stderr } = await home.dfget([`${nginx.url}/file.bin`, '-O', '-'])
    expect([code, stdout.equals(content), stderr]).toEqual([0, true, expect.stringContaining('file.bin: 12.0 MiB')])
  })

  test('whoever reads standard output may stop: no message', async () => {
    const { code, stderr } = await home.dfget([`${nginx.url}/file.bin`, '-O', '-', '--no-progress'], { started: (child) => child.stdout!.once('data', () => child.stdout!.destroy()) })
    expect([code, stderr]).toEqual([141, ''])
  })

  test('--json: the result is one object', async () => {
    const cwd = fresh()
    const { code, stdout } = await home.dfget([`${nginx.url}/one?token=secret`, '-O', 'a', '--json', '-m', '9dd4e461268c8034f5c8564e155c67a6'], { cwd })
    expect(code).toBe(0)
    expect(JSON.parse(stdout.toString())).toEqual({
      url: `${nginx.url}/one`, output: 'a', bytes: 1, seconds: expect.any(Number), bytesPerSecond: expect.any(Number), route: 'straight',
      received: { local: 0, peer: 0, supernode: 0, source: 1 }, digest: 'md5:9dd4e461268c8034f5c8564e155c67a6', contentType: 'application/octet-stream',
    })
    const failed = await home.dfget([`${nginx.url}/none`, '-O', 'b', '--json'], { cwd })
    expect([failed.code, JSON.parse(failed.stdout.toString())]).toEqual([3, { url: `${nginx.url}/none`, error: { code: 'NOT_FOUND', message: expect.stringContaining('404') }, exitCode: 3 }])
    expect(names(cwd)).toEqual(['a'])
  })

  test('another digest: no FILE, and nothing kept; what was there stays', async () => {
    const cwd = fresh()
    for (const algorithm of ['md5:'.padEnd(36, '0'), 'sha512:'.padEnd(135, '0'), 'crc32:00000000', `sha256:${'0'.repeat(64)}`]) {
      const { code, stderr } = await home.dfget([`${nginx.url}/file.bin`, '-O', 'f', '--digest', algorithm], { cwd })
      expect([code, stderr, names(cwd)]).toEqual([6, expect.stringContaining(algorithm), []])
    }
    writeFileSync(join(cwd, 'f'), 'before')
    expect(await home.dfget([`${nginx.url}/file.bin`, '-O', 'f', '--digest', 'crc32:1'.padEnd(14, '1')], { cwd })).toMatchObject({ code: 6 })
    expect(readFileSync(join(cwd, 'f'), 'utf8')).toBe('before')
    // On standard output what is wrong is at least not whole.
    const { code, stdout } = await home.dfget([`${nginx.url}/one`, '-O', '-', '--digest', 'crc32:11111111'])
    expect([code, stdout.length]).toEqual([6, 0])
  })

  test('FILE that is there is replaced, or refused; links stay links; devices stay devices; directories get the name of the URL', async () => {
    const cwd = fresh()
    writeFileSync(join(cwd, 'there'), 'before')
    symlinkSync('there', join(cwd, 'link'))
    mkdirSync(join(cwd, 'directory'))
    const refused = await home.dfget([`${nginx.url}/one`, '-O', 'there', '--no-overwrite'], { cwd })
    expect([refused.code, refused.stderr, readFileSync(join(cwd, 'there'), 'utf8')]).toEqual([1, 'dfget: there is there already; without --no-overwrite it is replaced\n', 'before'])
    expect(await home.dfget([`${nginx.url}/one`, '-O', 'link'], { cwd })).toMatchObject({ code: 0 })
    expect(readFileSync(join(cwd, 'there'), 'utf8')).toBe('x')
    expect(await home.dfget([`${nginx.url}/one`, '-O', '/dev/null'], { cwd })).toMatchObject({ code: 0 })
    expect(statSync('/dev/null').isCharacterDevice()).toBe(true)
    expect(await home.dfget([`${nginx.url}/one`, '-O', 'directory'], { cwd })).toMatchObject({ code: 0 })
    expect(names(cwd)).toEqual(['directory', 'link', 'there'])
    expect(names(join(cwd, 'directory'))).toEqual(['one'])
    expect(await home.dfget([`${nginx.url}/`], { cwd })).toMatchObject({ code: 2, stderr: expect.stringContaining('name one by -O FILE') })
    expect(await home.dfget([`${nginx.url}/one`, '-O', 'no/such/place'], { cwd })).toMatchObject({ code: 2, stderr: expect.stringContaining('is no directory') })
  })

  test('names as long as names can be', async () => {
    const cwd = fresh()
    const name = 'é'.repeat(127)
    expect(await home.dfget([`${nginx.url}/file.bin`, '-O', name], { cwd })).toMatchObject({ code: 0 })
    expect(names(cwd)).toEqual([name])
  })

  test('no room: said before anything is downloaded', async () => {
    // A file on the source that is larger than any disk here, without being so there.
    const cwd = fresh()
    writeFileSync(join(nginx.root, 'huge'), '')
    truncateSync(join(nginx.root, 'huge'), 15 * 1024 ** 4)
    const { code, stderr } = await home.dfget([`${nginx.url}/huge`], { cwd })
    expect([code, stderr, names(cwd)]).toEqual([7, expect.stringMatching(/^dfget: no space for .*huge: it has 15\.0 TiB, and .* has room for/), []])
  })

  const small = join(home.path, 'small')
  mkdirSync(small)
  const mounted = process.getuid?.() === 0 && spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', small], { stdio: 'ignore' }).status === 0
  const onSmallDisk = mounted ? test : test.skip
  onSmallDisk('the disk fills up: an error, and what was written is gone', async () => {
    // No length is told: nobody can know before.
    const server = createServer((_, response) => {
      response.writeHead(200, { 'transfer-encoding': 'chunked' })
      response.end(content)
    }).listen(0, '127.0.0.1')
    await new Promise((resolve) => server.once('listening', resolve))
    try {
      const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/f`
      const { code, stderr } = await home.dfget([url], { cwd: small })
      expect([code, stderr, names(small)]).toEqual([7, expect.stringContaining('no space for f (ENOSPC)'), []])
    } finally {
      server.close()
      spawnSync('umount', [small])
    }
  })

  test('headers from a file or the environment are in no process list; those among the words are soon gone from it', async () => {
    const cwd = fresh()
    const url = `${nginx.url}/secret/file.bin`
    expect(await home.dfget([url, '-q'], { cwd })).toMatchObject({ code: 4 })
    writeFileSync(join(cwd, 'headers'), 'Authorization: Bearer right\n')
    const seen: string[] = []
    const watched = { cwd, started: (child: { pid?: number }) => {
      const timer = setInterval(() => {
        if (!existsSync(`/proc/${child.pid}/cmdline`)) return clearInterval(timer)
        seen.push(readFileSync(`/proc/${child.pid}/cmdline`, 'utf8'))
      }, 1)
    } }
    const named = ['--header-file', 'headers', '-O', 'a']
    expect(await home.dfget([url, ...named], watched)).toMatchObject({ code: 0 })
    expect(await home.dfget([url, '-O', 'a'], { ...watched, env: { DFGET_HEADERS: 'Authorization: Bearer right' } })).toMatchObject({ code: 0 })
    expect(await home.dfget([url, '-O', 'a', '--header-file', '-'], { ...watched, stdin: 'authorization: Bearer right' })).toMatchObject({ code: 0 })
    expect(seen.length).toBeGreaterThan(0)
    expect(seen.filter((words) => words.includes('Bearer'))).toEqual([])
    seen.length = 0
    expect(await home.dfget([`${url}?signature=secret`, '-O', 'a', '-H', 'Authorization: Bearer right', '--limit', '20M'], watched)).toMatchObject({ code: 0 })
    expect(seen.filter(Boolean).at(-1)).toMatch(/^dfget http:\/\/127\.0\.0\.1:\d+\/secret\/file\.bin\0*$/)
  })

  test('on a pipe: a line now and then', async () => {
    const cwd = fresh()
    const { code, stderr } = await home.dfget([`${nginx.url}/file.bin`, '--limit', '4M'], { cwd })
    expect(code).toBe(0)
    expect(stderr).toMatch(/^file\.bin: [\d.]+ MiB of 12\.0 MiB \(\d+ %\), [\d.]+ MiB\/s, \d+ s left; source 100 %\n/)
    expect(await home.dfget([`${nginx.url}/one`, '--quiet'], { cwd })).toMatchObject({ code: 0, stderr: '' })
  })

  test('--timeout: not here in time is an error', async () => {
    const cwd = fresh()
    expect(await home.dfget([`${nginx.url}/file.bin`, '--limit', '1M', '--timeout', '1s'], { cwd })).toMatchObject({ code: 5, stderr: expect.stringContaining('(--timeout)') })
  })

  test('--disable-back-to-source: there is no way', async () => {
    expect(await home.dfget([`${nginx.url}/one`, '--notbs'])).toMatchObject({ code: 5, stderr: expect.stringContaining('the source may not be read') })
  })

  describe('interrupted', () => {
    const partsOf = (cwd: string): string[] => names(cwd).filter((name) => /^\.f\.[0-9a-f]{16}\.(?:part|json|lock)$/.test(name))
    /** True when so much of it is written down as here. */
    const kept = (cwd: string): boolean => {
      const state = names(cwd).find((name) => name.endsWith('.json'))
      if (state === undefined) return false
      const { done } = JSON.parse(readFileSync(join(cwd, state), 'utf8')) as { done: string }
      return Buffer.from(done, 'base64').some((bits) => bits !== 0)
    }

    test.each([['SIGKILL', null], ['SIGINT', 130], ['SIGTERM', 130]] as const)('%s: the next one goes on where it was', async (signal, exit) => {
      const cwd = fresh()
      const words = [`${nginx.url}/file.bin`, '-O', 'f', '--verbose']
      const first = await home.dfget([...words, '--limit', '4M'], { cwd, started: (child) => void until(() => (signal === 'SIGKILL' ? kept(cwd) : (readDone(cwd) > 4 * MIB))).then(() => child.kill(signal)) })
      expect(first).toMatchObject(exit === null ? { code: null, signal } : { code: exit, signal: null })
      expect(names(cwd)).not.toContain('f')
      expect(partsOf(cwd).length).toBeGreaterThanOrEqual(2)
      const before = (await nginx.requests()).length
      const second = await home.dfget([...words, '--json'], { cwd })
      expect(second).toMatchObject({ code: 0, stderr: expect.stringContaining('of an earlier attempt') })
      const { resumedBytes, received } = JSON.parse(second.stdout.toString()) as { resumedBytes: number; received: { source: number; local: number } }
      expect(resumedBytes).toBeGreaterThan(0)
      expect(received).toMatchObject({ source: content.length - resumedBytes, local: resumedBytes })
      expect((await nginx.requests()).slice(before).reduce((sum, { bytes }) => sum + bytes, 0)).toBe(content.length - resumedBytes)
      expect(names(cwd)).toEqual(['f'])
      expect(readFileSync(join(cwd, 'f')).equals(content)).toBe(true)
    })

    /** Bytes of the part file that are written, about. */
    function readDone(cwd: string): number {
      const part = names(cwd).find((name) => name.endsWith('.part'))
      return part === undefined ? 0 : statSync(join(cwd, part)).blocks * 512
    }

    test('changed at the source meanwhile: begun again, never a mixture', async () => {
      const cwd = fresh()
      const file = join(nginx.root, 'changes.bin')
      writeFileSync(file, content)
      const words = [`${nginx.url}/changes.bin`, '-O', 'f']
      await home.dfget([...words, '--limit', '4M'], { cwd, started: (child) => void until(() => kept(cwd)).then(() => child.kill('SIGKILL')) })
      const other = sampleBytes(content.length, 2)
      writeFileSync(file, other)
      utimesSync(file, 1, 1)
      const second = await home.dfget([...words, '-v'], { cwd })
      expect(second).toMatchObject({ code: 0, stderr: expect.stringContaining('begun again') })
      expect(readFileSync(join(cwd, 'f')).equals(other)).toBe(true)
      expect(names(cwd)).toEqual(['f'])
    })

    test('two at once for one FILE: both end well, one after the other', async () => {
      const cwd = fresh()
      const words = [`${nginx.url}/file.bin`, '-O', 'f', '-q', '--limit', '8M']
      const [one, two] = await Promise.all([home.dfget(words, { cwd }), home.dfget(words, { cwd })])
      expect([one.code, two.code, names(cwd)]).toEqual([0, 0, ['f']])
      expect(readFileSync(join(cwd, 'f')).equals(content)).toBe(true)
    })

    test('without validators nothing is kept: it is read anew', async () => {
      const cwd = fresh()
      const words = [`${nginx.url}/plain/file.bin`, '-O', 'f', '-q']
      const first = await home.dfget(words, { cwd, started: (child) => void until(() => readDone(cwd) > MIB).then(() => child.kill('SIGINT')) })
      expect([first.code, names(cwd)]).toEqual([130, []])
      expect(await home.dfget(words, { cwd })).toMatchObject({ code: 0 })
      expect(readFileSync(join(cwd, 'f')).equals(content)).toBe(true)
    })
  })
})
