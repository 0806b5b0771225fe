// A daemon that dies, and a listening socket that outlives it: containerd's calls wait for the next daemon.
import { expect, test } from '@jest/globals'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { SnapshotsClient } from './client.ts'
import { eventually } from './machine.ts'

const SCRIPT = fileURLToPath(new URL('serve-inherited.ts', import.meta.url))
/** Keeps a listening socket open over exec, as the supervisor does, and starts the daemon again whenever it ends. */
const HOLDER = `use Socket; $^F = 10; my ($path, @daemon) = @ARGV;
socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die; bind($s, pack_sockaddr_un($path)) or die $!; listen($s, 64) or die;
while (1) { system(@daemon, fileno($s)) }`

const testHere = spawnSync('perl', ['-e', '1']).status === 0 ? test : test.skip

testHere('calls wait while the daemon is killed and started again; snapshots are all there', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'ski-'))
  const socketPath = join(directory, 's.sock')
  const client = new SnapshotsClient(socketPath)
  // The daemons end when their standard input does.
  const holder = spawn('perl', ['-e', HOLDER, socketPath, process.execPath, SCRIPT, directory], { stdio: ['pipe', 'pipe', 'inherit'] })
  const pids: number[] = []
  createInterface({ input: holder.stdout }).on('line', line => pids.push(Number(line)))
  try {
    await eventually(() => expect(existsSync(socketPath)).toBe(true))
    await client.call('Prepare', { key: 'first', labels: { a: 'b' } })
    for (let round = 0; round < 3; round++) {
      await eventually(() => expect(pids).toHaveLength(round + 1))
      process.kill(pids[round], round === 1 ? 'SIGTERM' : 'SIGKILL')
      await eventually(() => expect(() => readFileSync(`/proc/${pids[round]}/stat`)).toThrow())
      await client.call('View', { key: `during-${round}` }, { wait: true })
    }
    expect((await client.list()).map(({ name }) => name).sort()).toEqual(['during-0', 'during-1', 'during-2', 'first'])
  } finally {
    client.close()
    const silent = once(holder, 'close')
    holder.kill('SIGKILL')
    holder.stdin.end()
    await silent
    rmSync(directory, { recursive: true, force: true })
  }
})
