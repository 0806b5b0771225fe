// Credentials for registries: what they can be, and the sources that need no file or program.

export type Credentials =
  | { readonly username: string; readonly password: string }
  /** An OAuth2 refresh token, as `docker login` stores it for some registries. */
  | { readonly identityToken: string }
  /** A bearer token to send as it is. */
  | { readonly registryToken: string }

export interface CredentialSource {
  /**
   * Credentials for a registry (`docker.io`, `registry.example:5000`), or for one repository of it where the source knows
   * such. undefined means: go on anonymously. Asked again when a registry refused what it was given, so that rotated
   * credentials are picked up.
   */
  get(registry: string, options?: { repository?: string; signal?: AbortSignal }): Promise<Credentials | undefined>
}

/** Credentials given outright, by registry as in references. */
export function staticCredentials(byRegistry: Readonly<Record<string, Credentials>>): CredentialSource {
  const known = new Map(Object.entries(byRegistry).map(([registry, credentials]) => [normalizeRegistryKey(registry), credentials]))
  return { get: async (registry) => known.get(normalizeRegistryKey(registry)) }
}

/** The first source that knows the registry answers. */
export function firstCredentials(...sources: readonly CredentialSource[]): CredentialSource {
  return {
    async get(registry, options) {
      for (const source of sources) {
        const credentials = await source.get(registry, options)
        if (credentials !== undefined) return credentials
      }
      return undefined
    },
  }
}

export const anonymous: CredentialSource = { get: async () => undefined }

const DOCKER_HUB_NAMES = new Set(['docker.io', 'index.docker.io', 'registry-1.docker.io', 'registry.hub.docker.com'])

/**
 * Keys are written in many ways (`https://index.docker.io/v1/`, `registry:5000`, `https://ghcr.io`): one spelling, host
 * with port, and all of Docker Hub's names as `docker.io`.
 */
export function normalizeRegistryKey(key: string): string {
  const host = key.replace(/^https?:\/\//i, '').split('/', 1)[0].toLowerCase()
  return DOCKER_HUB_NAMES.has(host) ? 'docker.io' : host
}
