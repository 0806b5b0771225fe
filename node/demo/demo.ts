// The demo: a small datacenter on this machine starts one image lazily on three nodes and the ordinary way on a fourth, side by side.
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { LabNode, LabSupernode } from '../../bench/lab/cluster.ts'
import { LabContainerd } from '../../bench/lab/containerd.ts'
import { START_SCRIPT, makeDemoImage, type Say } from '../../bench/lab/image.ts'
import { LabNetwork } from '../../bench/lab/network.ts'
import { run } from '../../bench/lab/process.ts'
import { LabRegistry } from '../../bench/lab/registry.ts'
import { SkimmerError } from '../../oci/errors.ts'
import { formatDuration, formatSize } from '../config/units.ts'
import type { DemoResult, NodeResult, Sources } from './report.ts'

export interface DemoOptions {
  /** A reference to copy from a registry, instead of the image the demo makes. */
  readonly image?: string
  /** What to run in it; default: the import-heavy script, or the given image's own command. */
  readonly command?: readonly string[]
  readonly mbit: number
  /** Where the made image and the registry's storage are kept between runs. */
  readonly cache: string
  /** Keep logs and state after the run. */
  readonly keep?: boolean
  readonly signal: AbortSignal
}

/** What `GET /v1/traffic` answers: bytes by source, until `before` (milliseconds since 1970) when asked so. */
export interface TrafficAnswer {
  readonly sources: Sources
}
export interface ImageAnswer {
  readonly layers: readonly { readonly diffId: string; readonly layerDigest: string; readonly layerSize: number; readonly rawBytes: number; readonly packedBytes: number; readonly whole: boolean; readonly proved: boolean; readonly wholeAt?: number }[]
}

const WHOLE_TIMEOUT_MS = 300_000

export async function runDemo(options: DemoOptions, say: Say): Promise<DemoResult> {
  const { signal } = options
  mkdirSync(options.cache, { recursive: true })
  const directory = mkdtempSync(join(tmpdir(), 'skimmer-demo-'))
  const source = options.image === undefined ? `oci:${await makeDemoImage(options.cache, say, signal)}:latest` : `docker://${options.image}`
  const takeDown: (() => Promise<void>)[] = []
  try {
    say(`network: six hosts, ${options.mbit} Mbit/s each`)
    const network = await LabNetwork.create(['registry', 'supernode', 'node1', 'node2', 'node3', 'ordinary'].map((name) => ({ name, mbit: options.mbit })))
    takeDown.push(() => network.destroy())

    const registry = await LabRegistry.start(network.host('registry'), { storage: join(options.cache, 'registry'), directory: join(directory, 'registry') })
    const reference = `${registry.address}/${options.image === undefined ? 'demo/python' : 'demo/image'}:latest`
    say('registry: pushing the image')
    // An image of the user's own comes from outside, which the lab's hosts cannot reach: through a layout on disk.
    const layout = options.image === undefined ? source : `oci:${join(directory, 'copied')}:latest`
    if (layout !== source) await run(['skopeo', 'copy', '--quiet', source, layout], { timeoutMs: 1_800_000, signal })
    await registry.host.run(['skopeo', 'copy', '--quiet', '--dest-tls-verify=false', layout, `docker://${reference}`], { timeoutMs: 600_000, signal })
    const manifest = JSON.parse((await registry.host.run(['skopeo', 'inspect', '--raw', '--tls-verify=false', `docker://${reference}`], { signal })).stdout) as { layers: { digest: string; size: number }[] }
    const layerDigests = new Set(manifest.layers.map((layer) => layer.digest))
    const registryBytes = manifest.layers.reduce((sum, layer) => sum + layer.size, 0)

    say('starting supernode, three nodes and their containerds')
    const supernode = await LabSupernode.start(network.host('supernode'), { directory: join(directory, 'supernode'), plainHttp: [registry.address] })
    const nodes: LabNode[] = []
    for (const name of ['node1', 'node2', 'node3']) {
      const node = await LabNode.start(network.host(name), { directory: join(directory, name), supernodes: [supernode.url], plainHttp: [registry.address] })
      nodes.push(node)
      takeDown.push(() => node.containerd.stop())
    }
    const ordinary = await LabContainerd.start({ directory: join(directory, 'ordinary'), host: network.host('ordinary') })
    takeDown.push(() => ordinary.stop())
    const command = options.command ?? (options.image === undefined ? ['python3', '-c', START_SCRIPT] : [])

    say('ordinary: pull, unpack, run')
    const ordinaryMs = await startOrdinary(ordinary, reference, command, signal)
    say(`ordinary: first output after ${formatDuration(ordinaryMs)}`)

    const results: NodeResult[] = []
    let image: ImageAnswer | undefined
    for (const node of nodes) {
      say(`${node.name}: pull and run, lazily`)
      const indexed = results.length > 0
      const started = Date.now()
      const firstOutputMs = await startLazily(node, reference, command, signal)
      const before = (await node.api<TrafficAnswer>(`/v1/traffic?before=${Math.ceil(started + firstOutputMs)}`)).sources
      say(`${node.name}: first output after ${formatDuration(firstOutputMs)}, ${formatSize(before.peer + before.supernode + before.registry)} fetched; bringing the rest`)
      image = await untilProved(node, reference, say, signal)
      const wholeAt = Math.max(...image.layers.map((layer) => layer.wholeAt ?? Date.now()))
      results.push({
        name: node.name,
        indexed,
        firstOutputMs,
        bytesBeforeFirstOutput: before.peer + before.supernode + before.registry,
        sourcesBeforeFirstOutput: before,
        sources: (await node.api<TrafficAnswer>('/v1/traffic')).sources,
        wholeMs: wholeAt - started,
        proved: image.layers.every((layer) => layer.proved),
      })
      say(`${node.name}: whole after ${formatDuration(wholeAt - started)}, every layer proved`)
    }

    const lazyAddresses = new Set([supernode.host.address, ...nodes.map((node) => node.host.address)])
    const left = [...registry.served(layerDigests).byClient].filter(([client]) => lazyAddresses.has(client)).reduce((sum, [, bytes]) => sum + bytes, 0)
    const layers = image?.layers ?? []
    const result = {
      image: {
        ref: reference,
        layers: layers.length,
        rawBytes: layers.reduce((sum, layer) => sum + layer.rawBytes, 0),
        packedBytes: layers.reduce((sum, layer) => sum + layer.packedBytes, 0),
        registryBytes,
      },
      ordinary: { firstOutputMs: ordinaryMs, bytes: registryBytes },
      nodes: results,
      registry: { copies: left / registryBytes },
    }
    const problems = shortfalls(result)
    return { ok: problems.length === 0, ...result, problems }
  } finally {
    say('taking everything down')
    for (const step of takeDown.reverse()) await step().catch((error: Error) => say(`taking down: ${error.message}`))
    if (options.keep) say(`logs and state: ${directory}`)
    else rmSync(directory, { recursive: true, force: true })
  }
}

async function startOrdinary(containerd: LabContainerd, reference: string, command: readonly string[], signal: AbortSignal): Promise<number> {
  const started = performance.now()
  await containerd.ctr(['images', 'pull', '--plain-http', reference], { signal, timeoutMs: 900_000 })
  return await firstOutput(containerd, started, reference, command, [], signal)
}

async function startLazily(node: LabNode, reference: string, command: readonly string[], signal: AbortSignal): Promise<number> {
  const started = performance.now()
  await node.containerd.ctrRemote(['images', 'rpull', '--plain-http', '--snapshotter', 'skimmer', reference], { signal, timeoutMs: 900_000 })
  return await firstOutput(node.containerd, started, reference, command, ['--snapshotter', 'skimmer'], signal)
}

async function firstOutput(containerd: LabContainerd, started: number, reference: string, command: readonly string[], flags: readonly string[], signal: AbortSignal): Promise<number> {
  const runStarted = performance.now()
  const result = await containerd.ctr(['run', '--rm', ...flags, reference, `demo-${process.pid}`, ...command], { signal })
  // A command that prints nothing has its end for its first output.
  return runStarted - started + (result.firstOutputMs < 0 ? result.elapsedMs : result.firstOutputMs)
}

async function untilProved(node: LabNode, reference: string, say: Say, signal: AbortSignal): Promise<ImageAnswer> {
  const deadline = Date.now() + WHOLE_TIMEOUT_MS
  for (let told = Date.now(); ; ) {
    signal.throwIfAborted()
    const image = await node.api<ImageAnswer>(`/v1/image?reference=${encodeURIComponent(reference)}`)
    if (image.layers.length > 0 && image.layers.every((layer) => layer.proved)) return image
    if (Date.now() > deadline) throw new SkimmerError('TIMEOUT', `${node.name} did not hold the whole image after ${formatDuration(WHOLE_TIMEOUT_MS)}:\n${node.process.tail()}`)
    if (Date.now() - told > 5_000) {
      told = Date.now()
      say(`${node.name}: ${image.layers.filter((layer) => layer.whole).length} of ${image.layers.length} layers whole, ${image.layers.filter((layer) => layer.proved).length} proved`)
    }
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
}

/** The promises of the demo, each against what was measured. */
function shortfalls(result: Omit<DemoResult, 'ok' | 'problems'>): string[] {
  const problems: string[] = []
  const expect = (fine: boolean, words: string): void => {
    if (!fine) problems.push(words)
  }
  for (const [position, node] of result.nodes.entries()) {
    const sooner = result.ordinary.firstOutputMs / node.firstOutputMs
    const goal = node.indexed ? 8 : 1.5
    expect(sooner >= goal, `${node.name}: first output ${sooner.toFixed(1)} times sooner, not ${goal}`)
    const share = node.bytesBeforeFirstOutput / result.image.packedBytes
    if (node.indexed) expect(share <= 0.15, `${node.name}: ${(share * 100).toFixed(1)} % of the image before the first output, not 15 %`)
    expect(node.proved, `${node.name}: not every layer was proved`)
    const { peer, supernode, registry } = node.sources
    if (position > 0) expect(peer > supernode + registry, `${node.name}: most bytes did not come from peers`)
  }
  expect(result.registry.copies <= 1.02, `${result.registry.copies.toFixed(3)} copies left the registry, not 1.02 at most`)
  return problems
}

