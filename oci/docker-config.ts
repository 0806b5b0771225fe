// Credentials as `docker login`, `podman login` and Kubernetes leave them: config.json with auths, credHelpers and credsStore.
import { readFile, stat } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { askCredentialHelper } from './credential-helper.ts'
import { normalizeRegistryKey } from './credentials.ts'
import type { Credentials, CredentialSource } from './credentials.ts'
import { MAX_DOCKER_CONFIG_BYTES } from './defaults.ts'
import { SkimmerError } from './errors.ts'
import { firstIssue, parseJsonObject } from './manifest.ts'

const authSchema = z.object({
  auth: z.string().optional(),
  username: z.string().optional(),
  password: z.string().optional(),
  identitytoken: z.string().optional(),
  registrytoken: z.string().optional(),
})
const configSchema = z.object({
  auths: z.record(z.string(), authSchema).nullish(),
  credHelpers: z.record(z.string(), z.string()).nullish(),
  credsStore: z.string().nullish(),
})
type DockerConfig = z.infer<typeof configSchema>

/**
 * Where credentials are looked for, as docker and podman do: `REGISTRY_AUTH_FILE`, `$DOCKER_CONFIG/config.json`, then
 * `$XDG_RUNTIME_DIR/containers/auth.json` and `~/.docker/config.json`, whichever exists.
 */
function candidates(environment: NodeJS.ProcessEnv): string[] {
  if (environment.REGISTRY_AUTH_FILE) return [environment.REGISTRY_AUTH_FILE]
  if (environment.DOCKER_CONFIG) return [join(environment.DOCKER_CONFIG, 'config.json')]
  const runtime = environment.XDG_RUNTIME_DIR
  return [...(runtime ? [join(runtime, 'containers', 'auth.json')] : []), join(homedir(), '.docker', 'config.json')]
}

/**
 * Credentials from a docker `config.json`; without `path`, from where the environment says. The file is read when first
 * needed and again whenever it changes, so a rotated secret needs no restart. A missing file means no credentials, unless
 * `path` named it. Errors of `get`: INVALID_DATA for a broken file, NOT_FOUND for a named one that is missing, and what
 * credential helpers give.
 */
export function loadDockerConfig(path?: string): CredentialSource {
  let read: { path: string; version: string; config: DockerConfig } | undefined

  async function load(): Promise<{ path: string; config: DockerConfig } | undefined> {
    for (const candidate of path === undefined ? candidates(process.env) : [path]) {
      const found = await stat(candidate).catch(() => undefined)
      if (found === undefined || !found.isFile()) continue
      const version = `${found.ino}:${found.size}:${found.mtimeMs}`
      if (read?.path === candidate && read.version === version) return read
      if (found.size > MAX_DOCKER_CONFIG_BYTES) throw new SkimmerError('LIMIT_EXCEEDED', `${candidate} is larger than ${MAX_DOCKER_CONFIG_BYTES} bytes`)
      const parsed = configSchema.safeParse(parseJsonObject(await readFile(candidate), candidate, MAX_DOCKER_CONFIG_BYTES))
      if (!parsed.success) throw new SkimmerError('INVALID_DATA', `${candidate} is not a docker config: ${firstIssue(parsed.error)}`)
      read = { path: candidate, version, config: parsed.data }
      return read
    }
    if (path !== undefined) throw new SkimmerError('NOT_FOUND', `the registry credentials file ${path} does not exist`)
    return undefined
  }

  return {
    async get(registry, options) {
      const loaded = await load()
      if (loaded === undefined) return undefined
      const { config } = loaded
      const wanted = normalizeRegistryKey(registry)
      const helper = Object.entries(config.credHelpers ?? {}).find(([key]) => normalizeRegistryKey(key) === wanted)?.[1] ?? config.credsStore
      if (helper) {
        const found = await askCredentialHelper(helper, wanted === 'docker.io' ? 'https://index.docker.io/v1/' : registry, options?.signal)
        if (found !== undefined) return found
      }
      const entry = bestEntry(config, wanted, options?.repository)
      return entry && credentialsOf(entry.auth, `${loaded.path}: auths["${entry.key}"]`)
    },
  }
}

/** Podman writes keys that name a repository or a namespace (`quay.io/team`): the longest that fits wins. */
function bestEntry(config: DockerConfig, registry: string, repository = ''): { key: string; auth: z.infer<typeof authSchema> } | undefined {
  let best: { key: string; auth: z.infer<typeof authSchema>; depth: number } | undefined
  for (const [key, auth] of Object.entries(config.auths ?? {})) {
    if (normalizeRegistryKey(key) !== registry) continue
    // A path after a scheme (`https://index.docker.io/v1/`) is an API address, not a namespace.
    const namespace = /^https?:\/\//i.test(key) ? '' : key.split('/').slice(1).join('/').replace(/\/$/, '')
    const fits = namespace === '' || /^v[12]$/.test(namespace) || repository === namespace || repository.startsWith(`${namespace}/`)
    const depth = /^v[12]$/.test(namespace) ? 0 : namespace.length
    if (fits && (best === undefined || depth > best.depth)) best = { key, auth, depth }
  }
  return best
}

function credentialsOf(entry: z.infer<typeof authSchema>, where: string): Credentials | undefined {
  if (entry.registrytoken) return { registryToken: entry.registrytoken }
  if (entry.identitytoken) return { identityToken: entry.identitytoken }
  if (entry.auth) {
    // Docker pads with NUL bytes at times; the password may hold colons, the name may not.
    const decoded = Buffer.from(entry.auth, 'base64').toString('utf8').replace(/\0+$/, '')
    const colon = decoded.indexOf(':')
    if (colon < 1) throw new SkimmerError('INVALID_DATA', `${where}.auth is not the base64 of "user:password"; log in again`)
    return { username: decoded.slice(0, colon), password: decoded.slice(colon + 1) }
  }
  return entry.username === undefined || entry.password === undefined ? undefined : { username: entry.username, password: entry.password }
}
