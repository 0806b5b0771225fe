// The part of the demo that needs neither root nor /dev/fuse: a layer set is indexed once, shared between three nodes, verified, and read.
import { createHash } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { composeImage } from '../../image/composer.ts'
import type { ImageTree, TreeInode } from '../../image/tree.ts'
import { SkimmerError } from '../../oci/errors.ts'
import { Supernode } from '../../supernode/supernode.ts'
import type { Say } from '../../bench/lab/image.ts'
import { NODE_SETTINGS, type NodeConfig } from '../config/node-settings.ts'
import { loadSettings } from '../../command-line/settings.ts'
import { formatDuration, formatSize } from '../../command-line/units.ts'
import { NodeCore } from '../core.ts'
import { serveSmallImage } from './small-image.ts'

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

const FIRST = 'node1'
/** They want the image at the same moment, when the first one holds it. */
const TOGETHER = ['node2', 'node3']
/** Files of an image of the user's own that are read. */
const SAMPLE = 50

interface DemoNode {
  readonly name: string
  readonly core: NodeCore
}

export async function runRootlessDemo(options: RootlessOptions, say: Say): Promise<RootlessResult> {
  const directory = mkdtempSync(join(tmpdir(), 'skimmer-rootless-'))
  const logger = pino({ level: 'silent' })
  const stops: (() => Promise<unknown>)[] = []
  try {
    const made = options.image === undefined ? await serveSmallImage() : undefined
    if (made) stops.push(made.stop)
    const reference = options.image ?? made!.reference
    say(`supernode and ${1 + TOGETHER.length} nodes: starting; ${reference} is indexed while it streams in`)
    const hosts = made ? { [made.registry]: { plainHttp: true } } : {}
    const supernode = await Supernode.start({ dataDir: join(directory, 'supernode'), listen: ['/ip4/127.0.0.1/tcp/0'], http: { host: '127.0.0.1', port: 0 }, registry: { hosts } }, { logger })
    stops.push(() => supernode.stop())
    const nodes: DemoNode[] = []
    for (const name of [FIRST, ...TOGETHER]) {
      options.signal.throwIfAborted()
      const config: NodeConfig = loadSettings(NODE_SETTINGS, { root: join(directory, name), supernodes: supernode.addrs, listen: ['/ip4/127.0.0.1/tcp/0'], registryPlainHttp: made ? [made.registry] : [] }, {})
      const core = await NodeCore.start(config, { logger, metrics: new Registry() })
      stops.push(() => core.stop())
      nodes.push({ name, core })
    }
    const results = [await holdWhole(nodes[0], reference, options.signal, say), ...(await Promise.all(nodes.slice(1).map((node) => holdWhole(node, reference, options.signal, say))))]
    const last = nodes.at(-1)!
    const image = await last.core.sources[0].resolve({ reference }, options.signal)
    const layers = image.layers.map(({ diffId }) => last.core.library.get(diffId)!)
    const tree = composeImage(await Promise.all(layers.map(({ record }) => last.core.library.index(record.diffId))))
    const read = await readFiles(tree, (layer, offset, length) => layers[layer].resource.readRaw(offset, length), made === undefined ? SAMPLE : Infinity)
    if (made) compare(read, made.files)
    say(`${last.name}: ${read.size} files read out of the merged tree of ${tree.inodes.length} inodes${made ? ', each as it was put in' : ''}`)
    const ok = results.every((node) => node.proved) && read.size > 0
    return { ok, image: reference, nodes: results, filesRead: read.size, lines: [`${reference}: indexed once, held whole by ${results.length} nodes, every layer proved against its diffID, ${read.size} files read out`] }
  } finally {
    for (const stop of stops.toReversed()) await stop()
    rmSync(directory, { recursive: true, force: true })
  }
}

/** Brings the whole image to a node, as a preheat of nodes does, and waits until every layer is proved. */
async function holdWhole({ name, core }: DemoNode, reference: string, signal: AbortSignal, say: Say): Promise<RootlessResult['nodes'][number]> {
  const started = performance.now()
  const image = await core.sources[0].resolve({ reference }, signal)
  const resources = (await Promise.all(image.layers.map(async (_, position) => core.library.adopt(await image.index(position, signal))))).map(({ resource }) => resource)
  const hold = core.peer.prefetcher.hold(resources, { image: reference, now: true })
  await new Promise<void>((resolve, reject) => {
    hold.once('proved', resolve)
    hold.once('failed', reject)
    signal.addEventListener('abort', () => reject(signal.reason), { once: true })
  })
  const milliseconds = performance.now() - started
  const bytes = core.peer.fetcher.imageStats(resources.map(({ id }) => id))
  say(`${name}: the whole image after ${formatDuration(milliseconds)}, every layer proved; ${formatSize(bytes.peer)} from peers, ${formatSize(bytes.supernode)} from the supernode`)
  return { name, milliseconds, bytes, proved: resources.every(({ proved }) => proved) }
}

const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')

/** Hashes of the files in the merged tree, by path; read from their layers' streams. */
async function readFiles(tree: ImageTree, read: (layer: number, offset: number, length: number) => Promise<Buffer>, most: number): Promise<Map<string, string>> {
  const found = new Map<string, string>()
  const walk = async (inode: TreeInode, path: string): Promise<void> => {
    for (const [name, position] of inode.entries ?? []) {
      const child = tree.inodes[position]
      const childPath = path === '' ? name : `${path}/${name}`
      if (child.type === 'dir') await walk(child, childPath)
      else if (child.type === 'file' && child.extents.length === 1 && found.size < most) {
        const [extent] = child.extents
        found.set(childPath, sha256(await read(child.layer, extent.streamOffset, extent.length)))
      }
    }
  }
  await walk(tree.inodes[0], '')
  return found
}

function compare(read: ReadonlyMap<string, string>, expected: ReadonlyMap<string, string>): void {
  for (const [path, hash] of expected) {
    if (read.get(path) !== hash) throw new SkimmerError('DIGEST_MISMATCH', `${path} is ${read.has(path) ? 'not what was put into the image' : 'missing from the merged tree'}`)
  }
  for (const path of read.keys()) if (!expected.has(path)) throw new SkimmerError('INVALID_DATA', `${path} is in the merged tree, but was never put into the image or was deleted from it`)
}
