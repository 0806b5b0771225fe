// Small real images for tests, made in memory and pushed with our own client.
import { gzipSync } from 'node:zlib'
import { digestOf } from '../../oci/digest.ts'
import { MEDIA_TYPES } from '../../oci/media-types.ts'
import type { Reference } from '../../oci/reference.ts'
import type { RegistryClient } from '../../oci/registry-client.ts'

export interface MadeImage {
  readonly manifestDigest: string
  readonly manifestBytes: Buffer
  readonly layers: { readonly digest: string; readonly size: number; readonly diffId: string; readonly bytes: Buffer }[]
}

/** Pushes an image whose layers hold these bytes (gzip). */
export async function pushImage(client: RegistryClient, reference: Reference, tars: readonly Buffer[], platform = { os: 'linux', architecture: 'amd64' }): Promise<MadeImage> {
  const layers = tars.map((tar) => {
    const bytes = gzipSync(tar, { level: 1 })
    return { digest: digestOf(bytes), size: bytes.length, diffId: digestOf(tar), bytes }
  })
  for (const layer of layers) await client.pushBlob(reference, layer.bytes)
  const config = Buffer.from(JSON.stringify({ ...platform, config: { Cmd: ['/bin/sh'] }, rootfs: { type: 'layers', diff_ids: layers.map((layer) => layer.diffId) }, history: layers.map(() => ({ created_by: 'a test' })) }))
  const { digest, size } = await client.pushBlob(reference, config)
  const manifestBytes = Buffer.from(
    JSON.stringify({
      schemaVersion: 2, mediaType: MEDIA_TYPES.ociManifest, config: { mediaType: MEDIA_TYPES.ociConfig, digest, size },
      layers: layers.map((layer) => ({ mediaType: MEDIA_TYPES.ociLayerGzip, digest: layer.digest, size: layer.size })),
    }),
  )
  return { manifestDigest: await client.pushManifest(reference, manifestBytes, MEDIA_TYPES.ociManifest), manifestBytes, layers }
}

export async function readAll(stream: AsyncIterable<Buffer>): Promise<Buffer> {
  const chunks: Buffer[] = []
  for await (const chunk of stream) chunks.push(chunk)
  return Buffer.concat(chunks)
}
