// `skimmer preheat URL` as a script uses it: words, progress, exit codes.
import { randomBytes } from 'node:crypto'
import { utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterEach, describe, expect, test } from '@jest/globals'
import { EXIT_CODES } from '../../command-line/exit-codes.ts'
import { skimmer } from '../node/run-cli.ts'
import { haveNginx, startNginx } from '../source/nginx-fixture.ts'
import { Cleanup, startSupernode, temporaryDirectory } from './lab.ts'
import { sha256 } from './stream-caller.ts'

const withNginx = haveNginx ? describe : describe.skip
const cleanup = new Cleanup()
afterEach(() => cleanup.run())

const preheat = (...words: string[]) => skimmer(['preheat', ...words])

withNginx('skimmer preheat URL (needs nginx)', () => {
  test('brings and holds a file, shows how far it is, and says by its exit code what went wrong', async () => {
    const server = await startNginx({ http: 'map $http_x_token $ok { default 0; "s3cret" 1; }', server: 'location /private/ { if ($ok = 0) { return 401; } rewrite ^/private/(.*)$ /$1 break; }' })
    cleanup.add(() => server.stop())
    const bytes = randomBytes(2 * 1024 * 1024)
    await writeFile(join(server.root, 'a.bin'), bytes)
    await utimes(join(server.root, 'a.bin'), 1_600_000_000, 1_600_000_000)
    const headers = join(await temporaryDirectory(cleanup), 'headers')
    await writeFile(headers, '# of the team\nX-Token: s3cret\n')
    const supernode = await startSupernode(cleanup, { files: { loopback: true } })
    const at = ['--supernode', supernode.httpUrl]

    const good = await preheat(...at, `${server.url}/a.bin?sig=word`, '--digest', `sha256:${sha256(bytes)}`, '--tag', 'nightly', '--piece-length', '256KiB')
    expect(good).toMatchObject({ code: 0, stdout: `${server.url}/a.bin is here and held\n` })
    expect(good.stderr).not.toContain('word')
    expect(await preheat(...at, `${server.url}/private/a.bin`, '--header-file', headers)).toMatchObject({ code: 0 })
    expect(supernode.parts.preheat.list().map(({ file, state }) => [file?.tag, state])).toEqual([[undefined, 'SUCCESS'], ['nightly', 'SUCCESS']])
    expect(supernode.parts.store.list().every(resource => resource.pinned && resource.whole)).toBe(true)

    expect(await preheat(...at, `${server.url}/none`)).toMatchObject({ code: EXIT_CODES.notFound, stderr: expect.stringContaining('404') })
    expect(await preheat(...at, `${server.url}/private/a.bin`)).toMatchObject({ code: EXIT_CODES.unauthorized })
    expect(await preheat(...at, `${server.url}/a.bin`, '--digest', `sha256:${sha256(Buffer.from('other'))}`)).toMatchObject({ code: EXIT_CODES.badData })
    expect(await preheat(...at, `${server.url}/a.bin`, '--digest', 'nonsense')).toMatchObject({ code: EXIT_CODES.usage })
    expect(await preheat(...at, 'debian:12', '--tag', 'x')).toMatchObject({ code: EXIT_CODES.usage, stderr: expect.stringContaining('--tag is for files') })
    expect(await preheat(...at, `${server.url}/a.bin`, '--platform', 'linux/amd64')).toMatchObject({ code: EXIT_CODES.usage })
    const detached = await preheat(...at, `${server.url}/a.bin`, '--detach')
    expect(supernode.parts.preheat.get(detached.stdout.trim())).toMatchObject({ type: 'file' })
  })
})
