// A daemon may die; a read may not: kill -9, hot upgrade, and the supervisor's own death, with a reader in the middle.
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import fs from 'node:fs'
import net from 'node:net'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { mountsUnder } from '../../blockdev/mount-table.ts'
import { stateFileIn, superviseCommand } from '../../blockdev/supervise.ts'
import { isAlive, readSupervisorState } from '../../blockdev/supervisor-state.ts'
import { run, temporaryDirectory, until, whyNoMounts } from './layer-fixture.ts'

const suite = whyNoMounts === '' ? describe : describe.skip
const DAEMON = fileURLToPath(new URL('./test-daemon.ts', import.meta.url))

suite(`the supervisor ${whyNoMounts}`, () => {
  let directory: string
  let mountPoint: string
  let stateDirectory: string
  let log: string
  let big: string
  const supervisors: ChildProcess[] = []

  beforeEach(() => {
    directory = temporaryDirectory()
    mountPoint = path.join(directory, 'fs')
    stateDirectory = path.join(directory, 'run')
    log = path.join(directory, 'log')
    big = path.join(directory, 'big')
    fs.writeFileSync(log, '')
  })

  afterEach(async () => {
    for (const child of supervisors.splice(0)) {
      if (child.exitCode !== null || child.signalCode !== null) continue
      const ended = new Promise((resolve) => child.once('exit', resolve))
      child.kill('SIGTERM')
      await ended
    }
    const orphan = daemon()
    if (isAlive(orphan)) process.kill(orphan?.pid as number, 'SIGKILL')
    await run('umount', '-l', mountPoint)
    expect(mountsUnder(directory)).toEqual([])
    fs.rmSync(directory, { recursive: true })
  })

  const state = () => readSupervisorState(stateFileIn(stateDirectory))
  const daemon = () => state()?.daemon
  const served = () => fs.readFileSync(log, 'utf8').split('\n').filter((line) => line.endsWith('serves')).length
  const socket = () => path.join(stateDirectory, 'test.sock')
  const layer = () => path.join(mountPoint, 'layers', 'test')

  function bigFile(megabytes: number): string {
    const hash = createHash('sha256')
    const fd = fs.openSync(big, 'w')
    for (let at = 0; at < megabytes; at++) {
      const piece = randomBytes(1 << 20)
      hash.update(piece)
      fs.writeSync(fd, piece)
    }
    fs.closeSync(fd)
    return hash.digest('hex')
  }

  const daemonCommand = (delayMs: number) => [process.execPath, DAEMON, big, String(delayMs), log]

  async function start(delayMs: number, daemonWords = daemonCommand(delayMs)): Promise<ChildProcess> {
    const before = served()
    const [command, ...words] = superviseCommand({ mountPoint, stateDirectory, command: daemonWords, listen: [`unix:${socket()}`] })
    const child = spawn(command, words, { stdio: ['ignore', 'ignore', 'pipe'] })
    child.stderr?.resume()
    supervisors.push(child)
    await until(() => served() > before)
    return child
  }

  const sha256 = async (): Promise<string> => {
    const { status, stdout, stderr } = await run('sha256sum', layer())
    if (status !== 0) throw new Error(stderr)
    return stdout.toString().slice(0, 64)
  }

  const whoAnswers = (): Promise<number> => new Promise((resolve, reject) => {
    net.connect(socket()).on('data', (data) => resolve(Number(data))).on('error', reject)
  })

  test('twenty kill -9 of the daemon while a reader hashes 220 MB: right sha256, no error', async () => {
    const expected = bigFile(220)
    await start(1)
    const killing = { done: false, kills: 0, rounds: 0 }
    const reading = (async () => {
      while (!killing.done) {
        expect(await sha256()).toBe(expected)
        killing.rounds++
        await run('sh', '-c', 'echo 1 > /proc/sys/vm/drop_caches')
      }
    })()
    const failed = reading.then(() => false, () => true)
    for (; killing.kills < 20; killing.kills++) {
      const before = served()
      // Anywhere in the reading: right after the new daemon came up, or well after.
      await new Promise((resolve) => setTimeout(resolve, (killing.kills * 37) % 150))
      process.kill(daemon()?.pid as number, 'SIGKILL')
      expect(await Promise.race([failed, until(() => served() > before).then(() => false)])).toBe(false)
    }
    killing.done = true
    await reading
    expect(killing.kills).toBe(20)
    expect(killing.rounds).toBeGreaterThan(0)
  }, 180_000)

  test('a read that waits when the daemon dies is answered by the next one', async () => {
    bigFile(2)
    await start(1500)
    const reading = run('dd', `if=${layer()}`, 'bs=4096', 'count=1', 'status=none')
    const before = served()
    await new Promise((resolve) => setTimeout(resolve, 200))
    process.kill(daemon()?.pid as number, 'SIGKILL')
    await until(() => served() > before)
    expect((await reading).stdout.equals(fs.readFileSync(big).subarray(0, 4096))).toBe(true)
  })

  test('hot upgrade: the new daemon takes over, the reader and the socket notice nothing', async () => {
    const expected = bigFile(64)
    const supervisor = await start(2)
    const old = daemon()?.pid
    const reading = sha256()
    expect(await whoAnswers()).toBe(old)
    supervisor.kill('SIGHUP')
    await until(() => served() === 2)
    expect(await reading).toBe(expected)
    await until(() => daemon()?.pid !== old)
    expect(await whoAnswers()).toBe(daemon()?.pid)
    expect(fs.readFileSync(log, 'utf8')).toContain(`${old} hands over`)
  })

  test('an upgrade to a daemon that cannot start leaves the old one serving', async () => {
    const expected = bigFile(4)
    const script = path.join(directory, 'daemon.sh')
    fs.writeFileSync(script, `exec ${daemonCommand(1).join(' ')}\n`)
    const supervisor = await start(1, ['sh', script])
    const old = daemon()?.pid
    let said = ''
    supervisor.stderr?.on('data', (data: Buffer) => { said += data.toString() })
    fs.writeFileSync(script, 'exit 1\n')
    supervisor.kill('SIGHUP')
    await until(() => said.includes('upgrade failed'))
    expect(await whoAnswers()).toBe(old)
    expect(await sha256()).toBe(expected)
  })

  test('the supervisor dies: the daemon serves on, and a new supervisor takes over without a reader noticing', async () => {
    const expected = bigFile(64)
    const first = await start(2)
    const old = daemon()?.pid as number
    const reading = sha256()
    const ended = new Promise((resolve) => first.once('exit', resolve))
    first.kill('SIGKILL')
    await ended
    await until(() => fs.readFileSync(log, 'utf8').includes('orphaned'))
    expect(await whoAnswers()).toBe(old)
    await start(2)
    expect(await reading).toBe(expected)
    expect(await whoAnswers()).not.toBe(old)
    expect(await sha256()).toBe(expected)
    expect(() => superviseCommand({ mountPoint, stateDirectory, command: ['x'] })).toThrow(/runs already/)
  })

  test('SIGTERM takes everything down', async () => {
    bigFile(1)
    const supervisor = await start(1)
    const pid = daemon()?.pid as number
    const ended = new Promise((resolve) => supervisor.once('exit', resolve))
    supervisor.kill('SIGTERM')
    expect(await ended).toBe(0)
    expect(mountsUnder(directory)).toEqual([])
    expect(fs.existsSync(`/proc/${pid}`)).toBe(false)
    expect(fs.existsSync(socket())).toBe(false)
  })
})
