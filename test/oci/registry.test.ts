// Pulling from and pushing to a real docker-registry.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Registry as MetricsRegistry } from 'prom-client'
import { chainId } from '../../oci/chain-id.ts'
import { staticCredentials } from '../../oci/credentials.ts'
import { digestOf } from '../../oci/digest.ts'
import { loadDockerConfig } from '../../oci/docker-config.ts'
import { MEDIA_TYPES } from '../../oci/media-types.ts'
import { parseReference } from '../../oci/reference.ts'
import { RegistryClient } from '../../oci/registry-client.ts'
import { pushImage, readAll } from './image-fixture.ts'
import { haveRegistry, startRegistry } from './registry-fixture.ts'
import type { RunningRegistry } from './registry-fixture.ts'

const withRegistry = haveRegistry ? describe : describe.skip
if (!haveRegistry) test.skip('docker-registry is not installed: apt-get install docker-registry', () => {})

async function withClient<Result>(client: RegistryClient, use: (client: RegistryClient) => Promise<Result>): Promise<Result> {
  try {
    return await use(client)
  } finally {
    await client.close()
  }
}

const dockerConfig = (host: string, login: string) => JSON.stringify({ auths: { [`http://${host}`]: { auth: Buffer.from(login).toString('base64') } } })

withRegistry('an open registry on loopback, without any settings', () => {
  let registry: RunningRegistry
  let client: RegistryClient
  const metrics = new MetricsRegistry()
  beforeAll(async () => {
    registry = await startRegistry()
    client = new RegistryClient({ metrics })
  })
  afterAll(async () => {
    await client?.close()
    await registry?.stop()
  })

  test('what was pushed is resolved, with every digest, and its layers read back byte for byte', async () => {
    const reference = parseReference(`${registry.host}/team/app:1.0`)
    const tars = [randomBytes(3_000_000), randomBytes(10_000), Buffer.alloc(0)]
    const made = await pushImage(client, reference, tars)
    const resolved = await client.resolve(reference, { platform: { os: 'linux', architecture: 'amd64' } })
    expect(resolved.manifestDigest).toBe(made.manifestDigest)
    expect(resolved.manifestBytes.equals(made.manifestBytes)).toBe(true)
    expect(resolved.indexDigest).toBeUndefined()
    expect(resolved.config.diffIds).toEqual(tars.map((tar) => digestOf(tar)))
    expect(chainId(resolved.config.diffIds)).toMatch(/^sha256:/)
    for (const [position, layer] of resolved.manifest.layers.entries()) {
      expect((await readAll(client.blob(reference, layer))).equals(made.layers[position].bytes)).toBe(true)
    }
    expect(await metrics.getSingleMetricAsString('skimmer_oci_requests_total')).toContain('outcome="ok"')
  })

  test('a part of a blob is only that part', async () => {
    const reference = parseReference(`${registry.host}/team/parts:1`)
    const bytes = randomBytes(500_000)
    const blob = await client.pushBlob(reference, bytes)
    expect((await readAll(client.blob(reference, blob, { offset: 1000, length: 4096 }))).equals(bytes.subarray(1000, 5096))).toBe(true)
    expect((await readAll(client.blob(reference, blob, { offset: 499_999 }))).equals(bytes.subarray(499_999))).toBe(true)
    expect(() => client.blob(reference, blob, { offset: 499_999, length: 2 })).toThrow(/not inside the blob/)
  })

  test('a stream of known digest and size is pushed', async () => {
    const reference = parseReference(`${registry.host}/team/stream:1`)
    const bytes = randomBytes(1_000_000)
    async function* stream() {
      for (let at = 0; at < bytes.length; at += 70_000) yield bytes.subarray(at, at + 70_000)
    }
    const digest = digestOf(bytes)
    await client.pushBlob(reference, { stream: stream(), size: bytes.length }, digest)
    expect(await client.headBlob(reference, digest)).toEqual({ size: bytes.length })
    expect((await readAll(client.blob(reference, { digest, size: bytes.length }))).equals(bytes)).toBe(true)
  })

  test('an index leads to the image of the platform that is asked for', async () => {
    const repository = parseReference(`${registry.host}/team/multi:latest`)
    const entries = []
    for (const architecture of ['amd64', 'arm64']) {
      const made = await pushImage(client, { ...repository, tag: architecture }, [Buffer.from(`for ${architecture}`)], { os: 'linux', architecture })
      entries.push({ mediaType: MEDIA_TYPES.ociManifest, digest: made.manifestDigest, size: made.manifestBytes.length, platform: { os: 'linux', architecture } })
    }
    const indexDigest = await client.pushManifest(repository, Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests: entries })), MEDIA_TYPES.ociIndex)
    for (const [position, architecture] of ['amd64', 'arm64'].entries()) {
      const resolved = await client.resolve(repository, { platform: { os: 'linux', architecture } })
      expect(resolved.indexDigest).toBe(indexDigest)
      expect(resolved.manifestDigest).toBe(entries[position].digest)
      expect(resolved.config.architecture).toBe(architecture)
    }
    await expect(client.resolve(repository, { platform: { os: 'linux', architecture: 's390x' } })).rejects.toMatchObject({ code: 'NOT_FOUND', message: expect.stringContaining('linux/amd64, linux/arm64') })
  })

  test('tags come page by page; a missing tag, blob or repository is NOT_FOUND and says what to check', async () => {
    const repository = parseReference(`${registry.host}/team/tags:x`)
    for (const tag of ['a', 'b', 'c', 'd', 'e']) await pushImage(client, { ...repository, tag }, [Buffer.from('x')])
    const tags = []
    for await (const tag of client.tags(repository, { pageSize: 2 })) tags.push(tag)
    expect(tags.toSorted()).toEqual(['a', 'b', 'c', 'd', 'e'])
    await expect(client.resolve({ ...repository, tag: 'nope' })).rejects.toMatchObject({ code: 'NOT_FOUND', message: expect.stringContaining('team/tags:nope') })
    expect(await client.headManifest({ ...repository, tag: 'nope' })).toBeUndefined()
    expect(await client.headManifest({ ...repository, tag: 'a' })).toMatchObject({ mediaType: MEDIA_TYPES.ociManifest, digest: expect.stringMatching(/^sha256:/) })
    const absent = { digest: digestOf('absent'), size: 6 }
    expect(await client.headBlob(repository, absent.digest)).toBeUndefined()
    await expect(readAll(client.blob(repository, absent))).rejects.toMatchObject({ code: 'NOT_FOUND', message: expect.stringContaining(absent.digest) })
  })

  test('a blob whose size the manifest lies about is refused', async () => {
    const reference = parseReference(`${registry.host}/team/lies:1`)
    const { digest, size } = await client.pushBlob(reference, randomBytes(1000))
    for (const lie of [size - 1, size + 1]) await expect(readAll(client.blob(reference, { digest, size: lie }))).rejects.toMatchObject({ code: 'DIGEST_MISMATCH' })
  })

  const withSkopeo = spawnSync('skopeo', ['--version'], { stdio: 'ignore' }).status === 0 ? test : test.skip
  withSkopeo('an image that skopeo turned into Docker schema 2 is the same image (skipped without skopeo)', async () => {
    const reference = parseReference(`${registry.host}/team/oci:1`)
    const made = await pushImage(client, reference, [randomBytes(50_000)])
    const words = ['copy', '--src-tls-verify=false', '--dest-tls-verify=false', '--format', 'v2s2', `docker://${registry.host}/team/oci:1`, `docker://${registry.host}/team/docker:1`]
    const copied = spawnSync('skopeo', ['--insecure-policy', ...words], { encoding: 'utf8' })
    expect({ status: copied.status, stderr: copied.stderr }).toMatchObject({ status: 0 })
    const resolved = await client.resolve({ ...reference, repository: 'team/docker' }, { platform: { os: 'linux', architecture: 'amd64' } })
    expect(resolved.manifest.mediaType).toBe(MEDIA_TYPES.dockerManifest)
    expect(resolved.manifest.layers[0]).toMatchObject({ mediaType: MEDIA_TYPES.dockerLayerGzip, digest: made.layers[0].digest })
    expect(resolved.config.diffIds).toEqual([made.layers[0].diffId])
  })

  test('what refers to a manifest is found, though this registry has no referrers API', async () => {
    const reference = parseReference(`${registry.host}/team/referred:1`)
    const made = await pushImage(client, reference, [Buffer.from('subject')])
    expect(await client.referrers(reference, made.manifestDigest)).toEqual([])
    const empty = await client.pushBlob(reference, Buffer.from('{}'))
    const digests = []
    for (const artifactType of ['application/vnd.example.one', 'application/vnd.example.two']) {
      const artifact = {
        schemaVersion: 2, mediaType: MEDIA_TYPES.ociManifest, artifactType, config: { mediaType: MEDIA_TYPES.ociEmpty, ...empty }, layers: [],
        subject: { mediaType: MEDIA_TYPES.ociManifest, digest: made.manifestDigest, size: made.manifestBytes.length },
      }
      const bytes = Buffer.from(JSON.stringify(artifact))
      digests.push(await client.pushManifest({ ...reference, tag: undefined, digest: digestOf(bytes) }, bytes, MEDIA_TYPES.ociManifest))
    }
    expect((await client.referrers(reference, made.manifestDigest)).map((entry) => entry.digest).toSorted()).toEqual(digests.toSorted())
    expect((await client.referrers(reference, made.manifestDigest, 'application/vnd.example.two')).map((entry) => entry.digest)).toEqual([digests[1]])
  })

  test('the caller may give up', async () => {
    await expect(client.manifest(parseReference(`${registry.host}/team/app:1.0`), { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ABORTED' })
    const reference = parseReference(`${registry.host}/team/abort:1`)
    const blob = await client.pushBlob(reference, randomBytes(8_000_000))
    const giveUp = new AbortController()
    await expect(
      (async () => {
        for await (const _chunk of client.blob(reference, blob, { signal: giveUp.signal })) giveUp.abort()
      })(),
    ).rejects.toMatchObject({ code: 'ABORTED' })
  })
})

withRegistry('a registry with a password', () => {
  let registry: RunningRegistry
  let directory: string
  const password = 'pass:word with colons'
  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'skimmer-oci-'))
    registry = await startRegistry({ auth: { username: 'ada', password } })
  })
  afterAll(async () => {
    await registry?.stop()
    await rm(directory, { recursive: true, force: true })
  })


  test('lets the right credentials in, for pushing and pulling', async () => {
    await withClient(new RegistryClient({ credentials: staticCredentials({ [registry.host]: { username: 'ada', password } }) }), async (client) => {
      const reference = parseReference(`${registry.host}/private/app:1`)
      await client.ping(registry.host)
      const made = await pushImage(client, reference, [Buffer.from('secret layer')])
      expect((await client.resolve(reference, { platform: { os: 'linux', architecture: 'amd64' } })).manifestDigest).toBe(made.manifestDigest)
    })
  })

  test('refuses none or wrong ones, and the error says what to do without telling them', async () => {
    const reference = parseReference(`${registry.host}/private/app:1`)
    await withClient(new RegistryClient(), async (client) => {
      await expect(client.resolve(reference)).rejects.toMatchObject({ code: 'UNAUTHORIZED', message: expect.stringContaining(`docker login ${registry.host}`) })
    })
    await withClient(new RegistryClient({ credentials: staticCredentials({ [registry.host]: { username: 'ada', password: 'wrong-secret' } }) }), async (client) => {
      const error = await client.resolve(reference).catch((thrown: Error) => thrown)
      expect(error).toMatchObject({ code: 'UNAUTHORIZED', message: expect.stringContaining('private/app') })
      expect(JSON.stringify(error) + (error as Error).message).not.toMatch(/wrong-secret|d3Jvbmc/)
    })
  })

  test('a docker config that is corrected works without a restart', async () => {
    const path = join(directory, 'config.json')
    await writeFile(path, dockerConfig(registry.host, 'ada:outdated'))
    await withClient(new RegistryClient({ credentials: loadDockerConfig(path) }), async (client) => {
      await expect(client.ping(registry.host)).rejects.toMatchObject({ code: 'UNAUTHORIZED' })
      await writeFile(path, dockerConfig(registry.host, `ada:${password}`))
      await client.ping(registry.host)
    })
  })
})
