// Runs the real `skimmer` command as a process of its own, as it was built, as a user's shell would.
import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

export const ROOT = fileURLToPath(new URL('../..', import.meta.url))
export const CLI = `${ROOT}dist/node/cli.js`

export interface CliResult {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

/** `env` replaces the environment but for PATH; `as` runs it by way of another command, setpriv for instance; `cli` is another build of it. */
export function skimmer(words: readonly string[], options: { env?: Record<string, string>; as?: readonly string[]; signalAfter?: RegExp; cli?: string } = {}): Promise<CliResult> {
  const [command, ...rest] = [...(options.as ?? []), process.execPath, options.cli ?? CLI, ...words]
  return new Promise((resolve, reject) => {
    const child = spawn(command, rest, { env: { PATH: process.env.PATH ?? '', ...options.env }, stdio: ['ignore', 'pipe', 'pipe'] })
    let stdout = ''
    let stderr = ''
    let signalled = false
    child.stdout.on('data', (chunk) => (stdout += chunk))
    child.stderr.on('data', (chunk) => {
      stderr += chunk
      if (!signalled && options.signalAfter?.test(stderr) === true) signalled = child.kill('SIGINT')
    })
    child.on('error', reject)
    child.on('close', (code) => resolve({ code, stdout, stderr }))
  })
}
