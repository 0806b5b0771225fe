// A client that comes while the daemon still loads its code is greeted at once, and its calls are answered later.
import { afterEach, beforeEach, expect, test } from '@jest/globals'
import { once } from 'node:events'
import { connect } from 'node:net'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { MemoryLevel } from 'memory-level'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { EarlyGreeter } from '../../snapshotter/early-greeter.ts'
import { Snapshotter } from '../../snapshotter/service.ts'
import { SnapshotterServer } from '../../snapshotter/snapshotter-server.ts'
import { SnapshotsClient } from './client.ts'

const logger = pino({ level: 'silent' })
const PREFACE = 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'
const SETTINGS = Buffer.from([0, 0, 0, 4, 0, 0, 0, 0, 0])
let directory: string
let path: string
let client: SnapshotsClient
let greeter: EarlyGreeter
let snapshotter: Snapshotter | undefined

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'skg-'))
  path = join(directory, 's.sock')
  client = new SnapshotsClient(path)
  greeter = await EarlyGreeter.listen({ path })
})
afterEach(async () => {
  client.close()
  await snapshotter?.stop()
  snapshotter = undefined
  rmSync(directory, { recursive: true, force: true })
})
const serve = async (server: SnapshotterServer): Promise<void> => {
  snapshotter = new Snapshotter({ db: new MemoryLevel<string, string>(), logger, metrics: new Registry() }, { root: join(directory, 'root') })
  await snapshotter.start(server)
}

test('calls made before there is a server, before there is a snapshotter, and after are all answered', async () => {
  const before = client.call('Prepare', { key: 'before', labels: { 'containerd.io/gc.root': 'x'.repeat(3000) } })
  const greeted = connect(path)
  greeted.write(PREFACE)
  greeted.write(SETTINGS)
  expect((await once(greeted, 'data'))[0]).toEqual(SETTINGS)
  const server = await SnapshotterServer.listen({ logger }, { greeter })
  const between = client.call('Prepare', { key: 'between' })
  await serve(server)
  await Promise.all([before, between])
  await client.call('Prepare', { key: 'after' })
  expect((await client.list()).map(({ name }) => name).sort()).toEqual(['after', 'before', 'between'])
  // The acknowledgement may come in pieces, and later than the server.
  greeted.write(Buffer.from([0, 0, 0, 4, 1]))
  greeted.write(Buffer.from([0, 0, 0, 0]))
  const [answer] = (await once(greeted, 'data')) as [Buffer]
  expect(answer[3]).toBe(4)
  greeted.destroy()
})

test('who speaks something else is let go, and so is who never stops talking', async () => {
  const web = connect(path)
  web.write('GET / HTTP/1.1\r\n\r\n')
  await once(web.resume(), 'close')
  const endless = connect(path)
  endless.on('error', () => {}).write(PREFACE)
  const frame = Buffer.alloc(9 + 16_384)
  frame.writeUIntBE(16_384, 0, 3)
  const talking = setInterval(() => endless.write(frame), 1)
  // Being let go while it writes is an error to it.
  await new Promise((resolve) => endless.resume().once('close', resolve))
  clearInterval(talking)
  await serve(await SnapshotterServer.listen({ logger }, { greeter }))
  await client.call('Prepare', { key: 'still here' })
})
