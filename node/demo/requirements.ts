// What the whole demo needs of a machine, in the words of who must provide it.
import { accessSync, constants } from 'node:fs'
import { delimiter, join } from 'node:path'

const PROGRAMS = ['containerd', 'ctr', 'ctr-remote', 'runc', 'docker-registry', 'skopeo', 'umoci', 'ip', 'tc', 'nsenter', 'mount', 'losetup', 'perl', 'curl']

export function missingForDemo(): string[] {
  const missing: string[] = []
  if (process.getuid?.() !== 0) missing.push('not root: namespaces, mounts and containers need it (run it with sudo)')
  try {
    accessSync('/dev/fuse', constants.R_OK | constants.W_OK)
  } catch {
    missing.push('/dev/fuse is missing or not ours to open (in a container: --device /dev/fuse --cap-add SYS_ADMIN)')
  }
  const absent = PROGRAMS.filter((program) => !onPath(program))
  if (absent.length > 0) missing.push(`programs not installed: ${absent.join(', ')} (sh deploy/setup.sh --demo installs them on Debian, as root)`)
  return missing
}

function onPath(program: string): boolean {
  return [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/sbin'].some((directory) => {
    try {
      accessSync(join(directory, program), constants.X_OK)
      return true
    } catch {
      return false
    }
  })
}
