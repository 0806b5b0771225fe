// Every setting of the registry proxy, and how they become its options.
import { readFileSync } from 'node:fs'
import type { RegistryProxyOptions } from '../../registry-proxy/proxy-options.ts'
import { upstreamRules } from '../../registry-proxy/upstream-choice.ts'
import { SkimmerError } from '../../oci/errors.ts'
import { count, duration, type Endpoint, endpoint, list, optional, text, toggle, type Values } from '../../command-line/settings.ts'

export const PROXY_LISTEN_HELP = 'where the registry proxy is, for instance 127.0.0.1:4001; whoever reaches it may use it'

export const PROXY_SETTINGS = {
  'proxy.listen': endpoint('', `${PROXY_LISTEN_HELP}; empty: there is none`),
  'proxy.registry': text('docker.io', 'the registry that is meant when a request names none'),
  'proxy.registries': list('HOST', [], 'registries that the proxy may ask; none: any'),
  'proxy.hosts': list('HOST=REGISTRY', [], 'names by which clients reach the proxy, each standing for a registry'),
  'proxy.tag-ttl': duration('10s', 'how long a tag is believed without asking the registry'),
  'proxy.stale-tags': duration('24h', 'how old a tag may be when the registry cannot be asked; 0: then it is not served'),
  'proxy.access-ttl': duration('5m', "how long a registry's yes to a client is believed without asking again"),
  'proxy.access-offline': duration('24h', 'and how long when the registry cannot be asked'),
  'proxy.credentials': toggle('false', "serve local clients that bring no credentials with those of registry.config: they can then read what this machine can"),
  'proxy.connections': count('1000', 'connections of clients at the same time', { least: 1, most: 100_000 }),
  'proxy.tls-cert': optional('FILE', 'PEM certificate chain: the proxy then speaks TLS'),
  'proxy.tls-key': optional('FILE', 'PEM key of that certificate'),
}

/** INVALID_ARGUMENT that names the key. */
export function proxyOptions(values: Values<typeof PROXY_SETTINGS>, listen: Endpoint, secret?: Buffer): RegistryProxyOptions {
  const hosts = Object.fromEntries(values['proxy.hosts'].map((written) => {
    const [, host, registry] = /^([^=\s]+)=(\S+)$/.exec(written) ?? []
    if (registry === undefined) throw new SkimmerError('INVALID_ARGUMENT', `proxy.hosts: ${JSON.stringify(written)} is not HOST=REGISTRY`)
    return [host, registry]
  }))
  const cert = values['proxy.tls-cert']
  const key = values['proxy.tls-key']
  if ((cert === undefined) !== (key === undefined)) throw new SkimmerError('INVALID_ARGUMENT', 'proxy.tls-cert and proxy.tls-key are given together or not at all')
  const options: RegistryProxyOptions = {
    listen,
    registry: values['proxy.registry'],
    registries: values['proxy.registries'],
    hosts,
    tagTtlMs: values['proxy.tag-ttl'],
    staleTagsMs: values['proxy.stale-tags'],
    accessTtlMs: values['proxy.access-ttl'],
    accessOfflineMs: values['proxy.access-offline'],
    ownCredentials: values['proxy.credentials'],
    connections: values['proxy.connections'],
    ...(cert !== undefined && key !== undefined && { tls: { cert: readPem(cert, 'proxy.tls-cert'), key: readPem(key, 'proxy.tls-key') } }),
    ...(secret !== undefined && { secret }),
  }
  upstreamRules({ ...options, registry: values['proxy.registry'] })
  return options
}

function readPem(file: string, key: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch (cause) {
    throw new SkimmerError('INVALID_ARGUMENT', `${key}: ${file} cannot be read: ${(cause as NodeJS.ErrnoException).code}`, { cause })
  }
}
