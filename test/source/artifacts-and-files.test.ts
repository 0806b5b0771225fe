// oci:// against a real registry, and file:// on this machine.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { randomBytes } from 'node:crypto'
import { appendFile, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { staticCredentials } from '../../oci/credentials.ts'
import { parseReference } from '../../oci/reference.ts'
import { RegistryClient } from '../../oci/registry-client.ts'
import { listIndex } from '../../source/list-index.ts'
import { parseOciUrl } from '../../source/oci-source.ts'
import { parallelRanges } from '../../source/parallel-ranges.ts'
import { resumable } from '../../source/resumable.ts'
import { haveRegistry, startRegistry } from '../oci/registry-fixture.ts'
import type { RunningRegistry } from '../oci/registry-fixture.ts'
import { afterTest, bytesOf, read, source, sources } from './reading.ts'

const describeRegistry = haveRegistry ? describe : describe.skip
const weights = randomBytes(1_000_000)
const readme = Buffer.from('# read me\n')
const auth = { username: 'me', password: 'p@ss:word' }

describeRegistry('an artifact in a registry', () => {
  let registry: RunningRegistry
  let digest: string
  beforeAll(async () => {
    registry = await startRegistry({ auth })
    const client = new RegistryClient({ credentials: staticCredentials({ [registry.host]: auth }) })
    const push = async (tag: string, files: [string | undefined, Buffer][]): Promise<void> => {
      const reference = parseReference(`${registry.host}/team/model:${tag}`)
      const config = await client.pushBlob(reference, Buffer.from('{}'))
      const layers = []
      for (const [title, content] of files) {
        layers.push({ mediaType: 'application/octet-stream', ...(await client.pushBlob(reference, content)), ...(title !== undefined && { annotations: { 'org.opencontainers.image.title': title } }) })
      }
      const manifest = { schemaVersion: 2, mediaType: 'application/vnd.oci.image.manifest.v1+json', artifactType: 'application/x', config: { mediaType: 'application/vnd.oci.empty.v1+json', ...config }, layers }
      await client.pushManifest(reference, Buffer.from(JSON.stringify(manifest)), manifest.mediaType)
    }
    digest = (await client.pushBlob(parseReference(`${registry.host}/team/model:v1`), weights)).digest
    await push('v1', [['weights/a.bin', weights], ['README.md', readme]])
    await push('single', [['weights.bin', weights]])
    await push('evil', [['../../etc/passwd', readme]])
    await client.close()
  })
  afterAll(() => registry?.stop())
  const url = (rest: string): string => `oci://me:p%40ss%3Aword@${registry.host}/team/model${rest}`

  test('its files are listed and read', async () => {
    const made = sources({ credentials: staticCredentials({ [registry.host]: auth }) })
    const entries = await listIndex(made, `oci://${registry.host}/team/model:v1`)
    expect(entries.map(({ name, size }) => [name, size])).toEqual([['weights/a.bin', weights.length], ['README.md', readme.length]])
    for (const [index, content] of [weights, readme].entries()) expect((await read(made.open(entries[index].url))).bytes.equals(content)).toBe(true)
    await expect(listIndex(made, `oci://${registry.host}/team/model:evil`)).rejects.toMatchObject({ code: 'INVALID_DATA' })
  })

  test('one of its files, its only file, or a blob by its digest', async () => {
    for (const rest of [':v1/weights/a.bin', ':single', `@${digest}`, `?blob=${digest}`]) {
      const from = source(url(rest))
      const { head, bytes } = await read(from)
      expect(bytes.equals(weights)).toBe(true)
      expect(head).toMatchObject({ length: weights.length, ranges: true, validated: true, etag: `"${digest}"` })
      expect((await read(from, { offset: 1000, length: 77, version: head.version })).bytes.equals(weights.subarray(1000, 1077))).toBe(true)
      expect((await from.open({ ifNot: head.version })).unchanged).toBe(true)
      expect(from.url.href).not.toMatch(/ss.word/)
    }
    const into = Buffer.alloc(weights.length)
    await parallelRanges(source(url(':single')), (position, chunk) => void chunk.copy(into, position), { partBytes: 100_000 })
    expect(into.equals(weights)).toBe(true)
  })

  test('is refused with words that help', async () => {
    await expect(source(url(':v1')).open()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('README.md') })
    await expect(source(url(':v1/none')).open()).rejects.toMatchObject({ code: 'NOT_FOUND', message: expect.stringContaining('README.md') })
    await expect(source(url(':none')).open()).rejects.toMatchObject({ code: 'NOT_FOUND' })
    await expect(source(url(`@sha256:${'0'.repeat(64)}`)).open()).rejects.toMatchObject({ code: 'NOT_FOUND' })
    await expect(source(`oci://${registry.host}/team/model:single`).open()).rejects.toMatchObject({ code: 'UNAUTHORIZED' })
    await expect(source(url(':single'), { allow: () => false }).open()).rejects.toMatchObject({ code: 'FORBIDDEN' })
  })
})

describe('oci:// URLs', () => {
  const d = `sha256:${'a'.repeat(64)}`
  test.each([
    ['oci://r.example:5000/a/b:v1', { reference: { registry: 'r.example:5000', repository: 'a/b', tag: 'v1' } }],
    ['oci://registry/a', { reference: { registry: 'registry', repository: 'a', tag: 'latest' } }],
    ['oci://r.example/a:5000/x/y.bin', { reference: { registry: 'r.example', repository: 'a', tag: '5000' }, file: 'x/y.bin' }],
    ['oci://docker.io/debian:12', { reference: { registry: 'docker.io', repository: 'library/debian', tag: '12' } }],
    [`oci://r.example/a@${d}/with%20space`, { reference: { registry: 'r.example', repository: 'a', digest: d }, file: 'with space' }],
    [`oci://r.example/a@${d}`, { reference: { registry: 'r.example', repository: 'a', tag: 'latest' }, blob: d }],
  ])('%s', (url, target) => expect(parseOciUrl(new URL(url))).toEqual(target))
  test.each(['oci://r.example', 'oci://r.example/', 'oci://r.example/A', 'oci://r.example/a@sha256:abc', 'oci://r.example/a:b:c', 'oci:///a', 'oci://r.example/a?blob=x', 'oci://r.example/%zz'])('%s is none', (url) => {
    expect(() => parseOciUrl(new URL(url))).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
  })
})

describe('a file of this machine', () => {
  test('has versions and parts, and is noticed to change while it is read', async () => {
    const directory = await mkdtemp(join(tmpdir(), 'skimmer-file-'))
    afterTest(() => rm(directory, { recursive: true, force: true }))
    const path = join(directory, 'a file')
    const bytes = randomBytes(3_500_000)
    await writeFile(path, bytes)
    const from = source(`file://${directory}/a%20file`, { files: true })
    const { head, bytes: got } = await read(from)
    expect(got.equals(bytes)).toBe(true)
    expect((await read(from, { offset: 3_000_000, length: 10, version: head.version })).bytes.equals(bytes.subarray(3_000_000, 3_000_010))).toBe(true)
    expect((await from.open({ ifNot: head.version })).unchanged).toBe(true)
    await expect((async () => {
      for await (const _chunk of resumable(from)) await appendFile(path, 'more')
    })()).rejects.toMatchObject({ code: 'CONFLICT' })
    await expect(from.open({ version: head.version })).rejects.toMatchObject({ code: 'CONFLICT' })
    expect((await bytesOf(resumable(from))).subarray(0, bytes.length).equals(bytes)).toBe(true)
    await expect(source(`file://${directory}`, { files: true }).open()).rejects.toMatchObject({ code: 'UNSUPPORTED' })
    await expect(source(`file://${directory}/none`, { files: true }).open()).rejects.toMatchObject({ code: 'NOT_FOUND' })
    expect(() => source(`file://elsewhere${directory}/x`, { files: true })).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }))
  })
})
