// `skimmer inspect`: what an image is made of, and how much of it is on this machine.
import type { Command } from 'commander'
import type { ImageAnswer } from '../api/answers.ts'
import { callNode } from '../api/client.ts'
import { formatSize } from '../../command-line/units.ts'
import { interruptible } from '../../command-line/interrupt.ts'
import { socketOption } from './socket-option.ts'

const INSPECT_TIMEOUT_MS = 600_000

export function addInspect(program: Command): void {
  program
    .command('inspect')
    .summary("show an image's layers, blocks and files, and what of it is here")
    .description('Asks the node on this machine; an image that nobody has seen yet is indexed for it. Its blocks are not fetched.')
    .addHelpText('after', `
A layer is "whole" when all its blocks are on this machine, "proved" when the hash of its unpacked stream is the diffID that the image's config
names, and QUARANTINED when that hash is another: no new container may use it.`)
    .argument('<IMAGE>', 'an image reference')
    .addOption(socketOption())
    .option('--json', 'print JSON')
    .action(async (reference: string, flags: { socket: string; json?: boolean }) => {
      const image = await interruptible((signal) => callNode<ImageAnswer>(flags.socket, `/v1/image?reference=${encodeURIComponent(reference)}`, { timeoutMs: INSPECT_TIMEOUT_MS, signal }))
      if (flags.json) return void process.stdout.write(`${JSON.stringify(image, null, 2)}\n`)
      const sum = (pick: (layer: ImageAnswer['layers'][number]) => number): number => image.layers.reduce((total, layer) => total + pick(layer), 0)
      const lines = [
        `${image.reference}`,
        `image id ${image.imageId}`,
        `${image.layers.length} layers, ${sum((layer) => layer.files)} entries; ${formatSize(sum((layer) => layer.layerSize))} in the registry, ${formatSize(sum((layer) => layer.rawBytes))} unpacked, ${formatSize(sum((layer) => layer.packedBytes))} as blocks`,
        `here: ${formatSize(sum((layer) => layer.storedBytes))} (${((100 * sum((layer) => layer.storedBytes)) / Math.max(1, sum((layer) => layer.packedBytes))).toFixed(1)} %)`,
        '',
        ...image.layers.map((layer, position) => {
          const state = layer.quarantined ? 'QUARANTINED' : layer.proved ? 'whole, proved' : layer.whole ? 'whole' : `${layer.storedBlocks} of ${layer.blocks} blocks`
          return `${String(position + 1).padStart(3)}  ${layer.layerDigest.slice(0, 19)}  ${formatSize(layer.rawBytes).padStart(10)}  ${String(layer.files).padStart(7)} entries  ${String(layer.blocks).padStart(6)} blocks  ${state}`
        }),
      ]
      process.stdout.write(`${lines.join('\n')}\n`)
    })
}
