// A mounted tree as text, one line a file: everything a container can see of it, for comparing two trees.
import { run } from '../../bench/lab/process.ts'

/** Path, type and mode, owner, size, mtime with nanoseconds, link count and target of everything but the root's and directories' times; then the sha256 of every file. */
export async function listing(directory: string): Promise<string> {
  const script = `cd "$1"
find . -mindepth 1 -type d -printf '%p %y %m %U:%G\\n' | sort
find . ! -type d -printf '%p %y %m %U:%G %s %T@ %n %l\\n' | sort
find . -type f -print0 | sort -z | xargs -0 -r sha256sum`
  return (await run(['sh', '-ec', script, 'listing', directory])).stdout
}
