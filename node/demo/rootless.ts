// The part of the demo that needs neither root nor /dev/fuse: a layer set is indexed once, shared between three nodes, verified, and read.
import { createHash, randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createServer, type Server } from 'node:http'
import { gzipSync } from 'node:zlib'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { pack } from 'tar-stream'
import { composeImage } from '../../image/composer.ts'
import type { ImageTree, TreeInode } from '../../image/tree.ts'
import { SkimmerError } from '../../oci/errors.ts'
import { Supernode } from '../../supernode/supernode.ts'
import type { Say } from '../../bench/lab/image.ts'
import { NODE_SETTINGS, type NodeConfig } from '../config/node-settings.ts'
import { loadSettings } from '../config/settings.ts'
import { formatDuration, formatSize } from '../config/units.ts'
import { NodeCore } from '../core.ts'

export interface RootlessOptions {
  /** An image reference; without it a small image is made and served from a registry of the demo's own on loopback. */
  readonly image?: string
  readonly cache: string
  readonly signal: AbortSignal
}

export interface RootlessResult {
  readonly ok: boolean
  readonly image: string
  readonly nodes: readonly { name: string; milliseconds: number; bytes: Record<string, number>; proved: boolean }[]
  readonly filesRead: number
  readonly lines: readonly string[]
}

const NODES = ['node1', 'node2', 'node3']
/** Files whose content is compared with what the registry holds. */
const SAMPLE = 50

export async function runRootlessDemo(options: RootlessOptions, say: Say): Promise<RootlessResult> {
  const directory = mkdtempSync(join(tmpdir(), 'skimmer-rootless-'))
  const logger = pino({ level: 'silent' })
  const stops: (() => Promise<unknown>)[] = []
  try {
    const made = options.image === undefined ? await serveSmallImage() : undefined
    if (made) stops.push(made.stop)
    const reference = options.image ?? made!.reference
    say(`supernode: starting, and indexing ${reference}`)
    const hosts = made ? { [made.registry]: { plainHttp: true } } : {}
    const supernode = await Supernode.start({ dataDir: join(directory, 'supernode'), listen: ['/ip4/127.0.0.1/tcp/0'], http: { host: '127.0.0.1', port: 0 }, registry: { hosts } }, { logger })
    stops.push(() => supernode.stop())
    const results: RootlessResult['nodes'][number][] = []
    let filesRead = 0
    for (const name of NODES) {
      options.signal.throwIfAborted()
      const config: NodeConfig = loadSettings(NODE_SETTINGS, { root: join(directory, name), supernodes: supernode.addrs, listen: ['/ip4/127.0.0.1/tcp/0'], registryPlainHttp: made ? [made.registry] : [] }, {})
      const core = await NodeCore.start(config, { logger, metrics: new Registry() })
      stops.push(() => core.stop())
      const started = performance.now()
      const image = await core.sources[0].resolve({ reference }, options.signal)
      const layers = await Promise.all(image.layers.map(async (_, position) => core.library.adopt(await image.index(position, options.signal))))
      const hold = core.peer.prefetcher.hold(layers.map(({ resource }) => resource), { image: reference, now: true })
      await new Promise<void>((resolve, reject) => {
        hold.once('proved', resolve)
        hold.once('failed', reject)
        options.signal.addEventListener('abort', () => reject(options.signal.reason), { once: true })
      })
      const milliseconds = performance.now() - started
      const bytes = core.peer.fetcher.imageStats(layers.map(({ resource }) => resource.id))
      results.push({ name, milliseconds, bytes, proved: layers.every(({ resource }) => resource.proved) })
      say(`${name}: the whole image after ${formatDuration(milliseconds)}, every layer proved; ${formatSize(bytes.peer)} from peers, ${formatSize(bytes.supernode)} from the supernode`)
      if (name === NODES.at(-1)) {
        const tree = composeImage(await Promise.all(layers.map(({ record }) => core.library.index(record.diffId))))
        filesRead = await readFiles(tree, (layer, offset, length) => layers[layer].resource.readRaw(offset, length), made?.files)
        say(`${name}: ${filesRead} files read out of the merged tree of ${tree.inodes.length} inodes`)
      }
    }
    const ok = results.every((node) => node.proved) && filesRead > 0
    return { ok, image: reference, nodes: results, filesRead, lines: [`${reference}: indexed once, held whole by ${results.length} nodes, every layer proved against its diffID, ${filesRead} files read out`] }
  } finally {
    for (const stop of stops.toReversed()) await stop()
    rmSync(directory, { recursive: true, force: true })
  }
}

/** Reads a sample of files from their layers' streams; where the content is known, it must be the same. */
async function readFiles(tree: ImageTree, read: (layer: number, offset: number, length: number) => Promise<Buffer>, known: ReadonlyMap<string, string> | undefined): Promise<number> {
  let count = 0
  const walk = async (inode: TreeInode, path: string): Promise<void> => {
    for (const [name, position] of inode.entries ?? []) {
      const child = tree.inodes[position]
      const childPath = path === '' ? name : `${path}/${name}`
      if (child.type === 'dir') await walk(child, childPath)
      else if (child.type === 'file' && child.extents.length === 1 && (known !== undefined || count < SAMPLE)) {
        const [extent] = child.extents
        const content = await read(child.layer, extent.streamOffset, extent.length)
        const expected = known?.get(childPath)
        if (expected !== undefined && createHash('sha256').update(content).digest('hex') !== expected) throw new SkimmerError('DIGEST_MISMATCH', `${childPath} is not what was put into the image`)
        count++
      }
    }
  }
  await walk(tree.inodes[0], '')
  return count
}

/** A two-layer image and the smallest registry that can be pulled from, on loopback: nothing needs to be installed. */
async function serveSmallImage(): Promise<{ reference: string; registry: string; files: Map<string, string>; stop: () => Promise<void> }> {
  const files = new Map<string, string>()
  const blobs = new Map<string, { type: string; bytes: Buffer }>()
  const put = (type: string, bytes: Buffer): { mediaType: string; digest: string; size: number } => {
    const digest = `sha256:${createHash('sha256').update(bytes).digest('hex')}`
    blobs.set(digest, { type, bytes })
    return { mediaType: type, digest, size: bytes.length }
  }
  const layers = []
  const diffIds = []
  for (const layer of [0, 1]) {
    const tar = pack()
    for (let number = 0; number < 60; number++) {
      const name = `srv/layer${layer}/file${number}`
      const content = randomBytes(1000 + number * 7919)
      files.set(name, createHash('sha256').update(content).digest('hex'))
      tar.entry({ name }, content)
    }
    tar.finalize()
    const chunks: Buffer[] = []
    for await (const chunk of tar) chunks.push(chunk as Buffer)
    const raw = Buffer.concat(chunks)
    diffIds.push(`sha256:${createHash('sha256').update(raw).digest('hex')}`)
    layers.push(put('application/vnd.oci.image.layer.v1.tar+gzip', gzipSync(raw)))
  }
  const platform = { architecture: process.arch === 'x64' ? 'amd64' : process.arch, os: 'linux' }
  const config = put('application/vnd.oci.image.config.v1+json', Buffer.from(JSON.stringify({ ...platform, rootfs: { type: 'layers', diff_ids: diffIds }, config: {} })))
  const manifest = put('application/vnd.oci.image.manifest.v1+json', Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: 'application/vnd.oci.image.manifest.v1+json', config, layers })))
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
