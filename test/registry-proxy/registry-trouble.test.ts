// Registries that are silent, misleading or rude: what the proxy answers then, and how soon.
import { afterEach, describe, expect, test } from '@jest/globals'
import { digestOf } from '../../oci/digest.ts'
import { MEDIA_TYPES } from '../../oci/media-types.ts'
import type { RegistryProxyOptions } from '../../registry-proxy/proxy-options.ts'
import { startHost } from '../oci/http-fixture.ts'
import type { Answer, FakeHost } from '../oci/http-fixture.ts'
import { startProxy } from './proxy-fixture.ts'
import type { ProxyFixture } from './proxy-fixture.ts'

const MANIFEST = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: MEDIA_TYPES.ociManifest, config: {}, layers: [] }))
const DIGEST = digestOf(MANIFEST)

let registry: FakeHost
let proxy: ProxyFixture
afterEach(async () => {
  await proxy?.stop()
  await registry?.stop()
})

async function start(answer: Answer, options: Partial<RegistryProxyOptions> = {}): Promise<void> {
  registry = await startHost(answer)
  proxy = await startProxy({ options: { tagTtlMs: 0, ...options } })
}

const ask = (path: string, init: RequestInit = {}): Promise<Response> => fetch(`${proxy.url}/v2/team/${path}${path.includes('?') ? '&' : '?'}ns=${registry.host}`, { ...init, headers: { accept: MEDIA_TYPES.ociManifest, ...init.headers } })
const errorOf = async (answer: Response): Promise<[number, string, string]> => {
  const { errors } = (await answer.json()) as { errors: { code: string; message: string }[] }
  return [answer.status, errors[0].code, errors[0].message]
}

describe('a registry that accepts and is silent', () => {
  test('is waited for 5 s where there is an old tag, and as long as it is given otherwise', async () => {
    let silent = false
    await start((_, response) => {
      if (!silent) response.writeHead(200, { 'content-type': MEDIA_TYPES.ociManifest, 'docker-content-digest': DIGEST, 'content-length': MANIFEST.length }).end(MANIFEST)
    }, { upstream: { lookUpMs: 7000, attempts: 1 } })
    expect((await ask('app/manifests/1')).status).toBe(200)
    silent = true
    const began = performance.now()
    const other = ask('app/manifests/2').then((answer) => [answer.status, performance.now() - began])
    const list = ask('app/tags/list').then((answer) => answer.status)
    const stale = await ask('app/manifests/1')
    expect([stale.status, stale.headers.get('warning'), (await stale.arrayBuffer()).byteLength]).toEqual([200, expect.stringContaining('110'), MANIFEST.length])
    expect(performance.now() - began).toBeLessThan(6500)
    const [status, took] = await other
    expect([status, await list]).toEqual([504, 504])
    expect(took).toBeGreaterThan(6500)
  }, 30_000)

  test('is then left alone for a moment, and nobody learns what others had asked it', async () => {
    await start(() => {}, { upstream: { lookUpMs: 200, attempts: 1 } })
    expect((await errorOf(await ask('secret/manifests/1')))[2]).toContain('team/secret')
    const [status, , message] = await errorOf(await ask('other/manifests/1'))
    expect([status, message]).toEqual([504, expect.stringContaining(registry.host)])
    expect(message).not.toContain('secret')
    expect(registry.requests.filter(({ url }) => url.includes('other'))).toEqual([])
  })
})
