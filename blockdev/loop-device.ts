// Loop devices over virtual disks: attached read-only, gone by themselves when the last user closes them. In children, as all mounting.
import { SkimmerError } from '../oci/errors.ts'
import { runChild } from './mount.ts'

export interface LoopDevice { readonly device: string; readonly file: string }

/** Attach a file read-only; `directIo` spares the second copy in the page cache. UNSUPPORTED with losetup's words. */
export async function attachLoop(file: string, options: { directIo: boolean; timeoutMs: number }): Promise<string> {
  const words = ['--find', '--show', '--read-only', `--direct-io=${options.directIo ? 'on' : 'off'}`, file]
  const { status, stdout, stderr } = await runChild('losetup', words, options.timeoutMs)
  const device = stdout.trim()
  if (status === 0 && device.startsWith('/dev/loop')) return device
  throw new SkimmerError(status === 'timeout' ? 'TIMEOUT' : 'UNSUPPORTED', `attaching ${file} as a loop device failed: ${stderr || 'losetup named no device'}`)
}

/** Detach now, or as soon as nobody has it open: after mounting, this makes the mount the only thing that keeps it. */
export async function detachLoop(device: string, timeoutMs: number): Promise<void> {
  const { status, stderr } = await runChild('losetup', ['--detach', device], timeoutMs)
  if (status !== 0 && !/No such device/.test(stderr)) throw new SkimmerError(status === 'timeout' ? 'TIMEOUT' : 'INTERNAL', `detaching ${device} failed: ${stderr}`)
}

/** Devices whose file lies under `directory`. Reads sysfs by losetup, which does not touch the files. */
export async function loopsUnder(directory: string, timeoutMs: number): Promise<LoopDevice[]> {
  const { status, stdout } = await runChild('losetup', ['--list', '--noheadings', '--raw', '--output', 'NAME,BACK-FILE'], timeoutMs)
  if (status !== 0) return []
  return stdout.split('\n').flatMap((line) => {
    const space = line.indexOf(' ')
    const file = line.slice(space + 1).replace(/ \(deleted\)$/, '')
    return space > 0 && file.startsWith(`${directory}/`) ? [{ device: line.slice(0, space), file }] : []
  })
}
