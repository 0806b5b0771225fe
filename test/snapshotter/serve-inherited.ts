// A snapshotter daemon in a process of its own, on a listening socket it inherited: node serve-inherited.ts DIRECTORY FD. It ends with its standard input.
import { join } from 'node:path'
import { Level } from 'level'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { Snapshotter } from '../../snapshotter/service.ts'

const [directory, fd] = process.argv.slice(2)
const db = new Level<string, string>(join(directory, 'db'))
const snapshotter = new Snapshotter({ db: db.sublevel('snapshots'), logger: pino({ level: 'silent' }), metrics: new Registry() }, { root: join(directory, 'root') })
await snapshotter.start({ fd: Number(fd) })
process.stdout.write(`${process.pid}\n`)
process.once('SIGTERM', async () => {
  await snapshotter.stop()
  await db.close()
  process.exit(0)
})
process.stdin.resume().once('end', () => process.exit(0))
