// Manifests, indexes, configs, platforms and chainIDs: what is read, and what is refused.
import { describe, expect, test } from '@jest/globals'
import * as fc from 'fast-check'
import { createHash } from 'node:crypto'
import { chainId, chainIds } from '../../oci/chain-id.ts'
import { digestOf, isDigest, verifyDigest } from '../../oci/digest.ts'
import { SkimmerError } from '../../oci/errors.ts'
import { parseImageConfig } from '../../oci/image-config.ts'
import { MAX_MANIFEST_BYTES, parseManifest } from '../../oci/manifest.ts'
import { MEDIA_TYPES, isForeignLayer, mediaTypeCompression } from '../../oci/media-types.ts'
import { choosePlatform, formatPlatform, hostPlatform, parsePlatform } from '../../oci/platform.ts'

const digest = digestOf('x')
const descriptor = { mediaType: MEDIA_TYPES.ociLayerGzip, digest, size: 7 }
const good = { schemaVersion: 2, config: { ...descriptor, mediaType: MEDIA_TYPES.ociConfig }, layers: [descriptor] }
const json = (value: unknown) => Buffer.from(JSON.stringify(value))

const holdsUp = (bytes: Buffer): void => {
  for (const read of [parseManifest, parseImageConfig]) {
    try {
      read(bytes)
    } catch (error) {
      expect(error).toBeInstanceOf(SkimmerError)
    }
  }
}

const sha = (text: string) => `sha256:${createHash('sha256').update(text).digest('hex')}`

describe('a manifest', () => {
  test('is read whether OCI or Docker, by its own media type or the registry’s', () => {
    for (const mediaType of [MEDIA_TYPES.ociManifest, MEDIA_TYPES.dockerManifest]) {
      expect(parseManifest(json({ ...good, mediaType }))).toMatchObject({ kind: 'manifest', mediaType, layers: [descriptor] })
      expect(parseManifest(json(good), `${mediaType}; charset=utf-8`)).toMatchObject({ kind: 'manifest', mediaType })
    }
    expect(parseManifest(json(good), 'application/json')).toMatchObject({ kind: 'manifest', mediaType: MEDIA_TYPES.ociManifest })
    expect(parseManifest(json({ schemaVersion: 2, manifests: [{ ...descriptor, platform: { os: 'linux', architecture: 'arm', variant: 'v7' } }] }))).toMatchObject({ kind: 'index' })
    expect(parseManifest(json({ ...good, layers: null, annotations: null }))).toMatchObject({ layers: [] })
  })

  test.each([
    ['a digest that is none', { ...good, layers: [descriptor, { ...descriptor, digest: 'sha256:abc' }] }, 'INVALID_DATA', /layers\.1\.digest/],
    ['a path as a digest', { ...good, config: { ...descriptor, digest: '../../etc/passwd' } }, 'INVALID_DATA', /config\.digest/],
    ['a negative size', { ...good, layers: [{ ...descriptor, size: -1 }] }, 'INVALID_DATA', /layers\.0\.size/],
    ['a size past exact integers', { ...good, layers: [{ ...descriptor, size: 1e300 }] }, 'INVALID_DATA', /layers\.0\.size/],
    ['annotations that are no strings', { ...good, annotations: { a: 1 } }, 'INVALID_DATA', /annotations\.a/],
    ['no config', { schemaVersion: 2, layers: [] }, 'INVALID_DATA', /config/],
    ['two readings', { ...good, manifests: [] }, 'INVALID_DATA', /two ways/],
    ['another schema version', { ...good, schemaVersion: 3 }, 'INVALID_DATA', /schemaVersion/],
    ['schema 1', { schemaVersion: 1, fsLayers: [] }, 'UNSUPPORTED', /schema 1/],
    ['nothing of an image', { hello: 'world' }, 'UNSUPPORTED', /neither/],
    ['a list', [], 'INVALID_DATA', /not a JSON object/],
  ])('with %s is refused', (_name, document, code, message) => {
    expect(() => parseManifest(json(document))).toThrow(expect.objectContaining({ code, message: expect.stringMatching(message) }))
  })

  test('that the registry calls something else than it calls itself is refused', () => {
    expect(() => parseManifest(json({ ...good, mediaType: MEDIA_TYPES.ociManifest }), MEDIA_TYPES.ociIndex)).toThrow(/the registry calls it/)
    expect(() => parseManifest(json(good), 'application/vnd.docker.distribution.manifest.v1+prettyjws')).toThrow(expect.objectContaining({ code: 'UNSUPPORTED' }))
  })

  test('over 4 MiB or not UTF-8 is refused before it is read', () => {
    expect(() => parseManifest(Buffer.alloc(MAX_MANIFEST_BYTES + 1, ' '))).toThrow(expect.objectContaining({ code: 'LIMIT_EXCEEDED' }))
    expect(() => parseManifest(Buffer.from([0x7b, 0xff, 0x7d]))).toThrow(expect.objectContaining({ code: 'INVALID_DATA' }))
  })

  test('of any JSON, or with any field replaced, is read or refused with one of our errors', () => {
    fc.assert(fc.property(fc.jsonValue(), (value) => holdsUp(json(value))))
    fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => holdsUp(Buffer.from(bytes))))
    const paths = [['schemaVersion'], ['mediaType'], ['config'], ['config', 'digest'], ['layers'], ['layers', '0'], ['layers', '0', 'size'], ['layers', '0', 'urls'], ['manifests'], ['subject'], ['annotations']]
    fc.assert(
      fc.property(fc.constantFrom(...paths), fc.jsonValue(), (path, value) => {
        const document = structuredClone(good) as unknown as Record<string, never>
        let place: Record<string, never> = document
        for (const key of path.slice(0, -1)) place = place[key]
        place[path.at(-1)!] = value as never
        holdsUp(json(document))
      }),
    )
  })
})

test('media types say how layers are compressed', () => {
  expect(mediaTypeCompression(MEDIA_TYPES.ociLayer)).toBe('none')
  expect(mediaTypeCompression(MEDIA_TYPES.ociLayerZstd)).toBe('zstd')
  expect(mediaTypeCompression(MEDIA_TYPES.dockerLayerGzip)).toBe('gzip')
  expect(mediaTypeCompression('application/vnd.docker.image.rootfs.foreign.diff.tar.gzip')).toBe('gzip')
  expect(mediaTypeCompression('application/vnd.oci.image.layer.nondistributable.v1.tar+zstd')).toBe('zstd')
  expect(isForeignLayer('application/vnd.oci.image.layer.nondistributable.v1.tar')).toBe(true)
  expect(isForeignLayer(MEDIA_TYPES.ociLayer)).toBe(false)
  for (const unknown of ['application/vnd.oci.image.layer.v1.tar+br', 'application/vnd.in-toto+json', '', 'toString']) expect(mediaTypeCompression(unknown)).toBeUndefined()
})

describe('an image config', () => {
  const config = { architecture: 'amd64', os: 'linux', rootfs: { type: 'layers', diff_ids: [digest] }, history: [{ created_by: 'RUN x' }, { empty_layer: true }], config: { Env: ['A=1'], Cmd: null } }
  test('gives the diffIDs and what the container runs', () => {
    expect(parseImageConfig(json(config))).toMatchObject({ diffIds: [digest], config: { Env: ['A=1'] }, history: [{ created_by: 'RUN x' }, { empty_layer: true }] })
  })
  test('with a wrong field is refused by the field’s name', () => {
    expect(() => parseImageConfig(json({ ...config, rootfs: { type: 'layers', diff_ids: ['nope'] } }))).toThrow(/rootfs\.diff_ids\.0/)
    expect(() => parseImageConfig(json({ ...config, rootfs: { type: 'squashfs', diff_ids: [] } }))).toThrow(/rootfs\.type/)
  })
})

describe('platforms', () => {
  const entries = ['linux/amd64', 'linux/arm/v6', 'linux/arm/v7', 'linux/arm64/v8', 'windows/amd64', 'unknown/unknown', 'linux/amd64/v3'].map((name) => {
    const [os, architecture, variant] = name.split('/')
    return { name, platform: { os, architecture, ...(variant && { variant }) } }
  })
  test.each([
    ['linux/amd64', 'linux/amd64'], ['x86_64', 'linux/amd64'], ['linux/amd64/v2', 'linux/amd64'], ['linux/amd64/v4', 'linux/amd64/v3'],
    ['linux/arm64', 'linux/arm64/v8'], ['aarch64', 'linux/arm64/v8'], ['linux/arm', 'linux/arm/v7'], ['linux/arm/v8', 'linux/arm/v7'], ['linux/arm/6', 'linux/arm/v6'],
  ])('on %s the image for %s runs', (host, expected) => {
    expect(choosePlatform(entries, parsePlatform(host))?.name).toBe(expected)
  })
  test('nothing runs where nothing fits; an only entry without a platform is taken', () => {
    for (const host of ['linux/arm/v5', 'linux/riscv64', 'freebsd/amd64']) expect(choosePlatform(entries, parsePlatform(host))).toBeUndefined()
    expect(choosePlatform([{}], hostPlatform())).toEqual({})
    expect(choosePlatform([{}, {}] as { platform?: never }[], hostPlatform())).toBeUndefined()
    expect(formatPlatform(parsePlatform('linux/arm64/v8'))).toBe('linux/arm64')
    for (const text of ['', '/', 'a/b/c/d', 'linux/ amd64']) expect(() => parsePlatform(text)).toThrow(SkimmerError)
  })
})

describe('digests and chainIDs', () => {
  test('the chain of one layer is its diffID, of more the hash of "parent diffID"', () => {
    const [a, b, c] = ['a', 'b', 'c'].map((text) => digestOf(text))
    expect(chainIds([a, b, c])).toEqual([a, sha(`${a} ${b}`), sha(`${sha(`${a} ${b}`)} ${c}`)])
    expect(chainId([a, b])).toBe(sha(`${a} ${b}`))
    expect(() => chainId([])).toThrow(SkimmerError)
    expect(() => chainId(['x'])).toThrow(SkimmerError)
  })
  test('sha256 and sha512 are checked; what differs by one bit is not the same', () => {
    for (const algorithm of ['sha256', 'sha512'] as const) {
      const name = digestOf('bytes', algorithm)
      expect(isDigest(name)).toBe(true)
      verifyDigest(Buffer.from('bytes'), name, 'a test')
      expect(() => verifyDigest(Buffer.from('bytez'), name, 'a test')).toThrow(expect.objectContaining({ code: 'DIGEST_MISMATCH' }))
    }
    for (const text of ['', 'sha256', 'sha256:', digest.toUpperCase(), `${digest}0`, digest.slice(0, -1), `sha512:${'a'.repeat(64)}`]) expect(isDigest(text)).toBe(false)
  })
})
