// `skimmer status` and `skimmer explain`: what the node on this machine does, and why an image starts lazily or not.
import type { Command } from 'commander'
import type { TransferAnswer } from '../../dfget/transfer.ts'
import { callNode } from '../api/client.ts'
import type { ExplainAnswer, StatusAnswer } from '../api/answers.ts'
import { formatDuration, formatSize } from '../../command-line/units.ts'
import { socketOption } from './socket-option.ts'

export function addStatus(program: Command): void {
  program
    .command('status')
    .summary('show what the node on this machine holds and does')
    .description('Asks the node on this machine: its supernodes and peers, how full its cache is, and the images it has mounted with how much of each is here.')
    .addOption(socketOption())
    .option('--json', 'print JSON')
    .action(async (flags: { socket: string; json?: boolean }) => {
      const status = await callNode<StatusAnswer>(flags.socket, '/v1/status')
      if (flags.json) return void process.stdout.write(`${JSON.stringify(status, null, 2)}\n`)
      const lines = [
        `node ${status.peerId}, version ${status.version}, up ${formatDuration(status.uptimeMs)}, images mounted by ${status.mode}`,
        ...status.supernodes.map((supernode) => `supernode ${supernode.address}: ${supernode.connected ? 'connected' : 'not connected'}`),
        `peers connected: ${status.peers}`,
        `cache: ${formatSize(status.cache.packedBytes + status.cache.rawBytes)} of ${formatSize(status.cache.capBytes)} (blocks ${formatSize(status.cache.packedBytes)}, unpacked ${formatSize(status.cache.rawBytes)})`,
        ...status.images.map((image) => `image ${image.imageId.slice(0, 12)}: ${image.layers} layers, ${formatSize(image.storedBytes)} of ${formatSize(image.packedBytes)} here${image.proved ? ', whole and proved' : ''}, ${image.users} in use`),
        ...status.files.map(fileLine),
      ]
      process.stdout.write(`${lines.join('\n')}\n`)
    })
  program
    .command('explain')
    .summary('say which snapshots are lazy, which are not, and why; and which reads failed')
    .description('Asks the node on this machine. One line a snapshot of containerd: whether its layers are served lazily or were unpacked the ordinary way, and why; then the last 100 reads that failed, with what was tried.')
    .addOption(socketOption())
    .option('--json', 'print JSON')
    .action(async (flags: { socket: string; json?: boolean }) => {
      const answer = await callNode<ExplainAnswer>(flags.socket, '/v1/explain')
      if (flags.json) return void process.stdout.write(`${JSON.stringify(answer, null, 2)}\n`)
      for (const snapshot of answer.snapshots) process.stdout.write(`${snapshot.lazy ? 'lazy    ' : 'ordinary'}  ${snapshot.kind.padEnd(9)}  ${snapshot.name}: ${snapshot.why}\n`)
      for (const failure of answer.readFailures) process.stdout.write(`a read failed at ${new Date(failure.at).toISOString()} after ${formatDuration(failure.waitedMs)}: ${failure.reason}\n`)
      if (answer.snapshots.length === 0) process.stdout.write('no snapshots\n')
    })
}

function fileLine(file: TransferAnswer): string {
  const size = file.length === undefined ? formatSize(file.sent) : `${formatSize(file.sent)} of ${formatSize(file.length)}`
  const { peer, supernode, source, local } = file.received
  const from = Object.entries({ here: local, peers: peer, supernode, source }).filter(([, bytes]) => bytes > 0).map(([name, bytes]) => `${name} ${formatSize(bytes)}`)
  const how = file.state === 'running' ? `${formatSize(file.rate)}/s` : file.failed === undefined ? file.state : `${file.state}: ${file.failed.message}`
  return `file ${file.url}: ${size}, ${how}${from.length > 0 ? ` (${from.join(', ')})` : ''}`
}
