// The registry proxy as a mirror, spoken to as clients do: manifests, blobs, ranges, lists, errors; byte for byte what the registry has.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { randomBytes } from 'node:crypto'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { digestOf } from '../../oci/digest.ts'
import { MEDIA_TYPES } from '../../oci/media-types.ts'
import { parseReference } from '../../oci/reference.ts'
import { RegistryClient } from '../../oci/registry-client.ts'
import { pushImage } from '../oci/image-fixture.ts'
import type { MadeImage } from '../oci/image-fixture.ts'
import { haveRegistry, startRegistry } from '../oci/registry-fixture.ts'
import type { RunningRegistry } from '../oci/registry-fixture.ts'
import { startProxy } from './proxy-fixture.ts'
import type { ProxyFixture } from './proxy-fixture.ts'

const maybe = haveRegistry ? describe : describe.skip
const ACCEPT = [MEDIA_TYPES.ociManifest, MEDIA_TYPES.ociIndex, MEDIA_TYPES.dockerManifest, MEDIA_TYPES.dockerIndex].join(', ')

maybe('an open registry', () => {
  let registry: RunningRegistry
  let proxy: ProxyFixture
  let image: MadeImage
  const client = new RegistryClient()
  const layerBytes = 3 * 2 ** 20 + 12_345

  beforeAll(async () => {
    registry = await startRegistry()
    proxy = await startProxy()
    image = await pushImage(client, parseReference(`${registry.host}/team/app:1`), [randomBytes(layerBytes), randomBytes(100_000)])
  })
  afterAll(async () => {
    await proxy?.stop()
    await registry?.stop()
    await client.close()
  })
  const ask = (path: string, init: RequestInit = {}): Promise<Response> => fetch(`${proxy.url}/v2/${path}${path.includes('?') ? '&' : '?'}ns=${registry.host}`, init)
  const bytesOf = async (response: Response): Promise<Buffer> => Buffer.from(await response.arrayBuffer())
  const errorOf = async (response: Response): Promise<string> => ((await response.json()) as { errors: { code: string }[] }).errors[0].code

  test('a manifest is the same by tag and by digest, and so are its headers', async () => {
    for (const reference of ['1', image.manifestDigest]) {
      for (const method of ['HEAD', 'GET']) {
        const answer = await ask(`team/app/manifests/${reference}`, { method, headers: { accept: ACCEPT } })
        const straight = await fetch(`${registry.url}/v2/team/app/manifests/${reference}`, { method, headers: { accept: ACCEPT } })
        expect(answer.status).toBe(200)
        for (const name of ['content-type', 'docker-content-digest', 'content-length', 'etag', 'docker-distribution-api-version']) expect([name, answer.headers.get(name)]).toEqual([name, straight.headers.get(name)])
        expect((await bytesOf(answer)).equals(await bytesOf(straight))).toBe(true)
      }
    }
    const known = await ask(`team/app/manifests/1`, { headers: { accept: ACCEPT, 'if-none-match': `"${image.manifestDigest}"` } })
    expect(known.status).toBe(304)
  })

  test('a manifest by digest is asked of the registry once, a tag again only after a while', async () => {
    const asked = async (): Promise<number> => (await registry.log()).split('\n').filter((line) => line.includes('"GET /v2/team/once/manifests/') && !line.includes('level=')).length
    const once = await pushImage(client, parseReference(`${registry.host}/team/once:1`), [randomBytes(1000)])
    for (let time = 0; time < 3; time++) {
      expect((await ask('team/once/manifests/1', { headers: { accept: ACCEPT } })).status).toBe(200)
      expect((await ask(`team/once/manifests/${once.manifestDigest}`, { headers: { accept: ACCEPT } })).status).toBe(200)
    }
    expect(await asked()).toBe(1)
  })

  test('a tag that moved is followed after its time', async () => {
    const name = parseReference(`${registry.host}/team/moving:1`)
    const first = await pushImage(client, name, [randomBytes(1000)])
    const own = await startProxy({ options: { tagTtlMs: 0 } })
    try {
      const digest = async (): Promise<string | null> => (await fetch(`${own.url}/v2/team/moving/manifests/1?ns=${registry.host}`, { headers: { accept: ACCEPT } })).headers.get('docker-content-digest')
      expect(await digest()).toBe(first.manifestDigest)
      const second = await pushImage(client, name, [randomBytes(1000)])
      expect(await digest()).toBe(second.manifestDigest)
    } finally {
      await own.stop()
    }
  })

  test('a blob, whole and in parts', async () => {
    const { digest, bytes } = image.layers[0]
    const whole = await ask(`team/app/blobs/${digest}`)
    expect([whole.status, whole.headers.get('content-length'), whole.headers.get('docker-content-digest')]).toEqual([200, String(bytes.length), digest])
    expect(digestOf(await bytesOf(whole))).toBe(digest)
    const head = await ask(`team/app/blobs/${digest}`, { method: 'HEAD' })
    expect([head.status, head.headers.get('content-length'), head.headers.get('accept-ranges')]).toEqual([200, String(bytes.length), 'bytes'])
    for (const [range, from, to] of [['bytes=0-0', 0, 1], ['bytes=100-1048999', 100, 1_049_000], [`bytes=${bytes.length - 5}-`, bytes.length - 5, bytes.length], ['bytes=-7', bytes.length - 7, bytes.length], [`bytes=1000-${bytes.length + 50}`, 1000, bytes.length]] as const) {
      const part = await ask(`team/app/blobs/${digest}`, { headers: { range } })
      expect([range, part.status, part.headers.get('content-range')]).toEqual([range, 206, `bytes ${from}-${to - 1}/${bytes.length}`])
      expect((await bytesOf(part)).equals(bytes.subarray(from, to))).toBe(true)
    }
    const beyond = await ask(`team/app/blobs/${digest}`, { headers: { range: `bytes=${bytes.length}-` } })
    expect([beyond.status, beyond.headers.get('content-range')]).toEqual([416, `bytes */${bytes.length}`])
    expect((await ask(`team/app/blobs/${digest}`, { headers: { range: 'bytes=0-1,5-6' } })).status).toBe(400)
    expect((await ask(`team/app/blobs/${digest}`, { headers: { range: 'lines=1-2' } })).status).toBe(200)
    expect((await ask(`team/app/blobs/${digest}`, { headers: { 'if-none-match': `"${digest}"` } })).status).toBe(304)
    const escaped = await ask(`team/app/blobs/${encodeURIComponent(digest)}`, { method: 'HEAD' })
    expect(escaped.status).toBe(200)
  })

  test('a blob of sha512 and an empty one', async () => {
    const bytes = randomBytes(50_000)
    const digest = digestOf(bytes, 'sha512')
    const name = parseReference(`${registry.host}/team/app:1`)
    await client.pushBlob(name, bytes, digest)
    await client.pushBlob(name, Buffer.alloc(0))
    expect((await bytesOf(await ask(`team/app/blobs/${digest}`))).equals(bytes)).toBe(true)
    const empty = await ask(`team/app/blobs/${digestOf(Buffer.alloc(0))}`)
    expect([empty.status, (await bytesOf(empty)).length]).toEqual([200, 0])
  })

  test('many clients of one blob are one download', async () => {
    const made = await pushImage(client, parseReference(`${registry.host}/team/many:1`), [randomBytes(2_500_000)])
    const { digest, bytes } = made.layers[0]
    const answers = await Promise.all(Array.from({ length: 20 }, () => ask(`team/many/blobs/${digest}`).then(bytesOf)))
    expect(answers.every((answer) => answer.equals(bytes))).toBe(true)
    const gets = (await registry.log()).split('\n').filter((line) => line.includes(`"GET /v2/team/many/blobs/${digest}`) && !line.includes('level='))
    expect(gets).toHaveLength(1)
  })

  test('a blob that is not what its digest says never looks whole', async () => {
    const made = await pushImage(client, parseReference(`${registry.host}/team/wrong:1`), [randomBytes(2_500_000)])
    const { digest, bytes } = made.layers[0]
    const file = join(registry.directory, 'storage/docker/registry/v2/blobs/sha256', digest.slice(7, 9), digest.slice(7), 'data')
    const wrong = Buffer.from(bytes)
    wrong[wrong.length - 1] ^= 1
    expect((await readFile(file)).equals(bytes)).toBe(true)
    await writeFile(file, wrong)
    // A small blob is refused before its first byte, a large one ends in a broken connection.
    const read = async (): Promise<number> => {
      const answer = await ask(`team/wrong/blobs/${digest}`)
      const received = await bytesOf(answer)
      if (answer.status !== 200) throw new Error(`answered ${answer.status}: ${received.toString()}`)
      return received.length
    }
    await expect(read()).rejects.toThrow()
    await expect(read()).rejects.toThrow()
    // No part of it is given either: a client that goes on from a broken connection would end with a wrong file.
    const part = await ask(`team/wrong/blobs/${digest}`, { headers: { range: `bytes=${bytes.length - 1}-` } })
    expect([part.status, await errorOf(part)]).toEqual([502, 'UNAVAILABLE'])
    // The registry was repaired: nothing wrong was kept.
    await writeFile(file, bytes)
    expect(await read()).toBe(bytes.length)
    expect((await ask(`team/wrong/blobs/${digest}`, { headers: { range: `bytes=${bytes.length - 1}-` } })).status).toBe(206)
  })

  test('parts of a wrong blob that passes through are refused as well', async () => {
    const bytes = randomBytes(500_000)
    const digest = digestOf(bytes, 'sha512')
    const name = parseReference(`${registry.host}/team/app:1`)
    await client.pushBlob(name, bytes, digest)
    const stored = digestOf(bytes).slice(7) // the registry keeps it under this name too
    const file = join(registry.directory, 'storage/docker/registry/v2/blobs/sha256', stored.slice(0, 2), stored, 'data')
    expect((await readFile(file)).equals(bytes)).toBe(true)
    await writeFile(file, Buffer.concat([bytes.subarray(0, -1), Buffer.from([bytes.at(-1)! ^ 1])]))
    await expect(ask(`team/app/blobs/${digest}`).then(bytesOf)).rejects.toThrow()
    expect((await ask(`team/app/blobs/${digest}`, { headers: { range: 'bytes=1-' } })).status).toBe(502)
    await writeFile(file, bytes)
    expect((await bytesOf(await ask(`team/app/blobs/${digest}`))).equals(bytes)).toBe(true)
    expect((await ask(`team/app/blobs/${digest}`, { headers: { range: 'bytes=1-' } })).status).toBe(206)
  })

  test('what is not there is refused in the words of the spec', async () => {
    const absent = `sha256:${'0'.repeat(64)}`
    const cases: [string, RequestInit, number, string][] = [
      [`team/app/blobs/${absent}`, {}, 404, 'BLOB_UNKNOWN'],
      [`team/app/manifests/${absent}`, { headers: { accept: ACCEPT } }, 404, 'MANIFEST_UNKNOWN'],
      ['team/app/manifests/nope', { headers: { accept: ACCEPT } }, 404, 'MANIFEST_UNKNOWN'],
      ['team/nothing/tags/list', {}, 404, 'NAME_UNKNOWN'],
      ['team/app/blobs/sha256:12', {}, 400, 'DIGEST_INVALID'],
      ['Team/app/manifests/1', {}, 400, 'NAME_INVALID'],
      ['team/app/blobs/uploads/', { method: 'POST', body: 'x' }, 405, 'UNSUPPORTED'],
      ['team/app/manifests/1', { method: 'PUT', body: '{}' }, 405, 'UNSUPPORTED'],
      ['team/app/manifests/1', { method: 'DELETE' }, 405, 'UNSUPPORTED'],
      ['_catalog', {}, 404, 'UNSUPPORTED'],
      ['team/app/what/ever', {}, 404, 'UNSUPPORTED'],
    ]
    for (const [path, init, status, code] of cases) {
      const answer = await ask(path, init)
      expect([path, init.method, answer.status, await errorOf(answer)]).toEqual([path, init.method, status, code])
    }
  })

  test('tags come page by page, and the links lead through the proxy', async () => {
    const made = await pushImage(client, parseReference(`${registry.host}/team/tags:a`), [randomBytes(100)])
    for (const tag of ['b', 'c', 'd', 'e']) await client.pushManifest(parseReference(`${registry.host}/team/tags:${tag}`), made.manifestBytes, MEDIA_TYPES.ociManifest)
    const found: string[] = []
    let path: string | undefined = `/v2/team/tags/tags/list?n=2&ns=${registry.host}`
    for (let page = 0; path !== undefined && page < 10; page++) {
      const answer = await fetch(`${proxy.url}${path}`)
      found.push(...((await answer.json()) as { tags: string[] }).tags)
      path = /<([^>]+)>/.exec(answer.headers.get('link') ?? '')?.[1]
    }
    expect(found.toSorted()).toEqual(['a', 'b', 'c', 'd', 'e'])
    expect((await ask('team/tags/tags/list?n=x')).status).toBe(400)
    expect(await (await ask('team/tags/tags/list?n=0')).json()).toMatchObject({ name: 'team/tags', tags: [] })
    expect(await (await ask('team/tags/tags/list?n=2&last=c')).json()).toMatchObject({ tags: ['d', 'e'] })
  })

  test('a registry without the referrers API says so, and its fallback tag is a tag', async () => {
    const answer = await ask(`team/app/referrers/${image.manifestDigest}`)
    expect([answer.status, answer.headers.get('content-type'), await errorOf(answer)]).toEqual([404, 'application/json', 'MANIFEST_UNKNOWN'])
    expect((await ask(`team/app/manifests/${image.manifestDigest.replace(':', '-')}`, { headers: { accept: ACCEPT } })).status).toBe(404)
  })

  test('the registry is chosen by header, path, name of the proxy, or default', async () => {
    const manifest = 'team/app/manifests/1'
    const status = async (url: string, headers: Record<string, string> = {}): Promise<number> => (await fetch(url, { headers: { accept: ACCEPT, ...headers } })).status
    expect(await status(`${proxy.url}/v2/${manifest}`, { 'x-skimmer-registry': registry.host })).toBe(200)
    expect(await status(`${proxy.url}/v2/${manifest}`, { 'x-dragonfly-registry': registry.url })).toBe(200)
    expect(await status(`${proxy.url}/v2/${registry.host.replace(':', '__')}/${manifest}`)).toBe(200)
    expect(await status(`${proxy.url}/v2/${manifest}?ns=..`)).toBe(400)
    const other = await startProxy({ options: { registry: 'unknown.invalid', hosts: { localhost: registry.host }, registries: [registry.host] } })
    try {
      expect(await status(`${other.url.replace('127.0.0.1', 'localhost')}/v2/${manifest}`)).toBe(200)
      expect(await status(`${other.url}/v2/${manifest}`)).toBe(403)
      expect(await status(`${other.url}/v2/`)).toBe(403)
    } finally {
      await other.stop()
    }
  })

  test('a proxy that is named as its own registry does not go round', async () => {
    const answer = await fetch(`${proxy.url}/v2/team/app/manifests/1?ns=${proxy.host}`, { headers: { accept: ACCEPT } })
    expect(answer.status).toBeGreaterThanOrEqual(400)
    expect(answer.status).toBe(508)
  })

  test('/v2/ is there, also when the registry is not', async () => {
    expect((await ask('')).status).toBe(200)
    expect((await fetch(`${proxy.url}/v2/?ns=127.0.0.1:1`)).status).toBe(200)
    expect((await fetch(`${proxy.url}/healthz`)).status).toBe(200)
    expect((await fetch(`${proxy.url}/v2/team/app/manifests/1?ns=127.0.0.1:1`)).status).toBe(503)
  })
})
