// What networks and registries do wrong, and what the client promises then: resume, retry, redirects without credentials, mirrors, TLS.
import { afterEach, beforeAll, afterAll, describe, expect, test } from '@jest/globals'
import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { staticCredentials } from '../../oci/credentials.ts'
import { digestOf } from '../../oci/digest.ts'
import { parseReference } from '../../oci/reference.ts'
import { RegistryClient } from '../../oci/registry-client.ts'
import { makeCertificates, startHost } from './http-fixture.ts'
import type { Answer, FakeHost } from './http-fixture.ts'
import { readAll } from './image-fixture.ts'
import { freePort } from './registry-fixture.ts'

const cleanups: (() => Promise<void>)[] = []
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).toReversed()) await cleanup()
})
async function host(answer: Answer, tls?: { key: string; cert: string }): Promise<FakeHost> {
  const started = await startHost(answer, tls)
  cleanups.push(() => started.stop())
  return started
}
function client(...words: ConstructorParameters<typeof RegistryClient>): RegistryClient {
  const made = new RegistryClient(words[0], { backoffMs: 5, ...words[1] })
  cleanups.push(() => made.close())
  return made
}

const bytes = randomBytes(900_000)
const blob = { digest: digestOf(bytes), size: bytes.length }
const at = (where: FakeHost) => parseReference(`${where.host}/team/app:1`)
const rangeStart = (header: string | undefined): number => Number(/^bytes=(\d+)-/.exec(header ?? 'bytes=0-')![1])

describe('a blob whose connection breaks', () => {
  test('goes on where it broke, and is proved as a whole', async () => {
    const registry = await host((request, response, count) => {
      const from = rangeStart(request.headers.range)
      response.writeHead(from === 0 ? 200 : 206, { 'content-length': bytes.length - from, ...(from > 0 && { 'content-range': `bytes ${from}-${bytes.length - 1}/${bytes.length}` }) })
      if (count <= 3) response.write(bytes.subarray(from, from + 200_000), () => response.destroy())
      else response.end(bytes.subarray(from))
    })
    expect((await readAll(client().blob(at(registry), blob))).equals(bytes)).toBe(true)
    expect(registry.requests.slice(1).every(({ headers }) => rangeStart(headers.range) > 0)).toBe(true)
  })

  test('goes on with a server that ignores Range', async () => {
    const registry = await host((_request, response, count) => {
      response.writeHead(200, { 'content-length': bytes.length })
      if (count === 1) response.write(bytes.subarray(0, 300_000), () => response.destroy())
      else response.end(bytes)
    })
    expect((await readAll(client().blob(at(registry), blob))).equals(bytes)).toBe(true)
    expect((await readAll(client().blob(at(registry), blob, { offset: 123_456, length: 1000 }))).equals(bytes.subarray(123_456, 124_456))).toBe(true)
  })

  test('is given up when nothing comes any more', async () => {
    const registry = await host((_request, response) => {
      response.writeHead(200, { 'content-length': bytes.length })
      response.write(bytes.subarray(0, 10), () => response.destroy())
    })
    await expect(readAll(client({}, { resumes: 2 }).blob(at(registry), blob))).rejects.toMatchObject({ code: 'UNAVAILABLE', message: expect.stringContaining(registry.host) })
    expect(registry.requests).toHaveLength(3)
  })

  test('is resumed when a server goes silent', async () => {
    const registry = await host((request, response, count) => {
      const from = rangeStart(request.headers.range)
      response.writeHead(from === 0 ? 200 : 206, { 'content-length': bytes.length - from, ...(from > 0 && { 'content-range': `bytes ${from}-${bytes.length - 1}/${bytes.length}` }) })
      if (count === 1) response.write(bytes.subarray(0, 100_000)) // and never a byte more
      else response.end(bytes.subarray(from))
    })
    expect((await readAll(client({}, { bodyIdleTimeoutMs: 200 }).blob(at(registry), blob))).equals(bytes)).toBe(true)
  })

  test('never gives its last bytes away when they are wrong', async () => {
    const registry = await host((_request, response) => response.end(Buffer.concat([bytes.subarray(0, -1), Buffer.from([bytes.at(-1)! ^ 1])])))
    let seen = 0
    await expect(
      (async () => {
        for await (const chunk of client().blob(at(registry), blob)) seen += chunk.length
      })(),
    ).rejects.toMatchObject({ code: 'DIGEST_MISMATCH' })
    expect(seen).toBeLessThan(bytes.length)
  })

  test('a wrong answer to Range is refused', async () => {
    const registry = await host((_request, response) => {
      response.writeHead(206, { 'content-range': `bytes 0-99/${bytes.length}` })
      response.end(bytes.subarray(0, 100))
    })
    await expect(readAll(client().blob(at(registry), blob, { offset: 500, length: 100 }))).rejects.toMatchObject({ code: 'DIGEST_MISMATCH' })
  })
})

describe('a registry that is overloaded', () => {
  test('is asked again after what Retry-After says', async () => {
    const registry = await host((_request, response, count) => {
      if (count === 1) response.writeHead(429, { 'retry-after': '1' }).end()
      else if (count === 2) response.writeHead(503).end()
      else response.end(bytes)
    })
    const asked = performance.now()
    expect((await readAll(client().blob(at(registry), blob))).equals(bytes)).toBe(true)
    expect(performance.now() - asked).toBeGreaterThan(990)
    expect(registry.requests).toHaveLength(3)
  })

  test('that wants a long wait gets an error that says how long', async () => {
    const registry = await host((_request, response) => {
      response.writeHead(429, { 'retry-after': '3600', 'content-type': 'application/json' }).end(JSON.stringify({ errors: [{ code: 'TOOMANYREQUESTS', message: 'pull rate limit' }] }))
    })
    await expect(client().manifest(at(registry))).rejects.toMatchObject({ code: 'UNAVAILABLE', message: expect.stringMatching(/TOOMANYREQUESTS.*3600 s/), details: { status: 429, retryAfterSeconds: 3600 } })
    expect(registry.requests).toHaveLength(1)
  })

  test('and stays so is UNAVAILABLE after a bounded number of tries', async () => {
    const registry = await host((_request, response) => response.writeHead(502).end())
    await expect(client({}, { attempts: 3 }).manifest(at(registry))).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    expect(registry.requests).toHaveLength(3)
  })

  test('a registry that does not listen is UNAVAILABLE, and says so', async () => {
    const port = await freePort()
    await expect(client({}, { attempts: 2 }).manifest(parseReference(`127.0.0.1:${port}/a:1`))).rejects.toMatchObject({ code: 'UNAVAILABLE', message: expect.stringContaining('nothing listens') })
  })
})

const challenged = (answer: Answer): Answer => (request, response, count) => {
  if (request.headers.authorization === undefined) response.writeHead(401, { 'www-authenticate': 'Basic realm="r"' }).end()
  else answer(request, response, count)
}

describe('redirects', () => {
  const login = { username: 'ada', password: 'redirect-secret' }

  test('to a storage host are followed without credentials, and keep Range', async () => {
    const storage = await host((request, response) => {
      const from = rangeStart(request.headers.range)
      response.writeHead(206, { 'content-range': `bytes ${from}-${bytes.length - 1}/${bytes.length}` }).end(bytes.subarray(from))
    })
    const registry = await host(challenged((_request, response) => response.writeHead(307, { location: `${storage.url}/signed?signature=top-secret` }).end()))
    const found = await readAll(client({ credentials: staticCredentials({ [registry.host]: login }) }).blob(at(registry), blob, { offset: 777 }))
    expect(found.equals(bytes.subarray(777))).toBe(true)
    expect(storage.requests).toHaveLength(1)
    expect(storage.requests[0].headers.authorization).toBeUndefined()
    expect(storage.requests[0].headers.range).toBe(`bytes=777-${bytes.length - 1}`)
  })

  test('back to the registry do not bring the credentials back', async () => {
    const back: string[] = []
    const registry = await host(
      challenged((request, response) => {
        if (request.url!.startsWith('/v2/team/app/blobs/')) response.writeHead(307, { location: `${storage.url}/x` }).end()
        else response.end(bytes)
      }),
    )
    const storage = await host((_request, response) => response.writeHead(302, { location: `${registry.url}/elsewhere` }).end())
    await readAll(client({ credentials: staticCredentials({ [registry.host]: login }) }, { attempts: 1 }).blob(at(registry), blob)).catch((error: Error) => back.push(error.message))
    const last = registry.requests.find(({ url }) => url === '/elsewhere')
    expect(last).toBeDefined()
    expect(last!.headers.authorization).toBeUndefined()
    expect(back.join(' ')).not.toContain('redirect-secret')
  })

  test('within the registry keep the credentials; too many are refused', async () => {
    const registry = await host(
      challenged((request, response) => {
        if (request.url === '/moved') response.end(bytes)
        else if (request.url!.includes('loop')) response.writeHead(302, { location: request.url }).end()
        else response.writeHead(302, { location: '/moved' }).end()
      }),
    )
    const one = client({ credentials: staticCredentials({ [registry.host]: login }) })
    expect((await readAll(one.blob(at(registry), blob))).equals(bytes)).toBe(true)
    await expect(one.manifest(parseReference(`${registry.host}/loop:1`))).rejects.toMatchObject({ code: 'INVALID_DATA', message: expect.stringContaining('redirects more than') })
  })

  test('whose signed address answers with an error do not show the signature', async () => {
    const storage = await host((_request, response) => response.writeHead(403).end('<xml/>'))
    const registry = await host((_request, response) => response.writeHead(307, { location: `${storage.url}/signed?signature=top-secret` }).end())
    const error = (await readAll(client().blob(at(registry), blob)).catch((thrown: unknown) => thrown)) as Error
    expect(error).toMatchObject({ code: 'UNAUTHORIZED' })
    expect(JSON.stringify(error) + error.message).not.toContain('top-secret')
  })
})

describe('mirrors', () => {
  const manifest = Buffer.from(JSON.stringify({ schemaVersion: 2, manifests: [] }))

  test('are asked first, and told which registry is meant', async () => {
    const mirror = await host((_request, response) => response.writeHead(200, { 'content-type': 'application/vnd.oci.image.index.v1+json' }).end(manifest))
    const one = client({ hosts: { 'docker.io': { mirrors: [`${mirror.url}/hub`] } } })
    expect((await one.manifest(parseReference('debian:12'))).digest).toBe(digestOf(manifest))
    expect(mirror.requests[0].url).toBe('/v2/hub/library/debian/manifests/12?ns=docker.io')
  })

  test('that miss, fail, are gone or lie are passed over for the registry itself', async () => {
    const registry = await host((request, response) => response.end(request.url!.includes('/blobs/') ? bytes : manifest))
    const missing = await host((_request, response) => response.writeHead(404).end())
    const failing = await host((_request, response) => response.writeHead(500).end())
    const gone = `http://127.0.0.1:${await freePort()}`
    const lying = await host((_request, response) => response.end('{"schemaVersion": 2, "manifests": [], "lie": true}'))
    const one = client({ hosts: { [registry.host]: { mirrors: [gone, missing.url, failing.url] } } })
    expect((await one.manifest(at(registry))).bytes.equals(manifest)).toBe(true)
    expect((await readAll(one.blob(at(registry), blob))).equals(bytes)).toBe(true)
    expect(failing.requests).toHaveLength(1) // passed over for a while after the first failure
    expect(missing.requests).toHaveLength(2) // only misses: asked again

    const two = client({ hosts: { [registry.host]: { mirrors: [lying.url] } } })
    const pinned = { ...at(registry), tag: undefined, digest: digestOf(manifest) }
    await expect(two.manifest(pinned)).rejects.toMatchObject({ code: 'DIGEST_MISMATCH' })
    expect((await two.manifest(pinned)).bytes.equals(manifest)).toBe(true)
  })

  test('get no credentials of the registry', async () => {
    const mirror = await host((_request, response) => response.writeHead(401, { 'www-authenticate': 'Basic realm="give me"' }).end())
    const registry = await host((_request, response) => response.end(manifest))
    await client({ hosts: { [registry.host]: { mirrors: [mirror.url] } }, credentials: staticCredentials({ [registry.host]: { username: 'a', password: 'b' } }) }).manifest(at(registry))
    expect(mirror.requests.every(({ headers }) => headers.authorization === undefined)).toBe(true)
  })
})

describe('answers that are too large or of the wrong kind', () => {
  test('a manifest over 4 MiB, an endless one, and one that is no JSON are refused', async () => {
    const registry = await host((request, response) => {
      if (request.url!.endsWith('/announced')) response.writeHead(200, { 'content-length': 5_000_000 }).end(Buffer.alloc(5_000_000))
      else if (request.url!.endsWith('/endless')) {
        const timer = setInterval(() => response.write(Buffer.alloc(1_000_000)), 1)
        response.on('close', () => clearInterval(timer))
      } else response.end('<html>')
    })
    const one = client()
    for (const tag of ['announced', 'endless']) await expect(one.manifest({ ...at(registry), tag })).rejects.toMatchObject({ code: 'LIMIT_EXCEEDED' })
    await expect(one.resolve({ ...at(registry), tag: 'html' })).rejects.toMatchObject({ code: 'INVALID_DATA', message: expect.stringContaining('is not JSON') })
  })

  test('pages that lead to another host are not followed', async () => {
    const other = await host((_request, response) => response.end('{"tags": ["stolen"]}'))
    const registry = await host((_request, response) => response.writeHead(200, { link: `<${other.url}/v2/x>; rel="next"` }).end('{"tags": ["a", "..bad", 7]}'))
    const tags: string[] = []
    await expect((async () => {
      for await (const tag of client().tags(at(registry))) tags.push(tag)
    })()).rejects.toMatchObject({ code: 'INVALID_DATA' })
    expect(tags).toEqual(['a'])
    expect(other.requests).toHaveLength(0)
  })
})

const entry = (text: string, artifactType: string) => ({ mediaType: 'application/vnd.oci.image.manifest.v1+json', digest: digestOf(text), size: text.length, artifactType })

describe('a registry with the referrers API', () => {
  const subject = digestOf('subject')
  test('is asked page by page, and filtered though it does not filter itself', async () => {
    const registry = await host((request, response) => {
      const last = request.url!.includes('page=2')
      response.writeHead(200, { 'content-type': 'application/vnd.oci.image.index.v1+json', ...(!last && { link: `</v2/team/app/referrers/${subject}?page=2>; rel="next"` }) })
      response.end(JSON.stringify({ schemaVersion: 2, manifests: last ? [entry('c', 'x/wanted'), entry('a', 'x/wanted')] : [entry('a', 'x/wanted'), entry('b', 'x/other')] }))
    })
    expect((await client().referrers(at(registry), subject, 'x/wanted')).map(({ digest }) => digest)).toEqual([digestOf('a'), digestOf('c')])
    expect(registry.requests[0].url).toBe(`/v2/team/app/referrers/${subject}?artifactType=x%2Fwanted`)
    expect(registry.requests).toHaveLength(2)
  })
})

describe('TLS with a private authority', () => {
  let directory: string
  let certificates: ReturnType<typeof makeCertificates>
  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'skimmer-tls-'))
    certificates = makeCertificates(directory)
  })
  afterAll(() => rm(directory, { recursive: true, force: true }))
  const secure = (answer: Answer) => host(answer, { cert: readFileSync(certificates.certificate, 'utf8'), key: readFileSync(certificates.key, 'utf8') })

  test('is refused until the authority is named, and the error says so', async () => {
    const registry = await secure((_request, response) => response.end(bytes))
    await expect(readAll(client().blob(at(registry), blob))).rejects.toMatchObject({ code: 'UNAVAILABLE', message: expect.stringMatching(/not trusted.*"ca"/) })
    expect(registry.requests).toHaveLength(0)
    for (const settings of [{ ca: certificates.ca }, { ca: readFileSync(certificates.ca, 'utf8') }, { insecureSkipVerify: true }]) {
      expect((await readAll(client({ hosts: { [registry.host]: settings } }).blob(at(registry), blob))).equals(bytes)).toBe(true)
    }
  })

  test('is never left for plain HTTP by a redirect', async () => {
    const plain = await host((_request, response) => response.end(bytes))
    const registry = await secure((_request, response) => response.writeHead(307, { location: `${plain.url}/x` }).end())
    await expect(readAll(client({ hosts: { [registry.host]: { ca: certificates.ca } } }).blob(at(registry), blob))).rejects.toMatchObject({ code: 'INVALID_DATA', message: expect.stringContaining('plain HTTP') })
    expect(plain.requests).toHaveLength(0)
  })

  test('a plain registry that was meant to be secure says what to set', async () => {
    const registry = await host((_request, response) => response.end(bytes))
    await expect(client({ hosts: { [registry.host]: { plainHttp: false } } }, { attempts: 1 }).manifest(at(registry))).rejects.toMatchObject({ code: 'UNAVAILABLE', message: expect.stringContaining('plainHttp') })
  })

  test('foreign layers are fetched from their URLs only where that is allowed', async () => {
    const storage = await secure((_request, response) => response.end(bytes))
    const registry = await host((_request, response) => response.writeHead(404).end())
    const foreign = { ...blob, urls: [`${storage.url}/layer`] }
    await expect(readAll(client({ hosts: { [storage.host]: { ca: certificates.ca } } }).blob(at(registry), foreign))).rejects.toMatchObject({ code: 'NOT_FOUND' })
    expect(storage.requests).toHaveLength(0)
    const allowed = client({ hosts: { [storage.host]: { ca: certificates.ca }, [registry.host]: { allowForeignUrls: true } } })
    expect((await readAll(allowed.blob(at(registry), foreign))).equals(bytes)).toBe(true)
  })
})
