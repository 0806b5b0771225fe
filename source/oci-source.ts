// oci://: the files of an artifact in a registry (layers with a title), or any blob by its digest.
import type { Credentials } from '../oci/credentials.ts'
import { isDigest } from '../oci/digest.ts'
import { SkimmerError } from '../oci/errors.ts'
import { parseManifest } from '../oci/manifest.ts'
import type { Descriptor } from '../oci/manifest.ts'
import { choosePlatform, hostPlatform } from '../oci/platform.ts'
import { atDigest, formatReference, isRegistry, isRepository, isTag, parseReference } from '../oci/reference.ts'
import type { Reference } from '../oci/reference.ts'
import type { RegistryClient } from '../oci/registry-client.ts'
import type { ListedEntry } from './index-page.ts'
import type { Source, SourceAnswer, SourceOpenOptions } from './source.ts'
import { formatVersion, parseVersion } from './version.ts'

const TITLE = 'org.opencontainers.image.title'

/** What an oci:// URL names. */
export interface OciTarget {
  readonly reference: Reference
  /** A blob by its digest; else the artifact's file of this title; else its only file. */
  readonly blob?: string
  readonly file?: string
}

/**
 * `oci://registry/repository[:tag]` an artifact; `…/path/of/file` after a tag or digest, one of its files; `…@sha256:…` or
 * `…?blob=sha256:…`, a blob. Throws INVALID_ARGUMENT.
 */
export function parseOciUrl(url: URL): OciTarget {
  const named = /^\/([^:@]+)(?::([^/@]+))?(?:@([^/]+))?(?:\/(.+))?$/.exec(percentDecoded(url.pathname).replace(/\/+$/, ''))
  if (url.host === '' || named === null) throw wrong('it names no registry and repository')
  const [, repository, tag, digest, file] = named
  const blob = url.searchParams.get('blob') ?? undefined
  for (const given of [digest, blob]) if (given !== undefined && !isDigest(given)) throw wrong(`"${given.slice(0, 140)}" is not a digest`)
  if (!isRegistry(url.host) || !isRepository(repository) || (tag !== undefined && !isTag(tag))) throw wrong(`"${`${url.host}${url.pathname}`.slice(0, 300)}" is no name in a registry`)
  // The host always stands first, so that even a name without a dot is one; Docker Hub's names have a spelling of their own.
  const home = /^(?:index\.)?docker\.io$/.test(url.host) ? parseReference(`docker.io/${repository}`) : { registry: url.host, repository }
  const where = { registry: home.registry, repository: home.repository }
  if (blob !== undefined) return { reference: { ...where, tag: tag ?? 'latest' }, blob }
  if (digest !== undefined && file === undefined) return { reference: { ...where, tag: tag ?? 'latest' }, blob: digest }
  const reference = { ...where, ...(digest === undefined ? { tag: tag ?? 'latest' } : { digest }) }
  return file === undefined ? { reference } : { reference, file }
}

const wrong = (why: string): SkimmerError =>
  new SkimmerError('INVALID_ARGUMENT', `that is no URL of a blob or an artifact: ${why}; write it like oci://registry.example/team/model:v1, …/model:v1/weights.bin or …/model@sha256:<64 hex digits>`)

function percentDecoded(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    throw wrong('it has a broken percent-encoding')
  }
}

/** Of an Authorization header, for registries. */
export function credentialsOf(authorization: string | undefined): Credentials | undefined {
  const match = /^(basic|bearer)\s+(\S+)$/i.exec(authorization ?? '')
  if (match === null) return undefined
  if (match[1].toLowerCase() === 'bearer') return { registryToken: match[2] }
  const decoded = Buffer.from(match[2], 'base64').toString('utf8')
  const colon = decoded.indexOf(':')
  return colon < 1 ? undefined : { username: decoded.slice(0, colon), password: decoded.slice(colon + 1) }
}

export class OciSource implements Source {
  readonly url: URL
  readonly #target: OciTarget
  readonly #client: RegistryClient
  /** Sizes of blobs that were looked up. */
  readonly #sizes = new Map<string, number>()

  /** The client is closed with the source. */
  constructor(components: { url: URL; client: RegistryClient }) {
    this.#target = parseOciUrl(components.url)
    this.#client = components.client
    this.url = shownOciUrl(components.url)
  }

  async close(): Promise<void> {
    await this.#client.close()
  }

  async open(options: SourceOpenOptions = {}): Promise<SourceAnswer> {
    const { offset = 0, signal } = options
    const { reference } = this.#target
    const wanted = digestOfVersion(options.version)
    if (options.version !== undefined && wanted === undefined) throw new SkimmerError('CONFLICT', `reading ${this.url.href}: what was read before was no blob of a registry; ask again from the start`)
    // A version is a digest: that very blob is read, wherever the tag points by now.
    const { digest, size, mediaType } = wanted === undefined ? await this.#find(signal) : { digest: wanted, size: await this.#size(wanted, signal), mediaType: undefined }
    const head = {
      version: formatVersion({ kind: 'strong', etag: `"${digest}"` }), length: size, ranges: true, etag: `"${digest}"`, validated: true,
      ...(mediaType !== undefined && { contentType: mediaType }),
    }
    if (options.ifNot === head.version) return { head, unchanged: true }
    if (offset > size) throw new SkimmerError('INVALID_ARGUMENT', `reading ${this.url.href}: there is no byte ${offset}, it has ${size}`)
    const length = Math.min(size - offset, options.length ?? size)
    const body = this.#client.blob(reference, { digest, size }, { offset, length, signal })
    return { head, offset, bodyLength: length, body: body[Symbol.asyncIterator]() as AsyncGenerator<Buffer, undefined> }
  }

  /** The artifact's files. A blob is one file, named by its digest. */
  async list(options: { maxEntries: number; signal?: AbortSignal }): Promise<ListedEntry[]> {
    const { reference, blob } = this.#target
    const at = (digest: string): string => `oci://${reference.registry}/${reference.repository}@${digest}`
    if (blob !== undefined) return [{ url: at(blob), name: blob, directory: false, size: await this.#size(blob, options.signal) }]
    const layers = (await this.#layers(options.signal)).filter((layer) => layer.annotations?.[TITLE] !== undefined)
    if (layers.length > options.maxEntries) throw new SkimmerError('LIMIT_EXCEEDED', `${this.url.href} has more than the ${options.maxEntries} files that are allowed`)
    return layers.map((layer) => {
      const name = layer.annotations![TITLE].replace(/^\.\//, '')
      const safe = !name.endsWith('/') && !/\p{Cc}/u.test(name) && name.split('/').every((part) => part !== '' && part !== '.' && part !== '..')
      if (!safe) throw new SkimmerError('INVALID_DATA', `${this.url.href} has a file whose name ${JSON.stringify(name.slice(0, 200))} is no relative path`)
      return { url: at(layer.digest), name, directory: false, size: layer.size }
    })
  }

  async #find(signal: AbortSignal | undefined): Promise<{ digest: string; size: number; mediaType: string | undefined }> {
    const { blob, file } = this.#target
    if (blob !== undefined) return { digest: blob, size: await this.#size(blob, signal), mediaType: undefined }
    const layers = await this.#layers(signal)
    const titles = layers.flatMap((layer) => layer.annotations?.[TITLE] ?? [])
    const found = file === undefined ? (layers.length === 1 ? layers[0] : undefined) : layers.find((layer) => layer.annotations?.[TITLE]?.replace(/^\.\//, '') === file)
    if (found === undefined) {
      const offered = titles.length === 0 ? 'none with a name' : titles.slice(0, 20).join(', ').slice(0, 1000)
      if (file !== undefined) throw new SkimmerError('NOT_FOUND', `${formatReference(this.#target.reference)} has no file ${file}; it has ${offered}`)
      throw new SkimmerError('INVALID_ARGUMENT', `${formatReference(this.#target.reference)} has ${layers.length} files: write which after the URL, or download it recursively; it has ${offered}`)
    }
    this.#sizes.set(found.digest, found.size)
    return { digest: found.digest, size: found.size, mediaType: found.mediaType }
  }

  async #layers(signal: AbortSignal | undefined): Promise<Descriptor[]> {
    const { reference } = this.#target
    const name = `the manifest of ${formatReference(reference)}`
    let found = await this.#client.manifest(reference, { signal })
    let manifest = parseManifest(found.bytes, found.mediaType, name)
    if (manifest.kind === 'index') {
      const entry = manifest.manifests.length === 1 ? manifest.manifests[0] : choosePlatform(manifest.manifests, hostPlatform())
      if (entry === undefined) throw new SkimmerError('NOT_FOUND', `${formatReference(reference)} has nothing for this platform`)
      found = await this.#client.manifest(atDigest(reference, entry.digest), { signal })
      manifest = parseManifest(found.bytes, found.mediaType, name)
      if (manifest.kind === 'index') throw new SkimmerError('UNSUPPORTED', `${formatReference(reference)} is an index of indexes`)
    }
    return manifest.layers
  }

  async #size(digest: string, signal: AbortSignal | undefined): Promise<number> {
    const known = this.#sizes.get(digest)
    if (known !== undefined) return known
    const found = await this.#client.headBlob(this.#target.reference, digest, { signal })
    if (found === undefined) throw new SkimmerError('NOT_FOUND', `${this.#target.reference.registry}/${this.#target.reference.repository} has no blob ${digest}`)
    this.#sizes.set(digest, found.size)
    return found.size
  }
}

function digestOfVersion(version: string | undefined): string | undefined {
  const digest = version === undefined ? undefined : parseVersion(version)?.etag?.slice(1, -1)
  return digest !== undefined && isDigest(digest) ? digest : undefined
}

function shownOciUrl(url: URL): URL {
  const shown = new URL(url.href)
  shown.username = shown.password = shown.hash = ''
  const blob = url.searchParams.get('blob')
  shown.search = blob === null ? '' : `?blob=${blob}`
  return shown
}
