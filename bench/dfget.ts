// Bench "dfget": one node at 1 Gbit/s and six nodes at 200 Mbit/s get a file by dfget, against curl from the same source over the same links.
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { formatSize, formatDuration } from '../command-line/units.ts'
import { SkimmerError } from '../oci/errors.ts'
import { LabNode, LabSupernode, dfgetArgv } from './lab/cluster.ts'
import { LabFileServer } from './lab/file-server.ts'
import { type LabHost, LabNetwork } from './lab/network.ts'
import { run } from './lab/process.ts'
import type { BenchContext, BenchResult } from './run.ts'

const MIB = 1024 * 1024
const ONE = { name: 'one.bin', bytes: 1024 * MIB, mbit: 1000 }
const SIX = { name: 'six.bin', bytes: 256 * MIB, mbit: 200 }
/** What memory is compared with: no growth with the file's size. */
const SMALL = { name: 'small.bin', bytes: 256 * MIB }
const CROWD = ['n1', 'n2', 'n3', 'n4', 'n5', 'n6']

interface Peak { node: number; dfget: number }

export async function benchDfget(context: BenchContext): Promise<BenchResult> {
  const directory = mkdtempSync(join(tmpdir(), 'skimmer-lab-'))
  const files = join(directory, 'files')
  mkdirSync(files)
  const network = await LabNetwork.create(['source', 'supernode', 'alone', ...CROWD].map((name) => ({ name, mbit: ONE.mbit })), { directory })
  try {
    context.say('making the files')
    for (const file of [SMALL, ONE, SIX]) await run(['dd', 'if=/dev/urandom', `of=${join(files, file.name)}`, 'bs=1M', `count=${file.bytes / MIB}`, 'status=none'], { signal: context.signal })
    const server = await LabFileServer.start(network.host('source'), { files, directory: join(directory, 'nginx') })
    const supernode = await LabSupernode.start(network.host('supernode'), { directory: join(directory, 'supernode'), plainHttp: [] })
    const bench = new DfgetBench(context, network, directory, server, supernode)
    const one = await bench.oneNode()
    const six = await bench.sixNodes()
    const dfget = {
      oneNodeRateRatio: one.curlMs / one.dfgetMs,
      sixNodesTimeRatio: six.dfgetMs / six.curlMs,
      sourceCopies: Math.max(one.copies, six.copies),
      maxRssMiB: Math.max(one.peak.node, one.peak.dfget, six.peak.node, six.peak.dfget),
    }
    return {
      json: { dfget },
      lines: [
        `dfget: one node, 1 GiB at 1 Gbit/s: ${formatDuration(one.dfgetMs)}, curl ${formatDuration(one.curlMs)}: ${dfget.oneNodeRateRatio.toFixed(2)} of curl's rate (goal 0.95 at least)`,
        `dfget: six nodes, 256 MiB at 200 Mbit/s: ${formatDuration(six.dfgetMs)}, six curls ${formatDuration(six.curlMs)}: ratio ${dfget.sixNodesTimeRatio.toFixed(3)} (goal 0.25 at most)`,
        `dfget: copies out of the source: ${one.copies.toFixed(3)} and ${six.copies.toFixed(3)} (goal 1.0)`,
        `dfget: peak resident memory, MiB: node ${one.peak.node.toFixed(0)} and dfget ${one.peak.dfget.toFixed(0)} for 1 GiB (${one.before.node.toFixed(0)} and ${one.before.dfget.toFixed(0)} for ${formatSize(SMALL.bytes)}), ${six.peak.node.toFixed(0)} and ${six.peak.dfget.toFixed(0)} among six (goal 150 at most)`,
      ],
    }
  } finally {
    context.say('taking everything down')
    await network.destroy()
    rmSync(directory, { recursive: true, force: true })
  }
}

class DfgetBench {
  readonly #context: BenchContext
  readonly #network: LabNetwork
  readonly #directory: string
  readonly #server: LabFileServer
  readonly #supernode: LabSupernode

  constructor(context: BenchContext, network: LabNetwork, directory: string, server: LabFileServer, supernode: LabSupernode) {
    this.#context = context
    this.#network = network
    this.#directory = directory
    this.#server = server
    this.#supernode = supernode
  }

  /** One node alone: nobody has the file, the source's link is as fast as its own. */
  async oneNode(): Promise<{ curlMs: number; dfgetMs: number; copies: number; before: Peak; peak: Peak }> {
    const host = this.#network.host('alone')
    const curlMs = await this.#curl(host, ONE.name)
    this.#context.say(`one node: curl ${formatDuration(curlMs)}`)
    const node = await this.#startNode('alone')
    const small = await this.#dfget(node, SMALL)
    const before = { node: peakMiB(host, isDaemon), dfget: small.peakMiB }
    const servedBefore = this.#server.served(`/${ONE.name}`)
    const { elapsedMs, peakMiB: dfgetPeak } = await this.#dfget(node, ONE)
    this.#context.say(`one node: dfget ${formatDuration(elapsedMs)}`)
    const copies = (this.#server.served(`/${ONE.name}`) - servedBefore) / ONE.bytes
    const peak = { node: peakMiB(host, isDaemon), dfget: dfgetPeak }
    await node.process.stop()
    return { curlMs, dfgetMs: elapsedMs, copies, before, peak }
  }

  /** Six at once; the slowest one's time counts. */
  async sixNodes(): Promise<{ curlMs: number; dfgetMs: number; copies: number; peak: Peak }> {
    const hosts = CROWD.map((name) => this.#network.host(name))
    for (const host of [this.#network.host('source'), this.#network.host('supernode'), ...hosts]) await host.setRate(SIX.mbit)
    const curlMs = Math.max(...await Promise.all(hosts.map((host) => this.#curl(host, SIX.name))))
    this.#context.say(`six nodes: curl ${formatDuration(curlMs)}`)
    const nodes = await Promise.all(CROWD.map((name) => this.#startNode(name)))
    const servedBefore = this.#server.served(`/${SIX.name}`)
    const results = await Promise.all(nodes.map((node) => this.#dfget(node, SIX)))
    this.#context.say(`six nodes: dfget ${results.map(({ elapsedMs }) => formatDuration(elapsedMs)).join(', ')}`)
    const copies = (this.#server.served(`/${SIX.name}`) - servedBefore) / SIX.bytes
    const peak = { node: Math.max(...hosts.map((host) => peakMiB(host, isDaemon))), dfget: Math.max(...results.map((result) => result.peakMiB)) }
    return { curlMs, dfgetMs: Math.max(...results.map(({ elapsedMs }) => elapsedMs)), copies, peak }
  }

  #startNode(name: string): Promise<LabNode> {
    return LabNode.start(this.#network.host(name), { directory: join(this.#directory, name), supernodes: [this.#supernode.address], plainHttp: [], containerd: false })
  }

  async #curl(host: LabHost, name: string): Promise<number> {
    const target = join(this.#directory, `${host.name}.curl`)
    const { elapsedMs } = await host.run(['curl', '--silent', '--show-error', '--fail', '--output', target, `${this.#server.url}/${name}`], { signal: this.#context.signal, timeoutMs: 600_000 })
    await this.#check(target, name)
    return elapsedMs
  }

  async #dfget(node: LabNode, file: { name: string; bytes: number }): Promise<{ elapsedMs: number; peakMiB: number }> {
    const target = join(this.#directory, `${node.name}.dfget`)
    // GNU time tells the peak of a process that is gone when it has ended: ru_maxrss, KiB.
    const { elapsedMs, stderr } = await node.host.run(['time', '--quiet', '--format', 'peak %M KiB', ...dfgetArgv(`${this.#server.url}/${file.name}`, '-O', target, '--quiet', '--disable-back-to-source')], {
      signal: this.#context.signal, timeoutMs: 600_000, env: { SKIMMER_SOCKET: node.apiSocket },
    })
    await this.#check(target, file.name)
    const peak = /peak (\d+) KiB/.exec(stderr)
    if (peak === null) throw new SkimmerError('INVALID_DATA', `time(1) says nothing of dfget's memory: ${stderr.slice(-200)}`)
    return { elapsedMs, peakMiB: Number(peak[1]) / 1024 }
  }

  async #check(path: string, name: string): Promise<void> {
    await run(['cmp', path, join(this.#directory, 'files', name)], { signal: this.#context.signal })
    rmSync(path)
  }
}

/** The supervisor beside it is only a keeper of file descriptors. */
const isDaemon = (words: readonly string[]): boolean => words.some((word) => /\/daemon-main\.[jt]s$/.test(word))

/** The largest resident memory, MiB, that any such process of the host has had: VmHWM. */
function peakMiB(host: LabHost, which: (words: readonly string[]) => boolean): number {
  let peak = 0
  const wanted = readNetwork(`/run/netns/${host.namespace}`)
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    try {
      if (readNetwork(`/proc/${pid}/ns/net`) !== wanted || !which(readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0'))) continue
      peak = Math.max(peak, Number(/^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1] ?? 0) / 1024)
    } catch {
      // ended meanwhile
    }
  }
  if (peak === 0) throw new SkimmerError('NOT_FOUND', `${host.name} has no such process to measure`)
  return peak
}

/** A network namespace is the inode behind its name. */
const readNetwork = (path: string): number => statSync(path).ino
