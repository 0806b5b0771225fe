// `skimmer doctor`: what this machine can do, what the node says, and what to write into containerd's configuration.
import { mkdirSync } from 'node:fs'
import { join, resolve } from 'node:path'
import type { Command } from 'commander'
import type { StatusAnswer } from '../api/answers.ts'
import { callNode } from '../api/client.ts'
import { addSettings, loadSettings } from '../../command-line/settings.ts'
import { NODE_SETTINGS } from '../config/node-settings.ts'
import { EXIT_CODES } from '../../command-line/exit-codes.ts'

const NEEDED = new Set(['root', 'perl', 'fuse', 'overlay'])

const say = (line: string): void => void process.stdout.write(`${line}\n`)

export function addDoctor(program: Command): void {
  const { root, run, 'snapshotter.name': name } = NODE_SETTINGS
  const command = program
    .command('doctor')
    .summary('say what this machine can do, what is wrong, and how to set containerd up')
    .description(
      "Tries what a node needs (as root also the mounts themselves), asks the node on this machine how it is, and prints what to write into containerd's configuration. " +
      'Reads the same configuration file as `skimmer node`.',
    )
    .addHelpText('after', `
"ok" works, "without" is missing but another way is taken, "MISSING" must be there: then the exit code is 1.`)
  addSettings(command, { root, run, 'snapshotter.name': name }).action(async (flags: Record<string, unknown>) => {
    const config = loadSettings(NODE_SETTINGS, flags)
    const [{ capabilities }, { readSupervisorState }, { stateFileIn }] = await Promise.all([import('../../blockdev/capabilities.ts'), import('../../blockdev/supervisor-state.ts'), import('../../blockdev/supervise.ts')])
    const directory = join(config.root, 'images')
    if (process.getuid?.() === 0) mkdirSync(directory, { recursive: true })
    const found = await capabilities(directory, readSupervisorState(stateFileIn(resolve(config.run)))?.negotiated)
    for (const { name, works, because } of found) say(`${works ? 'ok     ' : NEEDED.has(name) ? 'MISSING' : 'without'}  ${name}: ${because}`)
    const socket = join(config.run, 'api.sock')
    try {
      const status = await callNode<StatusAnswer>(socket, '/v1/status')
      say(`ok       node: ${status.peerId} runs, images mounted by ${status.mode}, supernodes connected: ${status.supernodes.length}`)
    } catch (error) {
      say(`without  node: ${(error as Error).message}`)
    }
    const plugin = config['snapshotter.name']
    say(`
For containerd, in /etc/containerd/config.toml:

  [proxy_plugins.${plugin}]
    type = "snapshot"
    address = "${join(resolve(config.run), 'snapshotter.sock')}"
    [proxy_plugins.${plugin}.exports]
      root = "${resolve(config.root)}"
      enable_remote_snapshot_annotations = "true"

For Kubernetes also snapshotter = "${plugin}" and disable_snapshot_annotations = false in
  [plugins."io.containerd.grpc.v1.cri".containerd]   containerd 1.6 and 1.7
  [plugins."io.containerd.cri.v1.images"]            containerd 2
Whole examples: deploy/containerd/`)
    if (found.some(({ name, works }) => !works && NEEDED.has(name))) process.exitCode = EXIT_CODES.failed
  })
}
