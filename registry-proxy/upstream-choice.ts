// Which registry a request is for: `?ns=`, a header, the name by which the proxy was called, the first part of the path, or the default.
import type { IncomingHttpHeaders } from 'node:http'
import { normalizeRegistryKey } from '../oci/credentials.ts'
import { SkimmerError } from '../oci/errors.ts'
import { isRegistry, isRepository } from '../oci/reference.ts'
import { splitRegistryPath } from './registry-path.ts'

export interface Upstream {
  readonly registry: string
  /** Empty for `/v2/` itself. */
  readonly repository: string
  /** By the path: then the client's `/v2/` was about another registry, and so are the credentials it sends. */
  readonly named: 'ns' | 'header' | 'host' | 'path' | 'default'
}

export interface UpstreamRules {
  readonly registry: string
  readonly registries: ReadonlySet<string>
  readonly hosts: ReadonlyMap<string, string>
}

/** Dragonfly's header is understood too, so that its client configurations go on working. */
const HEADERS = ['x-skimmer-registry', 'x-dragonfly-registry']

export function upstreamRules(options: { registry: string; registries?: readonly string[]; hosts?: Readonly<Record<string, string>> }): UpstreamRules {
  const registries = new Set((options.registries ?? []).map((registry) => registryIn(registry, 'proxy.registries')))
  const registry = registryIn(options.registry, 'proxy.registry')
  const hosts = new Map(Object.entries(options.hosts ?? {}).map(([host, named]) => [host.toLowerCase(), registryIn(named, 'proxy.hosts')]))
  return { registry, registries, hosts }
}

/** INVALID_ARGUMENT: names no registry or no repository. FORBIDDEN: a registry that this proxy must not ask. */
export function chooseUpstream(rules: UpstreamRules, name: string | undefined, query: URLSearchParams, headers: IncomingHttpHeaders): Upstream {
  const upstream = choose(rules, name ?? '', query, headers)
  if (rules.registries.size > 0 && !rules.registries.has(upstream.registry)) throw new SkimmerError('FORBIDDEN', `this proxy does not serve the registry ${upstream.registry}`)
  if (name === undefined) return upstream
  // Docker Hub's official images have their namespace on the wire.
  const repository = upstream.registry === 'docker.io' && !upstream.repository.includes('/') ? `library/${upstream.repository}` : upstream.repository
  if (!isRepository(repository)) throw new SkimmerError('INVALID_ARGUMENT', `${JSON.stringify(name.slice(0, 100))} is not a repository name`)
  return { ...upstream, repository }
}

function choose(rules: UpstreamRules, name: string, query: URLSearchParams, headers: IncomingHttpHeaders): Upstream {
  const ns = query.get('ns')
  if (ns) return { registry: registryIn(ns, 'ns'), repository: name, named: 'ns' }
  for (const header of HEADERS) {
    const value = headers[header]
    if (typeof value === 'string' && value !== '') return { registry: registryIn(value, header), repository: name, named: 'header' }
  }
  const called = (headers.host ?? '').toLowerCase()
  const mapped = rules.hosts.get(called) ?? rules.hosts.get(called.replace(/:[0-9]+$/, ''))
  if (mapped !== undefined) return { registry: mapped, repository: name, named: 'host' }
  const split = splitRegistryPath(name)
  if (split !== undefined) return { registry: registryIn(split.registry, 'the path'), repository: split.repository, named: 'path' }
  return { registry: rules.registry, repository: name, named: 'default' }
}

/** A registry as references write it, from a host or a URL of it. */
function registryIn(text: string, where: string): string {
  const registry = normalizeRegistryKey(text.trim())
  if (!isRegistry(registry)) throw new SkimmerError('INVALID_ARGUMENT', `${where}: ${JSON.stringify(text.slice(0, 100))} does not name a registry: write HOST or HOST:PORT`)
  return registry
}
