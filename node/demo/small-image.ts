// A small image and the smallest registry that can be pulled from, on loopback: for the demo on machines where nothing may be installed.
import { createHash, randomBytes } from 'node:crypto'
import { createServer, type Server } from 'node:http'
import { gzipSync } from 'node:zlib'
import { pack, type Pack } from 'tar-stream'

export interface SmallImage {
  readonly reference: string
  /** `127.0.0.1:<port>`, plain HTTP. */
  readonly registry: string
  /** Every file of the merged tree: path and sha256 of the content. */
  readonly files: ReadonlyMap<string, string>
  stop(): Promise<void>
}

const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')

const json = (value: unknown): Buffer => Buffer.from(JSON.stringify(value))

const FILES = 60
const TYPE = { layer: 'application/vnd.oci.image.layer.v1.tar+gzip', config: 'application/vnd.oci.image.config.v1+json', manifest: 'application/vnd.oci.image.manifest.v1+json' }

/** Two layers of files that no compressor shrinks; the upper one adds, replaces and deletes. About 28 MB. */
export async function serveSmallImage(): Promise<SmallImage> {
  const files = new Map<string, string>()
  const add = (tar: Pack, name: string, size: number): void => {
    const content = randomBytes(size)
    files.set(name, sha256(content))
    tar.entry({ name }, content)
  }
  const base = await tarOf((tar) => {
    for (let number = 0; number < FILES; number++) add(tar, `srv/base/file${number}`, 1000 + number * 7919)
  })
  const upper = await tarOf((tar) => {
    for (let number = 0; number < FILES; number++) add(tar, `srv/added/file${number}`, 1000 + number * 7919)
    add(tar, 'srv/base/file1', 70_000)
    tar.entry({ name: 'srv/base/.wh.file2' }, '')
    files.delete('srv/base/file2')
  })
  return await serve([base, upper], files)
}

async function tarOf(fill: (tar: Pack) => void): Promise<Buffer> {
  const tar = pack()
  fill(tar)
  tar.finalize()
  const chunks: Buffer[] = []
  for await (const chunk of tar) chunks.push(chunk as Buffer)
  return Buffer.concat(chunks)
}

async function serve(tars: readonly Buffer[], files: ReadonlyMap<string, string>): Promise<SmallImage> {
  const blobs = new Map<string, { type: string; bytes: Buffer }>()
  const put = (type: string, bytes: Buffer): { mediaType: string; digest: string; size: number } => {
    const digest = `sha256:${sha256(bytes)}`
    blobs.set(digest, { type, bytes })
    return { mediaType: type, digest, size: bytes.length }
  }
  const layers = tars.map((tar) => put(TYPE.layer, gzipSync(tar, { level: 1 })))
  const platform = { architecture: process.arch === 'x64' ? 'amd64' : process.arch, os: 'linux' }
  const config = put(TYPE.config, json({ ...platform, rootfs: { type: 'layers', diff_ids: tars.map((tar) => `sha256:${sha256(tar)}`) }, config: {} }))
  const manifest = put(TYPE.manifest, json({ schemaVersion: 2, mediaType: TYPE.manifest, config, layers }))
  const server: Server = createServer((request, response) => {
    const digest = /(sha256:[0-9a-f]{64})$/.exec(request.url ?? '')?.[1] ?? (request.url?.endsWith('/manifests/latest') ? manifest.digest : '')
    const found = blobs.get(digest)
    if (request.url === '/v2/') return void response.end('{}')
    if (found === undefined) return void response.writeHead(404).end()
    response.writeHead(200, { 'content-type': found.type, 'content-length': found.bytes.length, 'docker-content-digest': digest })
    response.end(request.method === 'HEAD' ? undefined : found.bytes)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const registry = `127.0.0.1:${(server.address() as { port: number }).port}`
  return {
    reference: `${registry}/demo/small:latest`,
    registry,
    files,
    stop: async () => {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}
