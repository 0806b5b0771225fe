// What is still mounted below a directory that is about to be deleted.
import { readFileSync } from 'node:fs'
import { run } from './process.ts'

/** Takes down whatever is still mounted in a directory that is about to be deleted. */
export async function unmountBelow(directory: string): Promise<void> {
  for (const mountPoint of mountsBelow(directory)) await run(['umount', '--lazy', mountPoint], { mayFail: true })
}

/** Deepest and latest first. */
function mountsBelow(directory: string): string[] {
  const mountPoints = readFileSync('/proc/self/mounts', 'utf8').split('\n').map((line) => (line.split(' ')[1] ?? '').replaceAll(/\\([0-7]{3})/g, (_all, octal: string) => String.fromCharCode(Number.parseInt(octal, 8))))
  return mountPoints.filter((mountPoint) => mountPoint.startsWith(`${directory}/`)).toReversed()
}
