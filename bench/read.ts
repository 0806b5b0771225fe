// Bench "read": a mounted image whose blocks are all local, with cold kernel caches, against the same tree unpacked on native ext4.
import { mkdtempSync, rmSync, statfsSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { SkimmerError } from '../oci/errors.ts'
import type { MountAnswer } from '../node/api/answers.ts'
import { Datacenter } from './lab/datacenter.ts'
import type { Say } from './lab/image.ts'
import { run } from './lab/process.ts'
import type { BenchContext, BenchResult } from './run.ts'

const RANDOM_READS = 4000
/**
 * `file` and `loop` are mounted when the image is whole and proved, as every later container finds it. `file-first` is mounted before
 * its blocks are here, as the first container is: its reads go through the FUSE channel for good.
 */
const MOUNTS = [
  { name: 'file', mode: 'file', whenWhole: true },
  { name: 'loop', mode: 'loop', whenWhole: true },
  { name: 'file-first', mode: 'file', whenWhole: false },
]
/** Odd, so that the median is one of them. */
const ROUNDS = 5
const EXT4_MAGIC = 0xef53

export async function benchRead(context: BenchContext): Promise<BenchResult> {
  const datacenter = await Datacenter.start({ ...context, mbit: 1000, nodes: MOUNTS.map(({ name }) => name), ordinary: false })
  const native = mkdtempSync(join(tmpdir(), 'skimmer-read-'))
  try {
    if (statfsSync(native).type !== EXT4_MAGIC) throw new SkimmerError('UNSUPPORTED', `${native} is not on ext4: set TMPDIR to a directory that is`)
    await datacenter.preheat()
    const trees: { mode: string; path: string }[] = []
    for (const { name, mode, whenWhole } of MOUNTS) {
      const node = await datacenter.startNode(name, { containerd: false, flags: ['--fuse-mode', mode] })
      const reference = { reference: datacenter.reference }
      if (whenWhole) {
        await node.api('/v1/images', { method: 'POST', body: reference, timeoutMs: 300_000 })
        await datacenter.untilWhole(node)
      }
      const { mountPoint } = await node.api<MountAnswer>('/v1/mounts', { method: 'POST', body: { ...reference, target: join(datacenter.directory, `mnt-${name}`) }, timeoutMs: 300_000 })
      await datacenter.untilWhole(node)
      trees.push({ mode: name, path: mountPoint })
    }
    context.say('unpacking the same tree on ext4')
    const unpacked = join(native, 'tree')
    await run(['cp', '-a', `${trees[0].path}/.`, unpacked])
    await run(['sync'])
    const list = join(native, 'reads')
    await writeReadList(unpacked, list)
    const results: { what: string; mode: string; ratioToExt4: number; milliseconds: number }[] = []
    for (const what of ['tree', 'random-4k'] as const) {
      // Round by round, so that noise of the machine meets all alike.
      const times = new Map<string, number[]>()
      for (let round = 0; round < ROUNDS; round++) {
        for (const { mode, path } of [{ mode: 'ext4', path: unpacked }, ...trees]) {
          const ms = await timeRead(what, path, list, context.say)
          times.set(mode, [...(times.get(mode) ?? []), ms])
        }
      }
      const median = (mode: string): number => times.get(mode)!.toSorted((a, b) => a - b)[Math.floor(ROUNDS / 2)]
      for (const mode of ['ext4', ...MOUNTS.map(({ name }) => name)]) results.push({ what, mode, ratioToExt4: median(mode) / median('ext4'), milliseconds: Math.round(median(mode)) })
    }
    return {
      json: { read: results },
      lines: results.map(({ what, mode, ratioToExt4, milliseconds }) => `read ${what}, ${mode}: ${milliseconds} ms, ${ratioToExt4.toFixed(2)} times ext4`),
    }
  } finally {
    await datacenter.stop()
    rmSync(native, { recursive: true, force: true })
  }
}

/** The same reads for all: `offset path` lines, drawn from a fixed seed over all files by their bytes. */
async function writeReadList(tree: string, file: string): Promise<void> {
  const { stdout } = await run(['find', tree, '-type', 'f', '-size', '+3k', '-printf', '%s %P\n'])
  const files = stdout.trimEnd().split('\n').sort().map((line) => ({ size: Number(line.slice(0, line.indexOf(' '))), path: line.slice(line.indexOf(' ') + 1) }))
  const ends: number[] = []
  let total = 0
  for (const { size } of files) ends.push((total += size))
  let state = 0x2545f491
  const random = (): number => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) / 2 ** 32
  }
  const lines: string[] = []
  for (let read = 0; read < RANDOM_READS; read++) {
    const at = random() * total
    const index = ends.findIndex((end) => end > at)
    const inside = Math.floor((at - (ends[index] - files[index].size)) / 4096) * 4096
    lines.push(`${inside} ${files[index].path}`)
  }
  writeFileSync(file, `${lines.join('\n')}\n`)
}

const READER = `
const fs = require('node:fs')
const [tree, list] = process.argv.slice(1)
const reads = fs.readFileSync(list, 'utf8').trimEnd().split('\\n').map((line) => [Number(line.slice(0, line.indexOf(' '))), tree + '/' + line.slice(line.indexOf(' ') + 1)])
const into = Buffer.alloc(4096)
const started = process.hrtime.bigint()
for (const [offset, path] of reads) {
  const fd = fs.openSync(path)
  fs.readSync(fd, into, 0, 4096, offset)
  fs.closeSync(fd)
}
console.log(Number(process.hrtime.bigint() - started) / 1e6)
`

async function timeRead(what: 'tree' | 'random-4k', tree: string, list: string, say: Say): Promise<number> {
  writeFileSync('/proc/sys/vm/drop_caches', '3')
  if (what === 'tree') {
    const { elapsedMs } = await run(['sh', '-c', 'find "$0" -xdev -type f -print0 | xargs -0 cat >/dev/null', tree])
    say(`whole tree of ${tree}: ${Math.round(elapsedMs)} ms`)
    return elapsedMs
  }
  const { stdout } = await run([process.execPath, '-e', READER, tree, list])
  say(`4 KiB reads of ${tree}: ${Math.round(Number(stdout))} ms`)
  return Number(stdout)
}
