// The demo: a small datacenter on this machine starts one image lazily on three nodes and the ordinary way on a fourth, side by side.
import { Datacenter } from '../../bench/lab/datacenter.ts'
import { START_SCRIPT, type Say } from '../../bench/lab/image.ts'
import { formatDuration, formatSize } from '../../command-line/units.ts'
import type { DemoResult, NodeResult } from './report.ts'

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

const NODES = ['node1', 'node2', 'node3']

export async function runDemo(options: DemoOptions, say: Say): Promise<DemoResult> {
  const { image, mbit, cache, signal } = options
  const command = options.command ?? (image === undefined ? ['python3', '-c', START_SCRIPT] : [])
  const datacenter = await Datacenter.start({ mbit, nodes: NODES, ordinary: true, image, cache, say, signal })
  try {
    say('starting three nodes and their containerds')
    const nodes = []
    for (const name of NODES) nodes.push(await datacenter.startNode(name))
    const ordinary = await datacenter.startOrdinary()

    say('ordinary: pull, unpack, run')
    const ordinaryMs = await datacenter.pullAndRun(ordinary, command)
    say(`ordinary: first output after ${formatDuration(ordinaryMs)}`)

    const results: NodeResult[] = []
    let held: Awaited<ReturnType<Datacenter['untilWhole']>> | undefined
    for (const node of nodes) {
      say(`${node.name}: pull and run, lazily`)
      const indexed = results.length > 0
      const started = Date.now()
      const firstOutputMs = await datacenter.lazyPullAndRun(node, command)
      const before = await datacenter.traffic(node, started + firstOutputMs)
      const bytesBeforeFirstOutput = before.peer + before.supernode + before.registry
      say(`${node.name}: first output after ${formatDuration(firstOutputMs)}, ${formatSize(bytesBeforeFirstOutput)} fetched; bringing the rest`)
      held = await datacenter.untilWhole(node)
      const wholeMs = Math.max(...held.layers.map((layer) => layer.wholeAt ?? Date.now())) - started
      const proved = held.layers.every((layer) => layer.proved)
      results.push({ name: node.name, indexed, firstOutputMs, bytesBeforeFirstOutput, sourcesBeforeFirstOutput: before, sources: await datacenter.traffic(node), wholeMs, proved })
      say(`${node.name}: whole after ${formatDuration(wholeMs)}, every layer proved`)
    }

    const layers = held?.layers ?? []
    const result = {
      image: {
        ref: datacenter.reference,
        layers: layers.length,
        rawBytes: layers.reduce((sum, layer) => sum + layer.rawBytes, 0),
        packedBytes: layers.reduce((sum, layer) => sum + layer.packedBytes, 0),
        registryBytes: datacenter.registryBytes,
      },
      ordinary: { firstOutputMs: ordinaryMs, bytes: datacenter.registryBytes },
      nodes: results,
      registry: { copies: datacenter.registryCopies([datacenter.supernode.host, ...nodes.map((node) => node.host)]) },
    }
    const problems = shortfalls(result)
    return { ok: problems.length === 0, ...result, problems }
  } finally {
    await datacenter.stop({ keep: options.keep })
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
