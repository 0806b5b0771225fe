// The docker-credential-helper protocol: run `docker-credential-<name> get`, registry on stdin, JSON on stdout.
import { spawn } from 'node:child_process'
import { z } from 'zod'
import type { Credentials } from './credentials.ts'
import { CREDENTIAL_HELPER_TIMEOUT_MS, MAX_CREDENTIAL_HELPER_BYTES } from './defaults.ts'
import { SkimmerError } from './errors.ts'

const answerSchema = z.object({ Username: z.string(), Secret: z.string() })

/** What helpers say when they know nothing of a registry; by the protocol it comes on stdout with a failing exit code. */
const UNKNOWN_REGISTRY = /credentials not found|no credentials|not found in native keychain/i

/**
 * Asks a helper; undefined when it knows nothing of the registry. Its output never appears in errors: it may hold the
 * secret. Throws INVALID_ARGUMENT for a helper name that is a path, UNAVAILABLE when the helper is missing or fails,
 * TIMEOUT, LIMIT_EXCEEDED, INVALID_DATA.
 */
export async function askCredentialHelper(name: string, registry: string, signal?: AbortSignal, timeoutMs = CREDENTIAL_HELPER_TIMEOUT_MS): Promise<Credentials | undefined> {
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(name)) {
    throw new SkimmerError('INVALID_ARGUMENT', `"${name.slice(0, 100)}" is not the name of a credential helper; credsStore and credHelpers take the part after "docker-credential-"`)
  }
  const program = `docker-credential-${name}`
  const bounded = AbortSignal.timeout(timeoutMs)
  const { code, output } = await run(program, registry, signal === undefined ? bounded : AbortSignal.any([signal, bounded])).catch((cause: unknown) => {
    if (cause instanceof SkimmerError) throw cause
    if (signal?.aborted) throw new SkimmerError('ABORTED', `asking ${program} for ${registry} was given up`)
    if (bounded.aborted) throw new SkimmerError('TIMEOUT', `${program} did not answer for ${registry} within ${timeoutMs / 1000} s`)
    const missing = (cause as NodeJS.ErrnoException).code === 'ENOENT'
    throw new SkimmerError('UNAVAILABLE', missing ? `${program}, which the docker config names for ${registry}, is not in the PATH; install it or log in again without it` : `${program} could not be run for ${registry}`, { cause })
  })
  if (code !== 0) {
    if (UNKNOWN_REGISTRY.test(output)) return undefined
    throw new SkimmerError('UNAVAILABLE', `${program} failed for ${registry} (exit code ${code}); try \`echo ${registry} | ${program} get\``)
  }
  let document: unknown
  try {
    document = JSON.parse(output)
  } catch {
    document = undefined // the parse error would quote the secret
  }
  const answer = answerSchema.safeParse(document)
  if (!answer.success) throw new SkimmerError('INVALID_DATA', `${program} answered for ${registry} with something that is not {"Username", "Secret"}`)
  const { Username, Secret } = answer.data
  if (Username === '' && Secret === '') return undefined
  return Username === '<token>' ? { identityToken: Secret } : { username: Username, password: Secret }
}

function run(program: string, registry: string, signal: AbortSignal): Promise<{ code: number; output: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, ['get'], { stdio: ['pipe', 'pipe', 'ignore'], env: process.env, signal, killSignal: 'SIGKILL' })
    const chunks: Buffer[] = []
    let length = 0
    child.stdout.on('data', (chunk: Buffer) => {
      length += chunk.length
      if (length <= MAX_CREDENTIAL_HELPER_BYTES) chunks.push(chunk)
      else {
        child.kill('SIGKILL')
        reject(new SkimmerError('LIMIT_EXCEEDED', `${program} answered with more than ${MAX_CREDENTIAL_HELPER_BYTES} bytes`))
      }
    })
    child.on('error', reject)
    child.on('close', (code) => resolve({ code: code ?? 1, output: Buffer.concat(chunks).toString('utf8') }))
    child.stdin.on('error', () => {}) // a helper may answer without reading: not an error
    child.stdin.end(`${registry}\n`)
  })
}
