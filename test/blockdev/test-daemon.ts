// A small daemon for the supervisor's tests: serves one file as a layer of raw blocks that arrive late, and answers on its kept socket.
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import net from 'node:net'
import { pino } from 'pino'
import { FuseChannel } from '../../blockdev/fuse-channel.ts'
import { inheritance } from '../../blockdev/inheritance.ts'
import { buildBlockTable, CODEC_RAW } from '../../image/block-table.ts'
import type { SharedResource } from '../../peer/shared-resource.ts'

const [file, delayText, log] = process.argv.slice(2)
const given = inheritance()
if (given === undefined) throw new Error('start me by the supervisor')
await given.link.prepared()

const packFd = fs.openSync(file, 'r')
const size = fs.fstatSync(packFd).size
const BLOCK = 256 * 1024
const hash = createHash('sha256').digest()
const table = buildBlockTable(Array.from({ length: Math.ceil(size / BLOCK) }, (_, block) => {
  const length = Math.min(BLOCK, size - block * BLOCK)
  return { rawLength: length, packedLength: length, codec: CODEC_RAW, hash }
}))
const resource: SharedResource = {
  id: 'layer:test', number: 1, table, packFd,
  state: new Uint8Array(new SharedArrayBuffer(table.count)),
  rawFdCell: new Int32Array(new SharedArrayBuffer(8)).fill(-1, 0, 1),
  lastUse: new Float64Array(new SharedArrayBuffer(8)),
  held: { ring: new Uint8Array(new SharedArrayBuffer(0)), at: new Int32Array(new SharedArrayBuffer(table.count * 4)) },
}
const channel = new FuseChannel({
  source: {
    read: async (_, ranges) => {
      await new Promise((resolve) => setTimeout(resolve, Number(delayText)))
      for (const { from, to } of ranges) resource.state.fill(2, from, to)
    },
  },
  logger: pino({ level: 'silent' }),
}, given.fuse)
await channel.start()
channel.publishLayer('test', resource)
channel.restored()

const server = net.createServer((socket) => socket.end(`${process.pid}\n`))
for (const fd of given.sockets.values()) server.listen({ fd })
given.link.serving()
fs.appendFileSync(log, `${process.pid} serves\n`)

async function handOver(): Promise<never> {
  await channel.stop({ handOver: true })
  fs.appendFileSync(log, `${process.pid} hands over\n`)
  return given!.link.end()
}

given.link.on('handover', () => {
  void handOver()
})
given.link.on('orphaned', () => fs.appendFileSync(log, `${process.pid} orphaned\n`))
process.on('SIGTERM', () => {
  void channel.stop().then(() => process.kill(process.pid, 'SIGKILL'))
})
