// Media types of manifests, indexes, configs and layers, OCI and Docker schema 2, and what they say about compression.

export const MEDIA_TYPES = {
  ociManifest: 'application/vnd.oci.image.manifest.v1+json',
  ociIndex: 'application/vnd.oci.image.index.v1+json',
  ociConfig: 'application/vnd.oci.image.config.v1+json',
  ociEmpty: 'application/vnd.oci.empty.v1+json',
  ociLayer: 'application/vnd.oci.image.layer.v1.tar',
  ociLayerGzip: 'application/vnd.oci.image.layer.v1.tar+gzip',
  ociLayerZstd: 'application/vnd.oci.image.layer.v1.tar+zstd',
  dockerManifest: 'application/vnd.docker.distribution.manifest.v2+json',
  dockerIndex: 'application/vnd.docker.distribution.manifest.list.v2+json',
  dockerConfig: 'application/vnd.docker.container.image.v1+json',
  dockerLayer: 'application/vnd.docker.image.rootfs.diff.tar',
  dockerLayerGzip: 'application/vnd.docker.image.rootfs.diff.tar.gzip',
} as const

/** What we ask a registry for, best first. Schema 1 is not asked for: a registry would rewrite images into it. */
export const MANIFEST_ACCEPT = [MEDIA_TYPES.ociIndex, MEDIA_TYPES.dockerIndex, MEDIA_TYPES.ociManifest, MEDIA_TYPES.dockerManifest, '*/*;q=0.1'].join(', ')

export type LayerCompression = 'none' | 'gzip' | 'zstd'

const LAYER_COMPRESSION: ReadonlyMap<string, LayerCompression> = new Map([
  ...['application/vnd.oci.image.layer.v1.tar', 'application/vnd.oci.image.layer.nondistributable.v1.tar'].flatMap((base): [string, LayerCompression][] => [
    [base, 'none'],
    [`${base}+gzip`, 'gzip'],
    [`${base}+zstd`, 'zstd'],
  ]),
  ...['application/vnd.docker.image.rootfs.diff.tar', 'application/vnd.docker.image.rootfs.foreign.diff.tar'].flatMap((base): [string, LayerCompression][] => [
    [base, 'none'],
    [`${base}.gzip`, 'gzip'],
    [`${base}.zstd`, 'zstd'],
    // Written by some builders that mixed the two families' suffixes; containerd reads them.
    [`${base}+gzip`, 'gzip'],
    [`${base}+zstd`, 'zstd'],
  ]),
])

/** How a layer of this media type is compressed; undefined when it is no filesystem layer that Skimmer knows. */
export function mediaTypeCompression(mediaType: string): LayerCompression | undefined {
  return LAYER_COMPRESSION.get(mediaType)
}

/** Layers that a registry may refuse to hold ("nondistributable", "foreign"): they may name URLs instead. */
export const isForeignLayer = (mediaType: string): boolean =>
  LAYER_COMPRESSION.has(mediaType) && (mediaType.includes('.nondistributable.') || mediaType.includes('.foreign.'))

export const isIndexType = (mediaType: string): boolean => mediaType === MEDIA_TYPES.ociIndex || mediaType === MEDIA_TYPES.dockerIndex
export const isManifestType = (mediaType: string): boolean => mediaType === MEDIA_TYPES.ociManifest || mediaType === MEDIA_TYPES.dockerManifest
export const isConfigType = (mediaType: string): boolean => mediaType === MEDIA_TYPES.ociConfig || mediaType === MEDIA_TYPES.dockerConfig
export const isSchema1Type = (mediaType: string): boolean => mediaType.startsWith('application/vnd.docker.distribution.manifest.v1+')

/** `Application/JSON; charset=utf-8` -> `application/json`. */
export const bareMediaType = (header: string): string => header.split(';', 1)[0].trim().toLowerCase()
