// A registry's name as the first part of a repository's path: how a client that cannot say `?ns=` tells the proxy which registry it means.
import { SkimmerError } from '../oci/errors.ts'

// podman, CRI-O, skopeo and buildah put a mirror's `location` in front of the repository: with `127.0.0.1:4001/quay.io` they ask
// `/v2/quay.io/team/app/manifests/1`. A path component may hold letters, digits, dots, dashes and at most two underscores in a row, so a port is written `__5000`.
const HOST = /^(?=.{1,253}(?::|$))[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*(?::[0-9]{1,5})?$/
const COMPONENT = /^([a-z0-9.-]+?)(?:__([0-9]{1,5}))?$/

/** `quay.io` -> `quay.io`, `registry.example:5000` -> `registry.example__5000`. INVALID_ARGUMENT: a name that no path can hold, such as an IPv6 address. */
export function registryPath(registry: string): string {
  const name = registry.toLowerCase()
  if (!HOST.test(name)) throw new SkimmerError('INVALID_ARGUMENT', `${JSON.stringify(registry)} is not HOST or HOST:PORT that a repository's path can begin with`)
  return name.replace(':', '__')
}

/** The registry that a repository's path begins with, and the rest; undefined when it begins with none. As in image references, a host has a dot or a port, or is localhost. */
export function splitRegistryPath(name: string): { registry: string; repository: string } | undefined {
  const slash = name.indexOf('/')
  if (slash <= 0 || slash === name.length - 1) return undefined
  const [, host, port] = COMPONENT.exec(name.slice(0, slash)) ?? []
  if (host === undefined || !(host.includes('.') || port !== undefined || host === 'localhost')) return undefined
  const registry = port === undefined ? host : `${host}:${port}`
  return HOST.test(registry) ? { registry, repository: name.slice(slash + 1) } : undefined
}
