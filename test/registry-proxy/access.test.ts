// Who can read what through the registry proxy: what the registry itself lets them read, with their own credentials, and nobody else.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { staticCredentials } from '../../oci/credentials.ts'
import { MEDIA_TYPES } from '../../oci/media-types.ts'
import { parseReference } from '../../oci/reference.ts'
import { RegistryClient } from '../../oci/registry-client.ts'
import { startHost } from '../oci/http-fixture.ts'
import { pushImage } from '../oci/image-fixture.ts'
import type { MadeImage } from '../oci/image-fixture.ts'
import { haveRegistry, startRegistry } from '../oci/registry-fixture.ts'
import type { RunningRegistry } from '../oci/registry-fixture.ts'
import { startProxy } from './proxy-fixture.ts'
import type { ProxyFixture } from './proxy-fixture.ts'
import { startTokenServer } from './token-server.ts'
import type { TokenServer } from './token-server.ts'

const maybe = haveRegistry ? describe : describe.skip
const USER = { username: 'anna', password: 'a long secret' }
const BASIC = `Basic ${Buffer.from(`${USER.username}:${USER.password}`).toString('base64')}`
const headersFor = (authorization?: string): Record<string, string> => ({ accept: MEDIA_TYPES.ociManifest, ...(authorization !== undefined && { authorization }) })

/** Status of a manifest by tag, a manifest by digest and a blob. */
async function statuses(proxy: ProxyFixture, registry: { host: string }, repository: string, image: MadeImage, authorization?: string): Promise<number[]> {
  const answers: number[] = []
  for (const path of ['manifests/1', `manifests/${image.manifestDigest}`, `blobs/${image.layers[0].digest}`]) {
    const answer = await fetch(`${proxy.url}/v2/${repository}/${path}?ns=${registry.host}`, { headers: headersFor(authorization) })
    answers.push(answer.status)
    await answer.arrayBuffer()
  }
  return answers
}

maybe('a registry with basic auth', () => {
  let registry: RunningRegistry
  let proxy: ProxyFixture
  let image: MadeImage
  let other: MadeImage

  beforeAll(async () => {
    registry = await startRegistry({ auth: USER })
    proxy = await startProxy()
    const client = new RegistryClient({ credentials: staticCredentials({ [registry.host]: USER }) })
    image = await pushImage(client, parseReference(`${registry.host}/private/app:1`), [randomBytes(200_000)])
    other = await pushImage(client, parseReference(`${registry.host}/other/app:1`), [randomBytes(200_000)])
    await client.close()
  })
  afterAll(async () => {
    await proxy?.stop()
    await registry?.stop()
  })

  test('the login goes to the registry, and what is cached is not given to others', async () => {
    expect(await statuses(proxy, registry, 'private/app', image, BASIC)).toEqual([200, 200, 200])
    expect(await statuses(proxy, registry, 'private/app', image)).toEqual([401, 401, 401])
    expect(await statuses(proxy, registry, 'private/app', image, `Basic ${Buffer.from('anna:wrong').toString('base64')}`)).toEqual([401, 401, 401])
    expect(await statuses(proxy, registry, 'private/app', image, BASIC)).toEqual([200, 200, 200])
    const ping = await fetch(`${proxy.url}/v2/?ns=${registry.host}`)
    expect([ping.status, ping.headers.get('www-authenticate')]).toEqual([401, 'Basic realm="skimmer-test"'])
    expect((await fetch(`${proxy.url}/v2/?ns=${registry.host}`, { headers: { authorization: BASIC } })).status).toBe(200)
  })

  test('a blob of one repository is not given away by the name of another', async () => {
    expect(await statuses(proxy, registry, 'other/app', other, BASIC)).toEqual([200, 200, 200])
    const crossed = await fetch(`${proxy.url}/v2/other/app/blobs/${image.layers[0].digest}?ns=${registry.host}`, { headers: headersFor(BASIC) })
    expect(crossed.status).toBe(404)
  })

  test('an answer is remembered for a while, and not longer', async () => {
    const asked = async (): Promise<number> => (await registry.log()).split('\n').filter((line) => /"(?:GET|HEAD) \/v2\/private\/app\//.test(line) && !line.includes('level=')).length
    await statuses(proxy, registry, 'private/app', image, BASIC)
    const before = await asked()
    for (let time = 0; time < 3; time++) expect(await statuses(proxy, registry, 'private/app', image, BASIC)).toEqual([200, 200, 200])
    expect(await asked()).toBe(before)
    proxy = await proxy.restart({ accessTtlMs: 0 })
    expect(await statuses(proxy, registry, 'private/app', image, BASIC)).toEqual([200, 200, 200])
    expect(await asked()).toBe(before + 3)
    proxy = await proxy.restart()
  })

  test("with the proxy's own credentials, local clients without any are served; others keep to theirs", async () => {
    const own = await startProxy({ credentials: staticCredentials({ [registry.host]: USER }), options: { ownCredentials: true } })
    try {
      expect(await statuses(own, registry, 'private/app', image)).toEqual([200, 200, 200])
      expect((await fetch(`${own.url}/v2/?ns=${registry.host}`)).status).toBe(200)
      expect(await statuses(own, registry, 'private/app', image, `Basic ${Buffer.from('anna:wrong').toString('base64')}`)).toEqual([401, 401, 401])
      const byPath = await fetch(`${own.url}/v2/${registry.host.replace(':', '__')}/private/app/manifests/1`, { headers: headersFor() })
      expect(byPath.status).toBe(200)
    } finally {
      await own.stop()
    }
    const off = await startProxy({ credentials: staticCredentials({ [registry.host]: USER }) })
    try {
      expect(await statuses(off, registry, 'private/app', image)).toEqual([401, 401, 401])
    } finally {
      await off.stop()
    }
  })
})

maybe('a registry with bearer tokens', () => {
  const directory = mkdtempSync(join(tmpdir(), 'skimmer-token-'))
  let tokens: TokenServer
  let registry: RunningRegistry
  let proxy: ProxyFixture
  let open: MadeImage
  let closed: MadeImage

  beforeAll(async () => {
    tokens = await startTokenServer(directory, USER)
    registry = await startRegistry({ token: tokens.token })
    proxy = await startProxy()
    const client = new RegistryClient({ credentials: staticCredentials({ [registry.host]: USER }) })
    open = await pushImage(client, parseReference(`${registry.host}/public/app:1`), [randomBytes(200_000)])
    closed = await pushImage(client, parseReference(`${registry.host}/private/app:1`), [randomBytes(200_000)])
    await client.close()
  })
  afterAll(async () => {
    await proxy?.stop()
    await registry?.stop()
    await tokens?.stop()
    rmSync(directory, { recursive: true, force: true })
  })
  const token = async (repository: string, authorization?: string): Promise<string> => {
    const challenge = (await fetch(`${proxy.url}/v2/${repository}/manifests/1?ns=${registry.host}`)).headers.get('www-authenticate')!
    const [, realm, service, scope] = /realm="([^"]+)",service="([^"]+)",scope="([^"]+)"/.exec(challenge)!
    const answer = await fetch(`${realm}?${new URLSearchParams({ service, scope }).toString()}`, { headers: authorization === undefined ? {} : { authorization } })
    return `Bearer ${((await answer.json()) as { token: string }).token}`
  }

  test('the challenge is passed on, the client gets its token itself, and it opens what it is for', async () => {
    expect(await statuses(proxy, registry, 'public/app', open)).toEqual([401, 401, 401])
    expect(await statuses(proxy, registry, 'public/app', open, await token('public/app'))).toEqual([200, 200, 200])
    expect(await statuses(proxy, registry, 'private/app', closed, await token('private/app'))).toEqual([401, 401, 401])
    const mine = await token('private/app', BASIC)
    expect(await statuses(proxy, registry, 'private/app', closed, mine)).toEqual([200, 200, 200])
    expect(await statuses(proxy, registry, 'private/app', closed, await token('private/app'))).toEqual([401, 401, 401])
    expect(await statuses(proxy, registry, 'private/app', closed, await token('public/app', BASIC))).toEqual([401, 401, 401])
  })

  test('a registry named by the path is asked without what the client sent, with tokens that the proxy gets itself', async () => {
    const path = registry.host.replace(':', '__')
    const byPath = async (repository: string, image: MadeImage): Promise<number[]> => {
      const answers: number[] = []
      for (const part of ['manifests/1', `blobs/${image.layers[0].digest}`]) {
        const answer = await fetch(`${proxy.url}/v2/${path}/${repository}/${part}`, { headers: headersFor('Bearer of.another.registry') })
        answers.push(answer.status)
        await answer.arrayBuffer()
      }
      return answers
    }
    expect(await byPath('public/app', open)).toEqual([200, 200])
    expect(await byPath('private/app', closed)).toEqual([401, 401])
  })
})

describe('a registry that cannot be asked', () => {
  const withRegistry = haveRegistry ? test : test.skip

  withRegistry('tags and blobs go on for those whom it served before, and for nobody else', async () => {
    const registry = await startRegistry({ auth: USER })
    let proxy = await startProxy({ options: { tagTtlMs: 0, accessTtlMs: 0, upstream: { attempts: 1 } } })
    try {
      const client = new RegistryClient({ credentials: staticCredentials({ [registry.host]: USER }) })
      const image = await pushImage(client, parseReference(`${registry.host}/private/app:1`), [randomBytes(200_000)])
      await client.close()
      expect(await statuses(proxy, registry, 'private/app', image, BASIC)).toEqual([200, 200, 200])
      await registry.stop()
      expect(await statuses(proxy, registry, 'private/app', image, BASIC)).toEqual([200, 200, 200])
      const stale = await fetch(`${proxy.url}/v2/private/app/manifests/1?ns=${registry.host}`, { headers: headersFor(BASIC) })
      expect(stale.headers.get('warning')).toContain('110')
      expect(await statuses(proxy, registry, 'private/app', image)).toEqual([503, 503, 503])
      proxy = await proxy.restart()
      expect(await statuses(proxy, registry, 'private/app', image, BASIC)).toEqual([200, 200, 200])
      proxy = await proxy.restart({ staleTagsMs: 0 })
      expect(await statuses(proxy, registry, 'private/app', image, BASIC)).toEqual([503, 200, 200])
      proxy = await proxy.restart({ accessOfflineMs: 0 })
      expect(await statuses(proxy, registry, 'private/app', image, BASIC)).toEqual([503, 503, 503])
    } finally {
      await proxy.stop()
      await registry.stop()
    }
  })

  withRegistry('what anyone may read goes on for anyone, also without the token that cannot be had any more', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'skimmer-public-'))
    const tokens = await startTokenServer(directory, USER)
    const registry = await startRegistry({ token: tokens.token })
    const proxy = await startProxy({ options: { tagTtlMs: 0, upstream: { attempts: 1 } } })
    try {
      const client = new RegistryClient({ credentials: staticCredentials({ [registry.host]: USER }) })
      const open = await pushImage(client, parseReference(`${registry.host}/public/app:1`), [randomBytes(200_000)])
      const closed = await pushImage(client, parseReference(`${registry.host}/private/app:1`), [randomBytes(200_000)])
      await client.close()
      const token = async (scope: string): Promise<string> => {
        const answer = await fetch(`${tokens.token.realm}?${new URLSearchParams({ service: tokens.token.service, scope: `repository:${scope}:pull` }).toString()}`, { headers: { authorization: BASIC } })
        return `Bearer ${((await answer.json()) as { token: string }).token}`
      }
      expect(await statuses(proxy, registry, 'public/app', open, await token('public/app'))).toEqual([200, 200, 200])
      expect(await statuses(proxy, registry, 'private/app', closed, await token('private/app'))).toEqual([200, 200, 200])
      // Found out in the background.
      const heard = async (pattern: RegExp): Promise<boolean> => (await registry.log()).split('\n').some((line) => pattern.test(line) && !line.includes('level='))
      for (const pattern of [/"HEAD \/v2\/public\/app\/manifests\/sha256:\S+ HTTP\/1.1" 200/, /"HEAD \/v2\/private\/app\/manifests\/sha256:\S+ HTTP\/1.1" 401/]) {
        for (let tries = 0; !(await heard(pattern)) && tries < 400; tries++) await new Promise((resolve) => setTimeout(resolve, 25))
        expect(await heard(pattern)).toBe(true)
      }
      await registry.stop()
      expect(await statuses(proxy, registry, 'public/app', open)).toEqual([200, 200, 200])
      expect(await statuses(proxy, registry, 'private/app', closed)).toEqual([503, 503, 503])
    } finally {
      await proxy.stop()
      await registry.stop()
      await tokens.stop()
      rmSync(directory, { recursive: true, force: true })
    }
  })

  test('its relative token server is its own, and its words of limits reach the client', async () => {
    const fake = await startHost((request, response) => {
      if (request.url!.startsWith('/v2/limited/')) response.writeHead(429, { 'retry-after': '3600', 'content-type': 'application/json' }).end('{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}')
      else response.writeHead(401, { 'www-authenticate': 'Bearer realm="/token",service="x",scope="repository:a/b:pull"' }).end()
    })
    const proxy = await startProxy()
    try {
      const answer = await fetch(`${proxy.url}/v2/a/b/manifests/1?ns=${fake.host}`)
      expect([answer.status, answer.headers.get('www-authenticate')]).toEqual([401, `Bearer realm="${fake.url}/token",service="x",scope="repository:a/b:pull"`])
      const limited = await fetch(`${proxy.url}/v2/limited/b/manifests/1?ns=${fake.host}`)
      expect([limited.status, limited.headers.get('retry-after')]).toEqual([429, '3600'])
      expect(((await limited.json()) as { errors: { code: string }[] }).errors[0].code).toBe('TOOMANYREQUESTS')
    } finally {
      await proxy.stop()
      await fake.stop()
    }
  })
})
