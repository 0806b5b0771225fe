// Registry blobs through the supernode: once for all whom the registry lets have them, right or not at all.
import { createHash, randomBytes } from 'node:crypto'
import { readdir, readFile, truncate, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { afterEach, describe, expect, test } from '@jest/globals'
import { anonymous, staticCredentials } from '../../oci/credentials.ts'
import type { CredentialSource } from '../../oci/credentials.ts'
import { parseReference } from '../../oci/reference.ts'
import { RegistryClient } from '../../oci/registry-client.ts'
import { blockBytesFor } from '../../peer/file-blocks.ts'
import type { ControlRequest } from '../../peer/control.ts'
import type { Supernode } from '../../supernode/supernode.ts'
import { haveRegistry, startRegistry } from '../oci/registry-fixture.ts'
import type { RunningRegistry } from '../oci/registry-fixture.ts'
import { Cleanup, countingProxy, joinNode, startPeer, startSupernode, temporaryDirectory, until } from './lab.ts'
import { StreamCall, contentOf, sha256 } from './stream-caller.ts'

const withRegistry = haveRegistry ? describe : describe.skip
const cleanup = new Cleanup()
afterEach(() => cleanup.run())

const MIB = 1024 * 1024
/** Blocks of blobs of these sizes. */
const BLOCK = blockBytesFor(MIB)
const login = { username: 'jo', password: 'secret-word' }
const handed = { username: 'jo', secret: 'secret-word' }

async function registry(options: Parameters<typeof startRegistry>[0] = {}): Promise<RunningRegistry> {
  const running = await startRegistry(options)
  cleanup.add(() => running.stop())
  return running
}

async function pushed(host: string, bytes: Buffer, credentials: CredentialSource = anonymous): Promise<string> {
  const client = new RegistryClient({ credentials })
  try {
    return (await client.pushBlob(parseReference(`${host}/team/app`), bytes)).digest
  } finally {
    await client.close()
  }
}

/** Where docker-registry keeps a blob's bytes. */
const fileOf = ({ directory }: RunningRegistry, digest: string): string => {
  const hex = digest.slice('sha256:'.length)
  return join(directory, 'storage/docker/registry/v2/blobs/sha256', hex.slice(0, 2), hex, 'data')
}

async function caller(supernode: Supernode) {
  const node = await joinNode(cleanup, supernode)
  return { ...node, open: (request: ControlRequest<'blob.open'>) => new StreamCall(node.control, 'blob.open', request) }
}

withRegistry('a blob (needs docker-registry)', () => {
  test('is downloaded once for all, under its own name, and served when the registry is gone to who could read it', async () => {
    const origin = await registry()
    const proxy = await countingProxy(cleanup, origin.port)
    const bytes = randomBytes(3 * MIB + 77)
    const digest = await pushed(origin.host, bytes)
    const supernode = await startSupernode(cleanup, { accessTtlMs: 0 })
    const nodes = await Promise.all([1, 2, 3].map(() => caller(supernode)))
    const request = { reference: `${proxy.host}/team/app`, digest }
    const calls = nodes.map(node => node.open(request))
    for (const call of calls) expect(await call.answer).toEqual({ length: bytes.length, parts: 1, digest })
    expect(calls[0].head).toEqual({ version: digest, length: bytes.length })
    expect(calls[0].parts).toMatchObject([{ resource: `blob:${digest}`, offset: 0, length: bytes.length, last: true }])
    expect(sha256(await contentOf(supernode, calls[0]))).toBe(digest.slice(7))
    expect(proxy.received()).toBeLessThan(bytes.length + 30_000)
    proxy.kill()
    expect(await nodes[0].open(request).answer).toMatchObject({ digest })
    await expect(nodes[0].open({ ...request, reference: `${proxy.host}/team/other` }).answer).rejects.toMatchObject({ code: 'UNAVAILABLE' })
    await supernode.parts.store.get(`blob:${digest}`)!.prove({ raw: false })
  })

  test('that is private goes to whom the registry lets have it, asked with his own credentials alone', async () => {
    const origin = await registry({ auth: login })
    const bytes = randomBytes(MIB)
    const digest = await pushed(origin.host, bytes, staticCredentials({ [origin.host]: login }))
    const directory = await temporaryDirectory(cleanup)
    const credentialsFile = join(directory, 'config.json')
    await writeFile(credentialsFile, JSON.stringify({ auths: { [origin.host]: { auth: Buffer.from('jo:secret-word').toString('base64') } } }))
    const supernode = await startSupernode(cleanup, { registry: { credentialsFile } })
    const [friend, thief] = [await caller(supernode), await caller(supernode)]
    const request = { reference: `${origin.host}/team/app`, digest }
    await friend.open({ ...request, credentials: handed }).answer
    // The supernode could read it; that does not help who names credentials that are refused.
    const refused = thief.open({ ...request, credentials: { username: 'jo', secret: 'guessed' } })
    await expect(refused.answer).rejects.toMatchObject({ code: 'UNAUTHORIZED' })
    expect(refused.order).toEqual([])
    await expect(thief.control.call('grant.renew', { resources: [`blob:${digest}`] })).rejects.toMatchObject({ code: 'FORBIDDEN' })
    expect((await friend.control.call('grant.renew', { resources: [`blob:${digest}`] })).grant).toBeTruthy()
    // A node that names none asks as the supernode, as with images.
    await thief.open(request).answer
  })

  test('is given to who names another registry only after that one has sent it', async () => {
    const guarded = await registry({ auth: login })
    const bytes = randomBytes(2 * MIB)
    const digest = await pushed(guarded.host, bytes, staticCredentials({ [guarded.host]: login }))
    // Says that it has everything, and sends nothing of the kind.
    const liar = createServer((request, response) => {
      response.writeHead(200, { 'content-length': bytes.length, 'docker-content-digest': digest })
      if (request.method === 'HEAD') response.end()
      else response.end(Buffer.alloc(bytes.length))
    })
    await new Promise<void>(resolve => { liar.listen(0, '127.0.0.1', resolve) })
    cleanup.add(() => new Promise(resolve => { liar.closeAllConnections(); liar.close(resolve) }))
    const supernode = await startSupernode(cleanup)
    const [friend, thief] = [await caller(supernode), await caller(supernode)]
    await friend.open({ reference: `${guarded.host}/team/app`, digest, credentials: handed }).answer
    const attempt = thief.open({ reference: `127.0.0.1:${(liar.address() as AddressInfo).port}/team/app`, digest })
    await expect(attempt.answer).rejects.toMatchObject({ code: 'DIGEST_MISMATCH' })
    expect(attempt.order).toEqual([])

    const honest = await registry()
    await pushed(honest.host, bytes)
    const proxy = await countingProxy(cleanup, honest.port)
    const reference = `${proxy.host}/team/app`
    await thief.open({ reference, digest }).answer
    expect(proxy.received()).toBeGreaterThan(bytes.length)
    const received = proxy.received()
    await thief.open({ reference, digest }).answer
    expect(proxy.received() - received).toBeLessThan(5_000)
    expect(supernode.parts.store.list()).toHaveLength(1)
  })

  test('that is wrong at the registry is an error before its last hash, kept by nobody, and right once the registry is', async () => {
    const origin = await registry()
    const bytes = randomBytes(3 * MIB)
    const digest = await pushed(origin.host, bytes)
    const wrong = Buffer.from(bytes)
    wrong[2 * MIB + 5] ^= 1
    await writeFile(fileOf(origin, digest), wrong)
    const supernode = await startSupernode(cleanup)
    const node = await caller(supernode)
    const call = node.open({ reference: `${origin.host}/team/app`, digest })
    await expect(call.answer).rejects.toMatchObject({ code: 'DIGEST_MISMATCH' })
    expect(call.told).toBeLessThan(3 * MIB / BLOCK)
    await until(() => supernode.parts.store.list().length === 0)
    expect(supernode.parts.quarantine.has(`blob:${digest}`)).toBe(false)
    // A crowd does not make it download the wrong bytes again and again; another repository is another matter.
    await expect(node.open({ reference: `${origin.host}/team/app`, digest }).answer).rejects.toMatchObject({ code: 'DIGEST_MISMATCH' })
    const other = await registry()
    await pushed(other.host, bytes)
    expect(await node.open({ reference: `${other.host}/team/app`, digest }).answer).toMatchObject({ digest })
  })

  test('that came half before a restart is gone on with and checked as a whole', async () => {
    const origin = await registry()
    const proxy = await countingProxy(cleanup, origin.port)
    const bytes = randomBytes(8 * MIB)
    const digest = await pushed(origin.host, bytes)
    const dataDir = await temporaryDirectory(cleanup)
    const first = await startSupernode(cleanup, { dataDir })
    // What is there of it: as if the download had been broken off after 5 MiB.
    const whole = (await caller(first)).open({ reference: `${proxy.host}/team/app`, digest })
    await whole.answer
    await first.stop()
    const packs = join(dataDir, 'store/packs')
    const [pack] = (await readdir(packs)).filter(name => /^[0-9a-f]+$/.test(name))
    await truncate(join(packs, pack), 5 * MIB)
    const state = await readFile(join(packs, `${pack}.state`))
    await writeFile(join(packs, `${pack}.state`), state.fill(0, 5 * MIB / BLOCK))

    const received = proxy.received()
    const second = await startSupernode(cleanup, { dataDir })
    const call = (await caller(second)).open({ reference: `${proxy.host}/team/app`, digest })
    expect(await call.answer).toMatchObject({ digest })
    expect(sha256(await contentOf(second, call))).toBe(digest.slice(7))
    expect(proxy.received() - received).toBeLessThan(3 * MIB + 30_000)
  })

  test('comes to a real peer, which proves it', async () => {
    const origin = await registry()
    const bytes = randomBytes(5 * MIB)
    const digest = await pushed(origin.host, bytes)
    const supernode = await startSupernode(cleanup)
    const { downloads } = await startPeer(cleanup, supernode)
    const download = await downloads.open({ key: `blob:${digest}`, ask: { operation: 'blob.open', request: { reference: `${origin.host}/team/app`, digest } }, digest })
    const hash = createHash('sha256')
    for await (const chunk of download.read()) hash.update(chunk)
    expect(`sha256:${hash.digest('hex')}`).toBe(digest)
    download.release()
  })

  test('that is not there, or no blob, says so', async () => {
    const origin = await registry()
    const supernode = await startSupernode(cleanup)
    const node = await caller(supernode)
    await expect(node.open({ reference: `${origin.host}/team/app`, digest: `sha256:${sha256(Buffer.from('nothing'))}` }).answer).rejects.toMatchObject({ code: 'NOT_FOUND' })
    await expect(node.open({ reference: 'NOT A REFERENCE', digest: `sha256:${sha256(Buffer.from('nothing'))}` }).answer).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  })
})
