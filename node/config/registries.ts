// How registries are reached and with which credentials: the settings that node and supernode share, as the hosts configuration of oci/.
import type { HostsConfig } from '../../oci/registry-hosts.ts'
import { SkimmerError } from '../../oci/errors.ts'
import { list, optional, type Values } from '../../command-line/settings.ts'

export const REGISTRY_SETTINGS = {
  'registry.config': optional('FILE', 'docker config.json with credentials and credential helpers; default: where docker and podman keep theirs'),
  'registry.plain-http': list('HOST', [], 'registries (host:port) that speak plain HTTP'),
  'registry.ca': list('HOST=FILE', [], 'certificate authorities of registries, PEM files'),
  'registry.insecure': list('HOST', [], 'registries whose certificate is not checked'),
  'registry.mirrors': list('HOST=URL', [], 'asked before the registry itself'),
}

export function hostsConfig(values: Values<typeof REGISTRY_SETTINGS>): HostsConfig {
  const hosts: Record<string, { plainHttp?: boolean; ca?: string; insecureSkipVerify?: boolean; mirrors?: string[] }> = {}
  const of = (host: string): (typeof hosts)[string] => (hosts[host] ??= {})
  for (const host of values['registry.plain-http']) of(host).plainHttp = true
  for (const host of values['registry.insecure']) of(host).insecureSkipVerify = true
  for (const written of values['registry.ca']) {
    const [host, file] = pair('registry.ca', written)
    of(host).ca = file
  }
  for (const written of values['registry.mirrors']) {
    const [host, url] = pair('registry.mirrors', written)
    const entry = of(host)
    entry.mirrors = [...(entry.mirrors ?? []), url]
  }
  return hosts
}

function pair(key: string, written: string): [string, string] {
  const at = written.indexOf('=')
  if (at <= 0) throw new SkimmerError('INVALID_ARGUMENT', `${key}: ${JSON.stringify(written)} is not HOST=VALUE`)
  return [written.slice(0, at), written.slice(at + 1)]
}
