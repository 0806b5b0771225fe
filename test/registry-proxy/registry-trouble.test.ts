// Registries that are silent, misleading or rude: what the proxy answers then, and how soon.
import { afterEach, describe, expect, test } from '@jest/globals'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { networkInterfaces } from 'node:os'
import { addressClass } from '../../oci/address-class.ts'
import { digestOf } from '../../oci/digest.ts'
import { MEDIA_TYPES } from '../../oci/media-types.ts'
import type { RegistryProxyOptions } from '../../registry-proxy/proxy-options.ts'
import { tagPage } from '../../registry-proxy/tag-page.ts'
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

describe('redirects', () => {
  test('lead to other hosts, but not to this machine or its link from elsewhere', async () => {
    const where: Record<string, string> = { '/v2/team/app/manifests/near': `http://localhost:PORT/there`, '/v2/team/app/manifests/cloud': 'http://169.254.169.254/latest/meta-data/', '/v2/team/app/manifests/mapped': 'http://[::ffff:169.254.1.1]/', '/v2/team/app/tags/list': 'http://0.0.0.0:PORT/there', [`/v2/team/app/referrers/${DIGEST}`]: 'http://[fe80::1]/', [`/v2/team/app/blobs/${DIGEST}`]: 'http://0.0.0.0:PORT/there' }
    await start((request, response) => {
      const to = where[request.url!]
      if (to !== undefined) response.writeHead(307, { location: to.replace('PORT', registry.host.split(':')[1]) }).end()
      else response.writeHead(200, { 'content-type': MEDIA_TYPES.ociManifest }).end(MANIFEST)
    })
    expect((await ask('app/manifests/near')).status).toBe(200)
    for (const path of ['app/manifests/cloud', 'app/manifests/mapped', 'app/tags/list', `app/referrers/${DIGEST}`, `app/blobs/${DIGEST}`]) {
      const answer = await ask(path)
      expect([path, answer.status, await answer.text()]).toEqual([path, 502, expect.stringContaining('redirects to a place')])
    }
  })

  test('from a registry elsewhere not to loopback either, by name or by number', async () => {
    const [address] = Object.values(networkInterfaces()).flat().filter((found) => found!.family === 'IPv4' && !found!.internal).map((found) => found!.address)
    if (address === undefined) return // this machine has no other address to be asked at
    const inner = await startHost((_, response) => void response.end('a secret'))
    const outer = createServer((request, response) => void response.writeHead(307, { location: `http://${request.url!.includes('name') ? `localhost:${inner.host.split(':')[1]}` : inner.host}/` }).end())
    await new Promise<void>((resolve) => outer.listen(0, address, resolve))
    const host = `${address}:${(outer.address() as AddressInfo).port}`
    registry = inner
    proxy = await startProxy({ hosts: { [host]: { plainHttp: true } } })
    try {
      for (const tag of ['name', 'number']) {
        const answer = await fetch(`${proxy.url}/v2/team/app/manifests/${tag}?ns=${host}`)
        expect([answer.status, await answer.text()]).toEqual([502, expect.stringContaining('redirects to a place')])
      }
      expect(inner.requests).toEqual([])
    } finally {
      outer.close()
      outer.closeAllConnections()
    }
  })

  test('classes of addresses', () => {
    const classes = { '127.1.2.3': 'loopback', '::1': 'loopback', '::ffff:127.0.0.1': 'loopback', '0.0.0.0': 'unspecified', '::': 'unspecified', '169.254.3.4': 'link-local', 'fe80::1%eth0': 'link-local', 'febf::1': 'link-local', '169.254.169.254': 'metadata', 'fd00:ec2::254': 'metadata', '64:ff9b::169.254.169.254': 'metadata', '10.0.0.1': undefined, '192.168.1.1': undefined, 'fd12::1': undefined, '8.8.8.8': undefined, '2001:db8::1': undefined }
    for (const [address, name] of Object.entries(classes)) expect([address, addressClass(address)]).toEqual([address, name])
  })
})

test('a refusal in other words than the spec has gets the spec\'s, with its status and headers', async () => {
  await start((request, response) => {
    const status = Number(/manifests\/([0-9]{3})$/.exec(request.url!)?.[1] ?? 404)
    const own = request.url!.includes('own')
    response.writeHead(status, { 'content-type': 'text/html', 'retry-after': '7777', 'www-authenticate': 'Basic realm="theirs"' }).end(own ? '{"errors":[{"code":"THEIRS","message":"x"}]}' : request.url!.includes('json') ? '{"error":"no"}' : '<h1>a page</h1>')
  }, { upstream: { attempts: 1 } })
  for (const [path, status, code] of [['page/manifests/404', 404, 'MANIFEST_UNKNOWN'], ['json/manifests/401', 401, 'UNAUTHORIZED'], ['page/manifests/403', 403, 'DENIED'], ['page/manifests/429', 429, 'TOOMANYREQUESTS'], ['page/manifests/500', 500, 'UNKNOWN'], ['page/manifests/418', 418, 'UNKNOWN'], ['own/manifests/404', 404, 'THEIRS'], ['page/tags/list', 404, 'NAME_UNKNOWN'], [`page/blobs/${DIGEST}`, 404, 'BLOB_UNKNOWN'], [`page/referrers/${DIGEST}`, 404, 'MANIFEST_UNKNOWN']] as const) {
    const answer = await ask(path)
    expect([path, ...(await errorOf(answer)).slice(0, 2)]).toEqual([path, status, code])
    expect([answer.headers.get('retry-after'), answer.headers.get('www-authenticate')]).toEqual(['7777', 'Basic realm="theirs"'])
    expect((await (await ask(path, { method: 'HEAD' })).arrayBuffer()).byteLength).toBe(0)
  }
})

describe('a registry that gives all tags whatever it is asked', () => {
  const tags = ['b', 'a', 'Z', 'd', 'c']
  const list = async (query: string): Promise<[string[], string | null]> => {
    const answer = await ask(`app/tags/list${query}`)
    return [((await answer.json()) as { tags: string[] }).tags, answer.headers.get('link')]
  }

  test('page by page, each with a link to the next', async () => {
    await start((_, response) => void response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify({ name: 'team/app', tags })))
    expect(await list('')).toEqual([tags, null])
    expect(await list('?n=5')).toEqual([tags, null])
    expect(await list('?n=0')).toEqual([[], null])
    expect(await list('?n=2&last=c')).toEqual([['d'], null])
    expect(await list('?last=b')).toEqual([['c', 'd'], null])
    expect(await list('?last=zz')).toEqual([[], null])
    const found: string[][] = []
    for (let path: string | undefined = `/v2/team/app/tags/list?n=2&ns=${registry.host}`; path !== undefined;) {
      const answer: Response = await fetch(`${proxy.url}${path}`)
      found.push(((await answer.json()) as { tags: string[] }).tags)
      path = /^<([^>]+)>; rel="next"$/.exec(answer.headers.get('link') ?? '')?.[1]
    }
    expect(found).toEqual([['Z', 'a'], ['b', 'c'], ['d']])
  })

  test('and one that cuts them itself is left to it', async () => {
    await start((_, response) => void response.writeHead(200, { 'content-type': 'application/json', link: '</v2/team/app/tags/list?n=2&last=a>; rel="next"' }).end('{"tags":["b","a","c"]}'))
    expect(await list('?n=2')).toEqual([['b', 'a', 'c'], `</v2/team/app/tags/list?n=2&last=a&ns=${encodeURIComponent(registry.host)}>; rel="next"`])
    expect((await list('?n=0'))[0]).toEqual([])
    expect(tagPage(Buffer.from('{"tags":null}'), { count: 0, last: undefined, linked: false })).toBeUndefined()
    expect(tagPage(Buffer.from('null'), { count: 0, last: undefined, linked: false })).toBeUndefined()
  })
})
