// s3:// against a real S3 server (SeaweedFS), which checks every signature.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { execFile, spawn, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { listIndex } from '../../source/list-index.ts'
import { parallelRanges } from '../../source/parallel-ranges.ts'
import { taskKey } from '../../source/task-key.ts'
import { freePort } from '../oci/registry-fixture.ts'
import { read, source, sources } from './reading.ts'

const weed = join(import.meta.dirname, '../../node_modules/.seaweedfs/weed')
/** Puts files there with a client that is not ours; 7.75 is the first with signatures. */
const haveCurl = (spawnSync('curl', ['--help', 'all'], { encoding: 'utf8' }).stdout ?? '').includes('--aws-sigv4')
const describeS3 = existsSync(weed) && haveCurl ? describe : describe.skip

describeS3('objects of an S3 server', () => {
  const keys = { accessKeyId: 'AKIDFORTESTS', secretAccessKey: 'hush/hush+secret' }
  const bytes = randomBytes(3_000_000)
  let directory: string
  let endpoint: string
  let stop: (() => Promise<void>) | undefined
  const put = async (path: string, file?: string): Promise<void> => {
    const words = ['-sSf', '--max-time', '10', '--aws-sigv4', 'aws:amz:us-east-1:s3', '--user', `${keys.accessKeyId}:${keys.secretAccessKey}`, ...(file === undefined ? ['-X', 'PUT'] : ['-T', file]), `${endpoint}/${path}`]
    // It listens before all its parts have found each other.
    for (let tries = 0; ; tries++) {
      try {
        await promisify(execFile)('curl', words)
        return
      } catch (error) {
        if (tries === 120) throw error
        await sleep(250)
      }
    }
  }
  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'skimmer-s3-'))
    await mkdir(join(directory, 'data'))
    await writeFile(join(directory, 's3.json'), JSON.stringify({ identities: [{ name: 'tests', credentials: [{ accessKey: keys.accessKeyId, secretKey: keys.secretAccessKey }], actions: ['Admin'] }] }))
    const ports = new Set<number>()
    while (ports.size < 8) ports.add(await freePort())
    const [master, masterRpc, volume, volumeRpc, filer, filerRpc, s3, s3Rpc] = ports
    endpoint = `http://127.0.0.1:${s3}`
    const child = spawn(weed, [
      `-logdir=${directory}`, 'server', `-dir=${directory}/data`, '-ip=127.0.0.1', '-ip.bind=127.0.0.1', `-master.port=${master}`, `-master.port.grpc=${masterRpc}`, `-volume.port=${volume}`,
      `-volume.port.grpc=${volumeRpc}`, '-volume.max=100', '-master.volumeSizeLimitMB=32', '-filer', `-filer.port=${filer}`, `-filer.port.grpc=${filerRpc}`,
      '-s3', `-s3.port=${s3}`, `-s3.port.grpc=${s3Rpc}`, '-s3.port.iceberg=0', '-s3.port.lance=0', `-s3.config=${directory}/s3.json`, '-s3.iam=false',
    ], { cwd: directory, stdio: 'ignore' })
    const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()))
    stop = async () => {
      child.kill('SIGKILL')
      await gone
    }
    await put('bucket')
    await writeFile(join(directory, 'file'), bytes)
    for (const key of ['dir/my%20file%2B%C3%A4', 'dir/sub/deep', 'top', 'dir/%25percent']) await put(`bucket/${key}`, join(directory, 'file'))
  }, 90_000)
  afterAll(async () => {
    await stop?.()
    await rm(directory, { recursive: true, force: true })
  })
  const request = () => ({ s3: { ...keys, endpoint } })

  test('are read whole, in parts and in parallel, and only when they changed', async () => {
    const from = source('s3://bucket/dir/my%20file+ä', request())
    const { head, bytes: got } = await read(from)
    expect(got.equals(bytes)).toBe(true)
    expect(head).toMatchObject({ length: bytes.length, validated: true, ranges: true })
    expect((await read(from, { offset: 1234, length: 99, version: head.version })).bytes.equals(bytes.subarray(1234, 1333))).toBe(true)
    expect((await from.open({ ifNot: head.version })).unchanged).toBe(true)
    const into = Buffer.alloc(bytes.length)
    await parallelRanges(from, (position, chunk) => void chunk.copy(into, position), { partBytes: 500_000 })
    expect(into.equals(bytes)).toBe(true)
    await writeFile(join(directory, 'other'), 'other')
    await put('bucket/changing', join(directory, 'file'))
    const changing = source('s3://bucket/changing', request())
    const before = (await read(changing)).head.version
    await put('bucket/changing', join(directory, 'other'))
    expect((await read(changing, { ifNot: before })).bytes.toString()).toBe('other')
    await expect(changing.open({ offset: 2, version: before })).rejects.toMatchObject({ code: 'CONFLICT' })
  })

  test('are listed level by level', async () => {
    const made = sources()
    expect((await listIndex(made, 's3://bucket', request())).map(({ name }) => name)).toEqual(expect.arrayContaining(['top', 'dir/']))
    const entries = await listIndex(made, 's3://bucket/dir', request())
    expect(entries.map(({ name }) => name).toSorted()).toEqual(['%percent', 'my file+ä', 'sub/'])
    for (const { url, directory: folder, size } of entries) {
      if (!folder) expect([(await read(made.open(url, request()))).bytes.equals(bytes), size]).toEqual([true, bytes.length])
    }
  })

  test('are handed to another machine as a signed URL, which is the same task whenever it was signed', async () => {
    const made = sources()
    const signed = await made.signS3('s3://bucket/top', request())
    expect((await read(source(signed.url))).bytes.equals(bytes)).toBe(true)
    const later = await made.signS3('s3://bucket/top', request(), { expiresSeconds: 60 })
    expect(later.url).not.toBe(signed.url)
    const key = ({ url, filteredQueryParams }: typeof signed): string => taskKey({ url, filteredQueryParams })
    expect(key(later)).toBe(key(signed))
    expect(key(signed)).not.toMatch(/amz|AKID/i)
    expect(signed.url).not.toContain('hush')
  })

  test('are refused without the right keys, and nothing secret is told', async () => {
    const wrong = await source('s3://bucket/top', { s3: { ...keys, endpoint, secretAccessKey: 'not-the-key' } }).open().catch((error: unknown) => error as Error)
    expect(wrong).toMatchObject({ code: 'FORBIDDEN' })
    expect(`${(wrong as Error).stack} ${JSON.stringify(wrong)}`).not.toMatch(/not-the-key|Signature=|AKID/)
    await expect(source('s3://bucket/none', request()).open()).rejects.toMatchObject({ code: 'NOT_FOUND' })
    expect(() => source('s3://bucket/top')).toThrow(expect.objectContaining({ code: 'UNSUPPORTED' }))
    await expect(source('s3://bucket/', request()).open()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' })
  })
})
