// What the demo found: the JSON's shape, and the table that people read.
import { formatDuration, formatSize } from '../../command-line/units.ts'

export interface Sources {
  readonly local: number
  readonly peer: number
  readonly supernode: number
  readonly registry: number
}

export interface NodeResult {
  readonly name: string
  /** Whether the supernode held the image's index when the pull began. */
  readonly indexed: boolean
  /** Milliseconds from the start of the pull to the container's first byte of output. */
  readonly firstOutputMs: number
  /** Bytes fetched from anywhere but the local store until then: packed blocks and layer indexes. */
  readonly bytesBeforeFirstOutput: number
  readonly sourcesBeforeFirstOutput: Sources
  /** Bytes by source until the image was whole. */
  readonly sources: Sources
  /** Milliseconds from the start of the pull until every layer was here. */
  readonly wholeMs: number
  /** Every layer's stream hashed to its diffID. */
  readonly proved: boolean
}

export interface DemoResult {
  readonly ok: boolean
  readonly image: { readonly ref: string; readonly layers: number; readonly rawBytes: number; readonly packedBytes: number; readonly registryBytes: number }
  readonly ordinary: { readonly firstOutputMs: number; readonly bytes: number }
  readonly nodes: readonly NodeResult[]
  readonly registry: { readonly copies: number }
  /** What fell short, in words; empty when ok. */
  readonly problems: readonly string[]
}

const percent = (part: number, whole: number): string => `${((100 * part) / Math.max(1, whole)).toFixed(1)} %`

/** Plain text, fixed columns: the same on a terminal and in a log. */
export function renderTable(result: DemoResult): string {
  const { image, ordinary } = result
  const rows = [['node', 'index was', 'first output', 'sooner', 'fetched until then', 'from peer/supernode/registry', 'whole and proved']]
  rows.push(['ordinary', '-', formatDuration(ordinary.firstOutputMs), '1.0 x', `${formatSize(ordinary.bytes)} (100 %)`, '-', '-'])
  for (const node of result.nodes) {
    const { peer, supernode, registry } = node.sources
    const total = peer + supernode + registry
    rows.push([
      node.name,
      node.indexed ? 'there' : 'made while it started',
      formatDuration(node.firstOutputMs),
      `${(ordinary.firstOutputMs / node.firstOutputMs).toFixed(1)} x`,
      `${formatSize(node.bytesBeforeFirstOutput)} (${percent(node.bytesBeforeFirstOutput, image.packedBytes)})`,
      [peer, supernode, registry].map((bytes) => percent(bytes, total)).join(' / '),
      `${formatDuration(node.wholeMs)}${node.proved ? '' : ', NOT PROVED'}`,
    ])
  }
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)))
  const lines = rows.map((row) => row.map((cell, column) => cell.padEnd(widths[column])).join('   ').trimEnd())
  lines.splice(1, 0, widths.map((width) => '-'.repeat(width)).join('   '))
  return [
    `${image.ref}: ${image.layers} layers, ${formatSize(image.registryBytes)} in the registry, ${formatSize(image.rawBytes)} unpacked, ${formatSize(image.packedBytes)} as blocks`,
    '',
    ...lines,
    '',
    `copies of the layers that left the registry toward supernode and lazy nodes: ${result.registry.copies.toFixed(3)}`,
    ...(result.problems.length === 0 ? ['all as promised'] : ['not as promised:', ...result.problems.map((problem) => `  ${problem}`)]),
  ].join('\n')
}
