// Bench "fanout": six nodes want a whole image at once over 200 Mbit/s links; the slowest one's time against one node's time alone.
import { readFileSync } from 'node:fs'
import { formatDuration } from '../command-line/units.ts'
import type { ImageAnswer } from '../node/api/answers.ts'
import type { LabNode } from './lab/cluster.ts'
import { Datacenter } from './lab/datacenter.ts'
import type { LabHost } from './lab/network.ts'
import { run } from './lab/process.ts'
import type { BenchContext, BenchResult } from './run.ts'

const MBIT = 200
const CROWD = ['n1', 'n2', 'n3', 'n4', 'n5', 'n6']
/** Kernel clock ticks per second in /proc/PID/stat (USER_HZ: 100 on every Linux). */
const TICKS = 100

export async function benchFanout(context: BenchContext): Promise<BenchResult> {
  const datacenter = await Datacenter.start({ ...context, mbit: MBIT, nodes: ['alone', ...CROWD] })
  try {
    context.say('the supernode indexes the image')
    await datacenter.preheat()
    const alone = await datacenter.startNode('alone', { containerd: false })
    const aloneMs = await hold(datacenter, alone, Date.now())
    context.say(`one node alone: whole after ${formatDuration(aloneMs)}`)
    // It must not help the crowd: they start as the first nodes of a datacenter do.
    await alone.process.stop()

    const crowd: LabNode[] = []
    for (const name of CROWD) crowd.push(await datacenter.startNode(name, { containerd: false }))
    const hosts = [datacenter.supernode.host, ...crowd.map((node) => node.host)]
    const sentBefore = (await datacenter.supernode.host.linkBytes()).sent
    const cpuBefore = await cpuSeconds(hosts)
    const started = Date.now()
    const times = await Promise.all(crowd.map((node) => hold(datacenter, node, started)))
    const cpu = (await cpuSeconds(hosts)) - cpuBefore
    const supernodeSent = (await datacenter.supernode.host.linkBytes()).sent - sentBefore
    const image = await datacenter.untilWhole(crowd[0], { proved: false })
    const packedBytes = image.layers.reduce((sum, layer) => sum + layer.packedBytes, 0)
    const slowest = Math.max(...times)
    context.say(`six nodes at once: ${times.map((time) => formatDuration(time)).join(', ')}`)
    const fanout = {
      ratio: slowest / aloneMs,
      registryCopies: datacenter.registryCopies([datacenter.supernode.host, alone.host, ...crowd.map((node) => node.host)]),
      supernodeCopies: supernodeSent / packedBytes,
      cpuSecondsPerGB: cpu / ((packedBytes * CROWD.length) / 1e9),
    }
    return {
      json: { fanout },
      lines: [
        `fanout: slowest of six ${formatDuration(slowest)}, one alone ${formatDuration(aloneMs)}: ratio ${fanout.ratio.toFixed(2)} (goal 1.6 at most)`,
        `fanout: ${fanout.supernodeCopies.toFixed(2)} copies left the supernode (goal 2 at most; frames and headers counted), ${fanout.registryCopies.toFixed(2)} the registry`,
        `fanout: ${fanout.cpuSecondsPerGB.toFixed(2)} CPU seconds per GB moved, both ends and the proofs that fell in that time`,
      ],
    }
  } finally {
    await datacenter.stop()
  }
}

/** Milliseconds from `started` until the node holds every block. */
async function hold(datacenter: Datacenter, node: LabNode, started: number): Promise<number> {
  await node.api('/v1/images', { method: 'POST', body: { reference: datacenter.reference }, timeoutMs: 300_000 })
  const image: ImageAnswer = await datacenter.untilWhole(node, { proved: false })
  return Math.max(...image.layers.map((layer) => layer.wholeAt ?? Date.now())) - started
}

/** CPU seconds, user and system, of all processes in these hosts so far. */
async function cpuSeconds(hosts: readonly LabHost[]): Promise<number> {
  let ticks = 0
  for (const host of hosts) {
    const { stdout } = await run(['ip', 'netns', 'pids', host.namespace])
    for (const pid of stdout.split('\n').filter(Boolean)) {
      try {
        // Fields behind the command's closing parenthesis: utime and stime are 14 and 15 of all.
        const fields = readFileSync(`/proc/${pid}/stat`, 'latin1').split(') ').at(-1)!.split(' ')
        ticks += Number(fields[11]) + Number(fields[12])
      } catch {
        // ended meanwhile
      }
    }
  }
  return ticks / TICKS
}
