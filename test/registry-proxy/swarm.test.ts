// Proxies of a datacenter: a blob leaves the registry once, layers that are here as layers are served from there, and slow clients cost nothing.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync, writeSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import { fixedBlockTable } from '../../image/block-table.ts'
import { staticCredentials } from '../../oci/credentials.ts'
import { digestOf } from '../../oci/digest.ts'
import { MEDIA_TYPES } from '../../oci/media-types.ts'
import { parseReference } from '../../oci/reference.ts'
import { RegistryClient } from '../../oci/registry-client.ts'
import { StreamFill } from '../../peer/stream-fill.ts'
import { Supernode } from '../../supernode/supernode.ts'
import { pushImage } from '../oci/image-fixture.ts'
import type { MadeImage } from '../oci/image-fixture.ts'
import { haveRegistry, startRegistry } from '../oci/registry-fixture.ts'
import type { RunningRegistry } from '../oci/registry-fixture.ts'
import { startProxy } from './proxy-fixture.ts'
import type { ProxyFixture } from './proxy-fixture.ts'

const maybe = haveRegistry ? describe : describe.skip
const USER = { username: 'anna', password: 'a long secret' }
const BASIC = `Basic ${Buffer.from(`${USER.username}:${USER.password}`).toString('base64')}`
const gets = async (registry: RunningRegistry, digest: string): Promise<string[]> => (await registry.log()).split('\n').filter((line) => line.includes('"GET /v2/') && line.includes(`/blobs/${digest}`) && !line.includes('level='))

maybe('a supernode and three nodes', () => {
  const directory = mkdtempSync(join(tmpdir(), 'skimmer-proxies-'))
  let registry: RunningRegistry
  let supernode: Supernode
  let proxies: ProxyFixture[] = []
  let image: MadeImage

  beforeAll(async () => {
    registry = await startRegistry({ auth: USER })
    supernode = await Supernode.start(
      { dataDir: directory, listen: ['/ip4/127.0.0.1/tcp/0'], http: { host: '127.0.0.1', port: 0 }, cacheBytes: 2 ** 28, limits: { indexerThreads: 1 }, registry: { credentialsFile: join(directory, '..', 'no-such-credentials.json') } },
      { logger: pino({ level: process.env.TEST_LOG ?? 'silent' }) },
    )
    const client = new RegistryClient({ credentials: staticCredentials({ [registry.host]: USER }) })
    image = await pushImage(client, parseReference(`${registry.host}/private/app:1`), [randomBytes(9_000_000)])
    await client.close()
    proxies = await Promise.all([1, 2, 3].map(() => startProxy({ supernodes: [supernode.addrs[0]] })))
  }, 60_000)
  afterAll(async () => {
    for (const proxy of proxies) await proxy.stop()
    await supernode?.stop()
    await registry?.stop()
    rmSync(directory, { recursive: true, force: true })
  }, 60_000)
  const blob = (proxy: ProxyFixture, digest: string, authorization?: string): Promise<Response> =>
    fetch(`${proxy.url}/v2/private/app/blobs/${digest}?ns=${registry.host}`, { headers: authorization === undefined ? {} : { authorization } })

  test('six clients on three nodes at once: the blob leaves the registry once', async () => {
    const { digest, bytes } = image.layers[0]
    const answers = await Promise.all([...proxies, ...proxies].map(async (proxy) => Buffer.from(await (await blob(proxy, digest, BASIC)).arrayBuffer())))
    for (const answer of answers) expect(digestOf(answer)).toBe(digest)
    expect(answers[0].length).toBe(bytes.length)
    expect(await gets(registry, digest)).toHaveLength(1)
  }, 60_000)

  test('and is not given to somebody without a login, though it is on every machine', async () => {
    for (const proxy of proxies) expect((await blob(proxy, image.layers[0].digest)).status).toBe(401)
  })
})

maybe('one node', () => {
  let registry: RunningRegistry
  let proxy: ProxyFixture
  const client = new RegistryClient()

  beforeAll(async () => {
    registry = await startRegistry()
    proxy = await startProxy({ options: { clientIdleMs: 300 } })
  })
  afterAll(async () => {
    await proxy?.stop()
    await registry?.stop()
    await client.close()
  })

  test('an uncompressed layer that is here as a layer is served from there, bit for bit', async () => {
    const tar = randomBytes(2_500_000)
    const digest = digestOf(tar)
    const reference = parseReference(`${registry.host}/team/uncompressed:1`)
    await client.pushBlob(reference, tar)
    const layer = await proxy.store.add('layer:uncompressed', fixedBlockTable(tar.length, 2 ** 20), { open: true, diffId: digest })
    const fill = new StreamFill(layer)
    await fill.write(tar)
    await fill.finish()
    await layer.prove()
    const path = `${proxy.url}/v2/team/uncompressed/blobs/${digest}?ns=${registry.host}`
    const whole = Buffer.from(await (await fetch(path)).arrayBuffer())
    expect(whole.equals(tar)).toBe(true)
    const part = await fetch(path, { headers: { range: 'bytes=1000000-1999999' } })
    expect(Buffer.from(await part.arrayBuffer()).equals(tar.subarray(1_000_000, 2_000_000))).toBe(true)
    expect(await gets(registry, digest)).toEqual([])
    expect(proxy.store.get(`blob:${digest}`)).toBeUndefined()
    expect(layer.pinned).toBe(false)
    // The disk rots under it: nothing wrong looks whole, and the next client gets the blob another way.
    writeSync(layer.shared().packFd, Buffer.from('rotten'), 0, 6, 2_400_000)
    await expect(fetch(path).then((answer) => answer.arrayBuffer())).rejects.toThrow()
    expect(Buffer.from(await (await fetch(path)).arrayBuffer()).equals(tar)).toBe(true)
  })

  test('a blob that rots on the disk never looks whole, and only its damaged block is fetched again', async () => {
    const made = await pushImage(client, parseReference(`${registry.host}/team/rotten:1`), [randomBytes(2_500_000)])
    const { digest, bytes } = made.layers[0]
    const ask = (range?: string): Promise<Response> => fetch(`${proxy.url}/v2/team/rotten/blobs/${digest}?ns=${registry.host}`, { headers: range === undefined ? {} : { range } })
    const read = async (): Promise<Buffer> => Buffer.from(await (await ask()).arrayBuffer())
    expect((await read()).equals(bytes)).toBe(true)
    const resource = proxy.store.get(`blob:${digest}`)!
    while (!resource.proved) await new Promise((resolve) => setTimeout(resolve, 20))
    const lost: number[] = []
    resource.on('lost', (block) => lost.push(block))
    writeSync(resource.shared().packFd, Buffer.from('rotten'), 0, 6, 2_400_000)
    await expect(read()).rejects.toThrow()
    // Who goes on from where the connection broke would keep what is wrong.
    const part = await ask('bytes=2499000-')
    expect([part.status, await part.json()]).toMatchObject([502, { errors: [{ message: expect.stringContaining('ask for the whole') }] }])
    expect((await read()).equals(bytes)).toBe(true)
    expect(lost).toEqual([resource.table.count - 1])
    expect((await ask('bytes=2499000-')).status).toBe(206)
  })

  test('a client that takes nothing loses its connection, and holds nothing', async () => {
    const made = await pushImage(client, parseReference(`${registry.host}/team/slow:1`), [randomBytes(24_000_000)])
    const { digest } = made.layers[0]
    const [host, port] = proxy.host.split(':')
    const socket = connect(Number(port), host)
    const closed = new Promise((resolve) => socket.once('close', resolve))
    socket.on('error', () => {})
    await new Promise((resolve) => socket.once('connect', resolve))
    socket.pause()
    socket.write(`GET /v2/team/slow/blobs/${digest}?ns=${registry.host} HTTP/1.1\r\nhost: proxy\r\n\r\n`)
    const count = async (): Promise<number> => await proxy.count('blob', 'gone')
    for (let tries = 0; (await count()) === 0 && tries < 600; tries++) await new Promise((resolve) => setTimeout(resolve, 50))
    expect(await count()).toBe(1)
    socket.resume()
    await closed
    // Others are not bothered.
    const answer = await fetch(`${proxy.url}/v2/team/slow/blobs/${digest}?ns=${registry.host}`)
    expect(digestOf(Buffer.from(await answer.arrayBuffer()))).toBe(digest)
  }, 60_000)

  test('the first bytes come before the last ones left the registry', async () => {
    const made = await pushImage(client, parseReference(`${registry.host}/team/early:1`), [randomBytes(24_000_000)])
    const { digest, size } = made.layers[0]
    const answer = await fetch(`${proxy.url}/v2/team/early/blobs/${digest}?ns=${registry.host}`)
    const reader = answer.body!.getReader()
    const first = await reader.read()
    expect(first.value!.length).toBeGreaterThan(0)
    expect(proxy.store.get(`blob:${digest}`)!.storedBytes).toBeLessThan(size)
    let length = first.value!.length
    for (let more = await reader.read(); !more.done; more = await reader.read()) length += more.value.length
    expect(length).toBe(size)
  }, 60_000)

  test('what is asked for in Accept decides, also when another kind is here', async () => {
    const made = await pushImage(client, parseReference(`${registry.host}/team/kinds:1`), [randomBytes(100)])
    const status = async (accept?: string): Promise<number> => (await fetch(`${proxy.url}/v2/team/kinds/manifests/${made.manifestDigest}?ns=${registry.host}`, { headers: accept === undefined ? {} : { accept } })).status
    const straight = async (accept: string): Promise<number> => (await fetch(`${registry.url}/v2/team/kinds/manifests/${made.manifestDigest}`, { headers: { accept } })).status
    expect(await status(MEDIA_TYPES.ociManifest)).toBe(200)
    expect(await status(MEDIA_TYPES.dockerManifest)).toBe(await straight(MEDIA_TYPES.dockerManifest))
    expect(await status('*/*')).toBe(200)
  })
})
