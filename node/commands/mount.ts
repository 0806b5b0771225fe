// `skimmer mount` and `skimmer umount`: an image as a read-only directory, without containerd.
import { execFile } from 'node:child_process'
import { mkdirSync, realpathSync } from 'node:fs'
import { resolve } from 'node:path'
import { promisify } from 'node:util'
import type { Command } from 'commander'
import { SkimmerError } from '../../oci/errors.ts'
import type { MountAnswer } from '../api/answers.ts'
import { callNode } from '../api/client.ts'
import { interruptible } from '../../command-line/interrupt.ts'
import { socketOption } from './socket-option.ts'

const execute = promisify(execFile)
/** The first pull of a large image: it is indexed first. */
const MOUNT_TIMEOUT_MS = 600_000

export function addMount(program: Command): void {
  program
    .command('mount')
    .summary('mount an image at a directory, read-only, through the node on this machine')
    .description('Mounts the merged tree of an image. Its files come when they are first read, the rest in the background. Ends with `skimmer umount DIR`.')
    .argument('<IMAGE>', 'an image reference: debian:12, registry.example:5000/team/app@sha256:…')
    .argument('<DIR>', 'where to mount it; made when missing')
    .addOption(socketOption())
    .action(async (image: string, directory: string, flags: { socket: string }) => {
      mkdirSync(directory, { recursive: true })
      const target = realpathSync(directory)
      await interruptible(async (signal) => {
        const mounted = await callNode<MountAnswer>(flags.socket, '/v1/mounts', { method: 'POST', body: { reference: image, target }, timeoutMs: MOUNT_TIMEOUT_MS, signal })
        try {
          await execute('mount', ['--bind', '-o', 'ro,nosuid,nodev', mounted.mountPoint, target])
        } catch (cause) {
          await callNode(flags.socket, `/v1/mounts?target=${encodeURIComponent(target)}`, { method: 'DELETE' })
          throw new SkimmerError('UNAVAILABLE', `${target}: ${(cause as { stderr?: string }).stderr?.trim() ?? (cause as Error).message}`, { cause })
        }
        process.stdout.write(`${mounted.reference} is mounted at ${target}\n`)
      })
    })
  program
    .command('umount')
    .summary('take down what `skimmer mount` mounted')
    .description('Unmounts the directory and tells the node, which takes the image down when nothing else uses it. What was fetched stays in the cache.')
    .argument('<DIR>', 'where it was mounted')
    .addOption(socketOption())
    .action(async (directory: string, flags: { socket: string }) => {
      const target = resolve(directory)
      try {
        await execute('umount', [target])
      } catch (cause) {
        const words = (cause as { stderr?: string }).stderr?.trim() ?? (cause as Error).message
        // Unmounted by hand before: the node must still hear of it.
        if (!/not mounted|no mount point/i.test(words)) throw new SkimmerError('CONFLICT', `${target}: ${words}`, { cause })
      }
      await callNode(flags.socket, `/v1/mounts?target=${encodeURIComponent(target)}`, { method: 'DELETE' })
    })
}
